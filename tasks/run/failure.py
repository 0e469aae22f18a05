"""How an error gets from a stage's own process to the process that waits for it: complete, in a JSON file next to the job file.

Under `accelerate launch` each rank writes a file of its own. The rank that failed first has the cause; the others then fail
because the first one is gone.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data import errors
from data.errors import RatchetError, StageFailed
from data.redact import redacted
from data.store.store import write_atomic

EARLIER = "failures.jsonl"  # in scratch: the errors of earlier attempts, for the log.json of the artifact
LINES = 12  # lines of a process's output that are shown if it died without writing an error
# torch's summary of failed ranks: `rank : 1 (local_rank: 1)`, then `exitcode : -9 (pid: 77)`. The first to fail is last.
RANK_ENDED = re.compile(r"rank\s*: (\d+) \(local_rank: \d+\)\s+exitcode\s*: (-?\d+)")
LAUNCHER = "torch/distributed/elastic"  # is in each line of the launcher's log, which follows the output of the ranks
CONSEQUENCES = (signal.SIGTERM, signal.SIGABRT)  # signals that a rank gets because another one failed


def write(folder: Path, error: Exception) -> None:
    """Write the error of this process, or of this rank, to the file that the parent process reads."""
    rank = os.environ.get("RANK")
    fields = {
        "time": time.time(),
        "module": type(error).__module__,
        "type": type(error).__name__,
        "message": redacted(str(error)),
        "traceback": redacted("".join(traceback.format_exception(error))),
    }
    with contextlib.suppress(OSError):  # such as a full disk: the traceback on stderr must do then
        write_atomic(folder / f"error-{rank or 0}.json", json.dumps(fields))


def clear(folder: Path) -> None:
    """Delete the errors of an earlier attempt."""
    for path in folder.glob("error-*.json"):
        path.unlink()


def earlier(folder: Path) -> list[dict[str, Any]]:
    """The errors of the attempts before this one."""
    path = folder / EARLIER
    return list(_records(path)) if path.exists() else []


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file in scratch, one a line. A line that a full disk or a kill left incomplete is skipped."""
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and record.keys() >= {"time", "module", "type", "message"}:
                yield record


def error_of(stage: str, code: int, folder: Path, output: str) -> RatchetError:
    """The error of a stage whose process ended with exit code `code`.

    It is read from the error files in `folder`. If there are none, it is made from the exit code and the process's `output`.
    """
    ranks = [(f"the process of rank {rank}", int(code)) for rank, code in reversed(RANK_ENDED.findall(output))]
    ends = ranks or [("its process", code)]
    killed = [
        f"{process} was killed by {signal.Signals(-code).name}"
        for process, code in ends
        if code < 0 and -code not in CONSEQUENCES
    ]
    if ranks and killed:  # the other ranks only raised that this one is gone
        return StageFailed(f"{stage}: {killed[0]} (out of memory?)")
    first = _first(folder)
    if first is not None:
        return _as_raised(stage, first)
    if killed:
        return StageFailed(f"{stage}: {killed[0]} (out of memory?)")
    process, code = ends[0]
    end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return StageFailed(f"{stage}: {process} {end}{_last_lines(output)}")


def _last_lines(output: str) -> str:
    """The last lines that a stage printed. Of several ranks, these are the last lines before the launcher's own."""
    lines = [line for line in output.splitlines() if line.strip()]
    own = list(itertools.takewhile(lambda line: LAUNCHER not in line, lines))[-LINES:]
    return "; its last lines:\n" + "\n".join(own) if own else " and no output"


def _first(folder: Path) -> dict[str, Any] | None:
    """The error that was raised first, or None. It is moved from its file to those of earlier attempts."""
    errors_of_ranks = [record for path in folder.glob("error-*.json") for record in _records(path)]
    clear(folder)
    if not errors_of_ranks:
        return None
    first: dict[str, Any] = min(errors_of_ranks, key=lambda fields: fields["time"])
    with (folder / EARLIER).open("a") as file:
        file.write(json.dumps(first) + "\n")
    return first


def _as_raised(stage: str, fields: dict[str, Any]) -> RatchetError:
    """One of our own errors, with its type and message. Any other error becomes a StageFailed that names its type."""
    own = getattr(errors, fields["type"], None) if fields["module"] == errors.__name__ else None
    if isinstance(own, type) and issubclass(own, RatchetError):
        return own(fields["message"])
    return StageFailed(f"{stage}: {fields['type']}: {fields['message']}")
