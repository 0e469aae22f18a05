"""math-verify and pint in worker processes: a hostile text costs its own time limit, and cannot stop the stage.

The kernel enforces the limits. It denies memory, and it kills a worker that exceeds its CPU time, even inside one long call in
C such as a tower of powers. A worker gets a few items at a time and answers them one by one, so that its death costs only the
item it was judging. No limit is in seconds of the clock on the wall: a busy machine must not change a verdict.
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
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, BrokenExecutor, CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.connection import Connection

from tasks.run.work import chunks
from tasks.score import math_verdict
from tasks.score.math_verdict import Item, Verdict

TEXT_CAP = 10_000  # characters for the parser, from the end: answers are at the end, and the parser's regexes are quadratic
MEMORY_CAP = 2 << 30  # bytes of address space per worker
AT_ONCE = 16  # items per message; a message costs about as much as an easy verdict
STANDSTILL = 120.0  # seconds on the wall without any CPU time, after which a worker counts as suspended
PR_SET_PDEATHSIG = 1

_lock = threading.RLock()
_starting = threading.Lock()  # two threads must not change multiprocessing's list of children at once
_running: _Pool | None = None


@dataclass(frozen=True)
class Judge:
    """How to judge an item. Workers are sent the functions by name, so they must be importable."""

    verdict: Callable[[str, str], Verdict]  # called in a worker
    warm_up: Callable[[], None]  # called once per worker; its time belongs to no item
    shortcut: Callable[[str, str], Verdict | None]  # called here, without a limit; None leaves the item to a worker


MATHEMATICS = Judge(math_verdict.verdict, math_verdict.warm_up, math_verdict.shortcut)


def verify_all(items: Sequence[Item], timeout: float, workers: int, judge: Judge | None = None) -> list[Verdict]:
    """Verdicts of `judge` (default: MATHEMATICS) in the order of the items. Identical items are verified once.

    `timeout` is in CPU seconds per item, so that a verdict does not depend on how busy the machine is.
    """
    judge = judge or MATHEMATICS
    clipped = [(gold, text[-TEXT_CAP:]) for gold, text in items]
    verdicts = {item: judge.shortcut(*item) for item in clipped}
    hard = [item for item, verdict in verdicts.items() if verdict is None]
    if hard:
        with _lock:
            try:
                verdicts.update(zip(hard, _pool(workers).verify(hard, timeout, judge), strict=True))
            except BaseException:  # interrupted: queued items must not run before those of the next call
                _close()
                raise
    return [verdict for item in clipped if (verdict := verdicts[item])]


def _pool(workers: int) -> _Pool:
    """The pool. It is kept between calls, because a worker needs a second to start.

    A forked child process lacks the pool's threads, so it gets a pool of its own.
    """
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
    """A thread per worker process.

    PR_SET_PDEATHSIG kills a worker when the thread that started it ends. So workers are not started by a caller's thread,
    which may be short-lived.
    """

    def __init__(self, workers: int) -> None:
        self.process, self.workers, self.closed = os.getpid(), workers, False
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix="verify")
        self.by_thread: dict[int, _Worker] = {}  # thread id -> its worker process

    def verify(self, items: Sequence[Item], timeout: float, judge: Judge) -> list[Verdict]:
        batches = [items[rows.start : rows.stop] for rows in chunks(len(items), AT_ONCE)]
        futures = [self.threads.submit(self._verify, batch, timeout, judge) for batch in batches]
        while (progress := wait(futures, timeout=1.0, return_when=FIRST_EXCEPTION)).not_done:  # a second, to notice Ctrl-C
            for future in progress.done:
                future.result()  # raises if a worker cannot start
        return [verdict for future in futures for verdict in future.result()]

    def _verify(self, items: Sequence[Item], timeout: float, judge: Judge) -> list[Verdict]:
        verdicts: list[Verdict] = []
        died_at = -1
        while len(verdicts) < len(items):
            reached, last = self._worker().judge(items[len(verdicts) :], timeout, judge)
            verdicts += reached
            if len(verdicts) == len(items):
                break
            self._drop(threading.get_ident())
            if last is None and died_at == len(verdicts):  # a kill from outside would not hit the same item twice
                last = (None, "crashed", "its worker died twice")
            died_at = len(verdicts)
            verdicts += [last] if last else []
        return verdicts

    def _worker(self) -> _Worker:
        """This thread's worker, started if there is none.

        Raises:
            BrokenExecutor: workers cannot start.
        """
        me = threading.get_ident()
        for _ in range(2):  # it may be killed from outside while it starts
            if self.closed:
                raise CancelledError
            if me in self.by_thread:
                return self.by_thread[me]
            self.by_thread[me] = _Worker()
            if self.by_thread[me].ready():
                return self.by_thread[me]
            self._drop(me)
        raise BrokenExecutor("expected the processes that verify answers to start, they ended; see their errors on stderr")

    def _drop(self, thread: int) -> None:
        if worker := self.by_thread.pop(thread, None):
            worker.stop()

    def close(self) -> None:
        self.closed = True
        self.threads.shutdown(wait=False, cancel_futures=True)
        for wait_for_threads in (False, True):  # a thread may have been starting its worker
            self.threads.shutdown(wait=wait_for_threads)
            for thread in list(self.by_thread):
                self._drop(thread)


class _Worker:
    """One worker process and a pipe to it. Items are sent a few at a time, verdicts come back one by one."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's and Prefect's threads
        self.pipe, theirs = context.Pipe()
        work = (theirs, os.getpid(), _prepare)
        self.process = context.Process(target=_serve, args=work, daemon=True)
        with _starting:
            self.process.start()
        theirs.close()

    def ready(self) -> bool:
        """Wait until it can judge. False if it died before."""
        try:
            return bool(self.pipe.recv())
        except (EOFError, OSError):
            return False

    def judge(self, items: Sequence[Item], timeout: float, judge: Judge) -> tuple[list[Verdict], Verdict | None]:
        """The verdicts it reached, and the verdict on the item at which it stopped early: None if it did not, or if unknown."""
        reached: list[Verdict] = []
        try:
            self.pipe.send((items, timeout, judge))
            for _ in items:
                if not self._says_something():
                    return reached, (None, "timeout", "suspended")
                reached.append(self.pipe.recv())
        except (EOFError, OSError):
            self.process.join()
            return reached, (None, "timeout", None) if self.process.exitcode == -signal.SIGPROF else None
        return reached, None

    def _says_something(self) -> bool:
        """Wait for a verdict, or for the worker's end. False if the worker is suspended.

        The kernel ends a worker that exceeds its CPU time, so waiting ends. Only a suspended worker uses none. On a busy
        machine a worker may need minutes for its CPU seconds, so the time that passes on the wall says nothing.
        """
        used = -1.0
        while not self.pipe.poll(STANDSTILL):
            before, used = used, _cpu_time(self.process.pid)
            if used == before:
                return False
        return True

    def stop(self) -> None:
        with _starting:
            self.process.kill()
            self.process.join()
        self.pipe.close()


