"""How an error crosses from a stage's own process to the process that waits for it: whole, in a JSON file beside the job file.

Under `accelerate launch` each rank writes a file of its own. The rank that failed first tells the cause; the others then fail
because it is gone.
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
from pathlib import Path
from typing import Any

from data import errors
from data.errors import RatchetError, StageFailed
from data.store.store import write_atomic

KEPT = "failures.jsonl"  # in scratch: what earlier attempts failed of, for the log.json of the artifact
LINES = 12  # of a process's output, where it died without a word of its own
# torch's summary of failed ranks, `rank : 1 (local_rank: 1)` and below it `exitcode : -9 (pid: 77)`; the first to fail is last
RANK_ENDED = re.compile(r"rank\s*: (\d+) \(local_rank: \d+\)\s+exitcode\s*: (-?\d+)")
LAUNCHER = "torch/distributed/elastic"  # in each line of the launcher's log, which follows the output of the ranks
FOLLOWS = (signal.SIGTERM, signal.SIGABRT)  # signals that a rank gets because another one failed


def write(folder: Path, error: Exception) -> None:
    """Leave the error of this process, or of this rank, where the parent looks."""
    rank = os.environ.get("RANK")
    fields = {
        "time": time.time(),
        "module": type(error).__module__,
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
    with contextlib.suppress(OSError):  # a full disk, say: the traceback on stderr is all there is then
        write_atomic(folder / f"error-{rank or 0}.json", json.dumps(fields))


def clear(folder: Path) -> None:
    for path in folder.glob("error-*.json"):
        path.unlink()


def earlier(folder: Path) -> list[dict[str, Any]]:
    """What the attempts before this one failed of."""
    path = folder / KEPT
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def error_of(stage: str, code: int, folder: Path, output: str) -> RatchetError:
    """The error of a stage whose process ended with `code`, from what it left in `folder` or, without that, its `output`."""
    ranks = [(f"the process of rank {rank}", int(code)) for rank, code in reversed(RANK_ENDED.findall(output))]
    ends = ranks or [("its process", code)]
    killed = [f"{who} was killed by {signal.Signals(-code).name}" for who, code in ends if code < 0 and -code not in FOLLOWS]
    if ranks and killed:  # what other ranks raised is that this one is gone
        return StageFailed(f"{stage}: {killed[0]} (out of memory?)")
    first = _first(folder)
    if first is not None:
        return _as_raised(stage, first)
    if killed:
        return StageFailed(f"{stage}: {killed[0]} (out of memory?)")
    who, code = ends[0]
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return StageFailed(f"{stage}: {who} {how}{_last_lines(output)}")


def _last_lines(output: str) -> str:
    """The end of what a stage printed; of several ranks, what they printed before the launcher spoke."""
    lines = [line for line in output.splitlines() if line.strip()]
    own = list(itertools.takewhile(lambda line: LAUNCHER not in line, lines))[-LINES:]
    return "; its last lines:\n" + "\n".join(own) if own else " and no output"


def _first(folder: Path) -> dict[str, Any] | None:
    """The error that came first, moved from its file to those that are kept."""
    found = [json.loads(path.read_text()) for path in folder.glob("error-*.json")]
    clear(folder)
    if not found:
        return None
    first: dict[str, Any] = min(found, key=lambda fields: fields["time"])
    with (folder / KEPT).open("a") as file:
        file.write(json.dumps(first) + "\n")
    return first


def _as_raised(stage: str, fields: dict[str, Any]) -> RatchetError:
    """Our own errors as they would have been raised in this process; any other names its type."""
    known = getattr(errors, fields["type"], None) if fields["module"] == errors.__name__ else None
    if isinstance(known, type) and issubclass(known, RatchetError):
        return known(fields["message"])
    return StageFailed(f"{stage}: {fields['type']}: {fields['message']}")
