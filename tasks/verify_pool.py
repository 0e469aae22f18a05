"""math-verify in worker processes: hostile text costs its own time limit, never the stage.

An item is a (gold, text) pair; its verdict is the (value, status, detail) of a Score. The kernel keeps the limits: it
denies memory, and it kills a worker that exceeds its CPU time even inside one long call in C, which a tower of powers is.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import logging
import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, BrokenExecutor, CancelledError, Future, ThreadPoolExecutor, wait
from typing import Any

TEXT_CAP = 10_000  # characters handed to the parser, from the tail: answers stand at the end, and its regexes are quadratic
MEMORY_CAP = 2 << 30  # bytes of address space per worker
PR_SET_PDEATHSIG = 1
ANCHORS = ("$", "\\boxed", "\\(", "\\[")  # what math-verify takes LaTeX from
PROSE = re.compile(r"(-?[\d.,/]+%?|[A-Za-z]+)(\s+[A-Za-z]{2,}\.?)+")  # "72 dollars", "forty two"

Item = tuple[str, str]
Verdict = tuple[float | None, str, str | None]

_lock = threading.RLock()
_running: _Pool | None = None


def verify_all(items: Sequence[Item], timeout: float, workers: int) -> list[Verdict]:
    """Verdicts in the order of the items; identical items are verified once. `timeout` is in CPU seconds per item.

    Time is CPU time because a verdict must not depend on how busy the machine is.
    """
    clipped = [(gold, text[-TEXT_CAP:]) for gold, text in items]
    unique = list(dict.fromkeys(clipped))
    with _lock:
        try:
            verdicts = dict(zip(unique, _pool(workers).verify(unique, timeout), strict=True))
        except BaseException:  # interrupted: what is still queued must not run before the next call's items
            _close()
            raise
    return [verdicts[item] for item in clipped]


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
    """A thread per worker, each with a pebble pool of one process.

    One pebble pool of many processes passes items through a lock they share: a worker killed while it holds it (by the OOM
    killer, say) stops the others for a minute. And PR_SET_PDEATHSIG fires when the THREAD that started a worker ends, so
    workers must not be started by a caller's thread, which may be short-lived.
    """

    def __init__(self, workers: int) -> None:
        self.process, self.workers, self.closed = os.getpid(), workers, False
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix="verify")
        self.ones: dict[int, Any] = {}  # thread id -> its pool of one

    def verify(self, items: Sequence[Item], timeout: float) -> list[Verdict]:
        futures = [self.threads.submit(self._verify, item, timeout) for item in items]
        while (waited := wait(futures, timeout=1.0, return_when=FIRST_EXCEPTION)).not_done:  # a second, to notice Ctrl-C
            for future in waited.done:
                future.result()  # raises where a worker cannot start
        return [future.result() for future in futures]

    def _verify(self, item: Item, timeout: float) -> Verdict:
        for _ in range(2):  # a worker that is killed from outside blames no item
            started = self._start()
            if started and (verdict := self._ask(self.ones[threading.get_ident()], item, timeout)):
                return verdict
            self._drop(threading.get_ident())
        if not started:
            raise BrokenExecutor("the processes that verify answers cannot start; their errors are on stderr")
        return None, "crashed", "its worker died twice"

    def _start(self) -> bool:
        """See that this thread has a worker."""
        from pebble import ProcessPool

        if self.closed:
            raise CancelledError
        me = threading.get_ident()
        if me in self.ones:
            return True
        context: Any = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's and Prefect's threads
        one = self.ones[me] = ProcessPool(1, initializer=_prepare, initargs=(self.process,), context=context)
        try:
            return _result(one, one.schedule(os.getpid)) is not None
        except (BrokenExecutor, RuntimeError, OSError):  # killed, or it died of itself
            return False

    def _ask(self, one: Any, item: Item, timeout: float) -> Verdict | None:
        """The verdict, or None where the worker died before there was one."""
        from pebble import ProcessExpired

        try:  # The kernel keeps the limit; the wall clock is for a stopped machine.
            verdict: Verdict | None = _result(one, one.schedule(_judge, args=(*item, timeout), timeout=4 * timeout + 20))
            return verdict
        except ProcessExpired as error:
            return (None, "timeout", None) if error.exitcode == -signal.SIGPROF else None
        except TimeoutError:
            return None, "timeout", "wall clock"
        except (BrokenExecutor, RuntimeError):
            return None

    def _drop(self, thread: int) -> None:
        if one := self.ones.pop(thread, None):
            one.stop()
            one.join()

    def close(self) -> None:
        self.closed = True
        self.threads.shutdown(wait=False, cancel_futures=True)
        for wait_for_threads in (False, True):  # a thread may have been starting its worker
            self.threads.shutdown(wait=wait_for_threads)
            for thread in list(self.ones):
                self._drop(thread)


def _result(one: Any, future: Future[Any]) -> Any:
    """The result, or None where the pool broke so that it forgot what it was given last."""
    while not future.done() and one.active:
        wait([future], timeout=1.0)
    return future.result() if future.done() else None


def _prepare(parent: int) -> None:
    """Runs once in every worker, before its first item."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_CAP, MEMORY_CAP))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # pebble's handler runs in the interpreter, which a power in C never enters
    warnings.simplefilter("ignore")  # sympy compiles what it reads: hostile text would fill stderr with SyntaxWarnings
    logging.disable(logging.CRITICAL)
    import math_verify

    math_verify.verify(
        math_verify.parse("$x$", parsing_timeout=0), [], timeout_seconds=0
    )  # what it loads late is no item's time


def _judge(gold: str, text: str, timeout: float) -> Verdict:
    signal.setitimer(signal.ITIMER_PROF, timeout)  # SIGPROF keeps its default action: the kernel ends the process
    try:
        return _verdict(gold, text)
    except MemoryError:
        return None, "crashed", "out of memory"
    except Exception as error:
        return None, "crashed", type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _verdict(gold: str, text: str) -> Verdict:
    from math_verify import parse, verify
    from sympy.core import random

    random.seed(0)  # sympy tests equality at random points: the same item must always get the same verdict
    golds = _parse_gold(gold)
    if not golds:
        return None, "gold_parse_failure", None
    found = parse(text, parsing_timeout=0)  # 0: no signal.alarm of its own
    if not found:
        return 0.0, "no_answer_found", None
    right = verify(golds, found, timeout_seconds=0)
    read = found[-1]  # the string it was read from, as a rule; printing an expression could take forever
    return float(right), "ok", printable(read) if isinstance(read, str) else None


@functools.lru_cache(maxsize=256)  # the samples of a prompt share their gold
def _parse_gold(gold: str) -> list[Any]:
    """Gold answers are bare ("72", "\\frac{3}{4}", "x+1"): read as LaTeX, else as plain text.

    Read plainly, "3\\sqrt{13}" is 3; LaTeX first lets all 500 golds of MATH-500 verify against their solutions. Prose is read
    plainly only, because LaTeX reads "forty two" as a product of letters.
    """
    from math_verify import parse

    readings = [gold] if PROSE.fullmatch(gold.strip()) else [f"${gold}$", gold]
    if any(anchor in gold for anchor in ANCHORS):
        readings.reverse()
    return next((found for text in readings if (found := parse(text, parsing_timeout=0))), [])


def printable(text: str) -> str:
    """The start of a text, fit for a table: Parquet refuses lone surrogates."""
    return text[:80].encode("utf-8", "backslashreplace").decode()
