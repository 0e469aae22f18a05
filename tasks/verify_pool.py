"""math-verify in worker processes: hostile text costs its own time limit, never the stage.

An item is a (gold, text) pair; its verdict is the (value, status, detail) of a Score. A worker that exceeds its CPU time or
its memory is killed by the kernel, which also stops what never returns to the interpreter (a tower of powers is one call in C).
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
from concurrent.futures import BrokenExecutor, Future, wait
from typing import Any

TEXT_CAP = 10_000  # characters handed to the parser, from the tail: answers stand at the end, and its regexes are quadratic
MEMORY_CAP = 2 << 30  # bytes of address space per worker
PR_SET_PDEATHSIG = 1
ANCHORS = ("$", "\\boxed", "\\(", "\\[")  # what math-verify takes LaTeX from
PROSE = re.compile(r"(-?[\d.,/]+%?|[A-Za-z]+)(\s+[A-Za-z]{2,}\.?)+")  # "72 dollars", "forty two"

Item = tuple[str, str]
Verdict = tuple[float | None, str, str | None]

_lock = threading.RLock()
_running: tuple[Any, threading.Event, tuple[int, int]] | None = None  # pool, its owner's release, (process, workers)


def verify_all(items: Sequence[Item], timeout: float, workers: int) -> list[Verdict]:
    """Verdicts in the order of the items; identical items are verified once. `timeout` is in CPU seconds per item.

    Time is CPU time because a verdict must not depend on how busy the machine is.
    """
    clipped = [(gold, text[-TEXT_CAP:]) for gold, text in items]
    unique = list(dict.fromkeys(clipped))
    with _lock:
        try:
            verdicts = _run(unique, timeout, workers)
        except BaseException:  # interrupted: what is still queued must not run before the next call's items
            _close()
            raise
    return [verdicts[item] for item in clipped]


def _run(items: Sequence[Item], timeout: float, workers: int) -> dict[Item, Verdict]:
    pool = _pool(workers)
    futures = {item: _schedule(pool, item, timeout) for item in items}
    verdicts = {item: _outcome(pool, future) for item, future in futures.items()}
    for item in [item for item, verdict in verdicts.items() if verdict is None]:
        pool = _pool(workers)  # once more, alone: a worker killed from outside blames no item, a guilty item blames no other
        verdicts[item] = _outcome(pool, _schedule(pool, item, timeout))
    return {item: verdict or (None, "crashed", "its worker died twice") for item, verdict in verdicts.items()}


def _schedule(pool: Any, item: Item, timeout: float) -> Future[Verdict] | None:
    try:  # The kernel keeps the limit; the wall clock is for a worker whose death pebble did not see, or a stopped machine.
        future: Future[Verdict] = pool.schedule(_judge, args=(*item, timeout), timeout=4 * timeout + 20)
        return future
    except RuntimeError:  # the pool is broken
        return None


def _outcome(pool: Any, future: Future[Verdict] | None) -> Verdict | None:
    """The verdict, or None where a worker or the whole pool died before there was one."""
    from pebble import ProcessExpired

    while future and not future.done() and pool.active:  # a pool that breaks forgets what it has not yet handed to a worker
        wait([future], timeout=1.0)
    if future is None or not future.done():
        return None
    try:
        return future.result()
    except TimeoutError:
        return None, "timeout", "wall clock"
    except ProcessExpired as error:
        return (None, "timeout", None) if error.exitcode == -signal.SIGPROF else None
    except BrokenExecutor:
        return None


def _pool(workers: int) -> Any:
    """One pool per process and worker count, kept between calls: starting a worker costs a second."""
    global _running
    wanted = (os.getpid(), workers)
    if _running and _running[2][0] != os.getpid():
        _running = None  # inherited through a fork: its threads and workers belong to the parent
    if _running and (_running[2] != wanted or not _running[0].active):  # pebble gives up a pool whose idle worker was killed
        _close()
    if not _running:
        started: Future[Any] = Future()
        closing = threading.Event()
        threading.Thread(target=_own, args=(workers, started, closing), name="verify-pool", daemon=True).start()
        _running = (started.result(), closing, wanted)
        atexit.register(_close)
    return _running[0]


def _own(workers: int, started: Future[Any], closing: threading.Event) -> None:
    """Start the workers, then stay: PR_SET_PDEATHSIG fires when the THREAD that started a worker ends, not its process."""
    try:
        from pebble import ProcessPool

        context: Any = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's and Prefect's threads
        pool = ProcessPool(max_workers=workers, initializer=_prepare, initargs=(os.getpid(),), context=context)
        assert pool.active  # asking starts the workers, in this thread
        started.set_result(pool)
    except BaseException as error:
        started.set_exception(error)
        return
    closing.wait()


def _close() -> None:
    """End the workers; the next call starts new ones."""
    global _running
    with _lock:
        if not _running:
            return
        pool, closing, (pid, _) = _running
        _running = None
        atexit.unregister(_close)
        if pid == os.getpid():
            pool.stop()
            pool.join()
            closing.set()


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
        math_verify.parse("$x$", parsing_timeout=0), math_verify.parse("$x$", parsing_timeout=0), timeout_seconds=0
    )


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
