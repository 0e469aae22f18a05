"""math-verify in worker processes: hostile text costs its own time limit, never the stage.

The kernel keeps the limits: it denies memory, and it kills a worker that exceeds its CPU time even inside one long call in C,
which a tower of powers is. A worker gets a few items at a time and answers one by one, so that its death costs the item it was
judging and no other.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import multiprocessing
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, BrokenExecutor, CancelledError, ThreadPoolExecutor, wait
from multiprocessing.connection import Connection

from tasks.run.work import chunks
from tasks.score import math_verdict
from tasks.score.math_verdict import Item, Verdict

TEXT_CAP = 10_000  # characters handed to the parser, from the tail: answers stand at the end, and its regexes are quadratic
MEMORY_CAP = 2 << 30  # bytes of address space per worker
AT_ONCE = 16  # items sent together; a message costs about as much as an easy verdict
PR_SET_PDEATHSIG = 1

_lock = threading.RLock()
_starting = threading.Lock()  # multiprocessing keeps a list of its children that two threads must not change at once
_running: _Pool | None = None


def verify_all(items: Sequence[Item], timeout: float, workers: int) -> list[Verdict]:
    """Verdicts in the order of the items; identical items are verified once. `timeout` is in CPU seconds per item.

    Time is CPU time because a verdict must not depend on how busy the machine is.
    """
    clipped = [(gold, text[-TEXT_CAP:]) for gold, text in items]
    verdicts = {item: math_verdict.shortcut(*item) for item in clipped}
    hard = [item for item, verdict in verdicts.items() if verdict is None]
    if hard:
        with _lock:
            try:
                verdicts.update(zip(hard, _pool(workers).verify(hard, timeout), strict=True))
            except BaseException:  # interrupted: what is still queued must not run before the next call's items
                _close()
                raise
    return [verdict for item in clipped if (verdict := verdicts[item])]


def _pool(workers: int) -> _Pool:
    """Kept between calls, as a worker takes a second to start; not shared with a forked child, which lacks its threads."""
    global _running
    if _running and (_running.process, _running.workers) != (os.getpid(), workers):
        _close()
    if not _running:
        _running = _Pool(workers)
        atexit.register(_close)
    return _running


def _close() -> None:
    """End the workers; the next call starts new ones."""
    global _running
    with _lock:
        pool, _running = _running, None
        atexit.unregister(_close)
        if pool and pool.process == os.getpid():
            pool.close()


class _Pool:
    """A thread per worker. PR_SET_PDEATHSIG fires when the THREAD that started a worker ends, so workers must not be started
    by a caller's thread, which may be short-lived."""

    def __init__(self, workers: int) -> None:
        self.process, self.workers, self.closed = os.getpid(), workers, False
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix="verify")
        self.ones: dict[int, _Worker] = {}  # thread id -> its worker

    def verify(self, items: Sequence[Item], timeout: float) -> list[Verdict]:
        batches = [items[rows.start : rows.stop] for rows in chunks(len(items), AT_ONCE)]
        futures = [self.threads.submit(self._verify, batch, timeout) for batch in batches]
        while (waited := wait(futures, timeout=1.0, return_when=FIRST_EXCEPTION)).not_done:  # a second, to notice Ctrl-C
            for future in waited.done:
                future.result()  # raises where a worker cannot start
        return [verdict for future in futures for verdict in future.result()]

    def _verify(self, items: Sequence[Item], timeout: float) -> list[Verdict]:
        verdicts: list[Verdict] = []
        died_at = -1
        while len(verdicts) < len(items):
            reached, last = self._worker().judge(items[len(verdicts) :], timeout)
            verdicts += reached
            if len(verdicts) == len(items):
                break
            self._drop(threading.get_ident())
            if last is None and died_at == len(verdicts):  # killed from outside it would not die twice at one item
                last = (None, "crashed", "its worker died twice")
            died_at = len(verdicts)
            verdicts += [last] if last else []
        return verdicts

    def _worker(self) -> _Worker:
        """This thread's worker, started where there is none.

        Raises:
            BrokenExecutor: workers cannot start.
        """
        me = threading.get_ident()
        for _ in range(2):  # one may be killed from outside while it starts
            if self.closed:
                raise CancelledError
            if me in self.ones:
                return self.ones[me]
            self.ones[me] = _Worker()
            if self.ones[me].ready():
                return self.ones[me]
            self._drop(me)
        raise BrokenExecutor("the processes that verify answers cannot start; their errors are on stderr")

    def _drop(self, thread: int) -> None:
        if one := self.ones.pop(thread, None):
            one.stop()

    def close(self) -> None:
        self.closed = True
        self.threads.shutdown(wait=False, cancel_futures=True)
        for wait_for_threads in (False, True):  # a thread may have been starting its worker
            self.threads.shutdown(wait=wait_for_threads)
            for thread in list(self.ones):
                self._drop(thread)


class _Worker:
    """One process, and our end of a pipe to it: items go in a few at a time, verdicts come back one by one."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's and Prefect's threads
        self.pipe, theirs = context.Pipe()
        work = (theirs, os.getpid(), _prepare, math_verdict.judge)
        self.process = context.Process(target=_serve, args=work, daemon=True)
        with _starting:
            self.process.start()
        theirs.close()

    def ready(self) -> bool:
        """Wait until it can judge; False where it died before."""
        try:
            return bool(self.pipe.recv())
        except (EOFError, OSError):
            return False

    def judge(self, items: Sequence[Item], timeout: float) -> tuple[list[Verdict], Verdict | None]:
        """The verdicts it reached and, where it stopped early, what is known of the item it stopped at."""
        reached: list[Verdict] = []
        try:
            self.pipe.send((items, timeout))
            for _ in items:
                if not self.pipe.poll(4 * timeout + 20):  # the kernel keeps the limit; this is for a stopped machine
                    return reached, (None, "timeout", "wall clock")
                reached.append(self.pipe.recv())
        except (EOFError, OSError):
            self.process.join()
            return reached, (None, "timeout", None) if self.process.exitcode == -signal.SIGPROF else None
        return reached, None

    def stop(self) -> None:
        with _starting:
            self.process.kill()
            self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, parent: int, prepare: Callable[[int], None], judge: Callable[[str, str, float], Verdict]) -> None:
    """The worker's life, until its parent closes the pipe."""
    prepare(parent)
    with contextlib.suppress(EOFError):
        pipe.send(True)
        while True:
            items, timeout = pipe.recv()
            for gold, text in items:
                pipe.send(judge(gold, text, timeout))


def _prepare(parent: int) -> None:
    """Runs once in every worker, before its first item."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers itself
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_CAP, MEMORY_CAP))
    warnings.simplefilter("ignore")  # sympy compiles what it reads: hostile text would fill stderr with SyntaxWarnings
    logging.disable(logging.CRITICAL)
    math_verdict.warm_up()