def _cpu_time(pid: int | None) -> float:
    """The CPU seconds that a process has used; -1 if it has ended.

    Linux numbers the clock of a process as clock_getcpuclockid(3) of the C library does.
    """
    try:
        return time.clock_gettime((~(pid or 0) << 3) | 2)
    except OSError:
        return -1.0


def _serve(pipe: Connection, parent: int, prepare: Callable[[int], None]) -> None:
    """The main function of a worker process. It ends when the parent closes the pipe."""
    prepare(parent)
    warm: set[Callable[[], None]] = set()
    with contextlib.suppress(EOFError):
        pipe.send(True)
        while True:
            items, timeout, judge = pipe.recv()
            if judge.warm_up not in warm:
                judge.warm_up()
                warm.add(judge.warm_up)
            for gold, text in items:
                pipe.send(_limited(judge.verdict, gold, text, timeout))


def _limited(verdict: Callable[[str, str], Verdict], gold: str, text: str, timeout: float) -> Verdict:
    """The verdict on one item. After `timeout` CPU seconds the kernel ends this process."""
    signal.setitimer(signal.ITIMER_PROF, timeout)  # the default action of SIGPROF ends the process
    try:
        return verdict(gold, text)
    except MemoryError:
        return None, "crashed", "out of memory"
    except Exception as error:
        return None, "crashed", type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _prepare(parent: int) -> None:
    """Runs once in every worker, before its first item."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the line above
            os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends its workers
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_CAP, MEMORY_CAP))
    warnings.simplefilter("ignore")  # sympy compiles the text: hostile text would fill stderr with SyntaxWarnings
    logging.disable(logging.CRITICAL)
