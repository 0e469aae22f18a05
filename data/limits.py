"""What ran out: disk, memory, open files, processes, or the size that a file may have; and what the system refuses.

Libraries hide the system's errors. safetensors, torch and SQLite raise types of their own that only quote the system's words,
and others chain them. So an error is recognised by its number, by its words, and by what caused it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path

from data.errors import HomeError, LimitReached, RatchetError

_BY_NUMBER = {
    errno.ENOSPC: "disk",
    errno.EDQUOT: "disk",
    errno.EFBIG: "file size",
    errno.EMFILE: "open files",
    errno.ENFILE: "open files",
    errno.ENOMEM: "memory",
    errno.EAGAIN: "processes",
}
_BY_WORDS = {  # "os error 28" is how libraries in Rust quote the system
    "disk": r"no space left|os error (28|122)\b|quota exceeded|disk is full|failed writing|unexpected pos|iostream error",
    "file size": r"file too large|os error 27\b",
    "open files": r"too many open files|os error 24\b",
    "memory": r"out of memory|(can't|cannot) allocate memory|os error 12\b|not enough memory|bad_alloc|failed to map segment",
    "processes": r"can't start new thread|os error 11\b",
    "temporary folder": r"no usable temporary directory",
}
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
_REMEDY = {
    "file size": "raise the limit (`ulimit -f`)",
    "open files": "raise the limit (`ulimit -n`)",
    "processes": "end other programs of yours, or raise the limit (`ulimit -u`)",
    "memory": "end other programs, raise the limit (`ulimit -v`), or set a smaller generate.batch or train.batch",
}


def ran_out(error: BaseException) -> str | None:
    """What ran out, one of the names above; None if the error is of another kind.

    torch's words for a disk that is full while it writes are "failed writing", "unexpected pos" and "iostream error".
    """
    return next((what for one in _chain(error) if (what := _of_one(one))), None)


def exhausted(error: BaseException, where: str, root: Path | None = None) -> RatchetError | None:
    """The error of ours that says what ran out and what to do; None if the error is of another kind, or ours already.

    Args:
        where: what was at work, such as the stage.
        root: a folder on the disk in question, if it is known.
    """
    what = None if isinstance(error, RatchetError) else ran_out(error)
    if what is None:
        return None
    if what == "disk":
        place = root or getattr(error, "filename", None) or "the disk"
        return HomeError(f"{where}: no space left on {place}; free some, then run the same command again")
    if what == "temporary folder":
        return HomeError(f"{where}: expected a temporary folder to write to, found none; free some space, or set TMPDIR")
    found = (" ".join(str(error).split()) or type(error).__name__)[:200]
    return LimitReached(
        f"{where}: expected enough {what}, found its limit reached ({found}); {_REMEDY[what]}, then run the same command again"
    )


def refused(error: BaseException) -> HomeError | None:
    """The error of ours for a file that the system does not let us read or write; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in _REFUSED or not error.filename:
        return None
    return HomeError(
        f"expected to read and write {error.filename}, found: {error.strerror}; correct its permissions, or pass another --home"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is not None and not any(one is other for other in seen):
            seen.append(one)
            waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
            yield one


def _of_one(error: BaseException) -> str | None:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        return "memory"
    if isinstance(error, OSError) and error.errno in _BY_NUMBER:
        return _BY_NUMBER[error.errno]
    text = str(error).lower()
    return next((what for what, words in _BY_WORDS.items() if re.search(words, text)), None)
