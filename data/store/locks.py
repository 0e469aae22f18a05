"""File locks. The kernel frees them when a process dies, so none is left behind. Where they do not work, that is said."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from data.errors import HomeError

UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
# Another process: on NFS a lock belongs to a process, so a second attempt of this one would succeed.
TRY = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)"


class LockHeld(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None, wait: bool = True, shared: bool = False) -> Iterator[None]:
    """Hold a flock, exclusive or `shared`. `waiting` is called once if another process holds it.

    Raises:
        LockHeld: another process holds it, and `wait` is False.
        HomeError: the file system has no such locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _take(handle, kind | fcntl.LOCK_NB, path):
            if not wait:
                raise LockHeld(str(path))
            waiting()
            _take(handle, kind, path)
        yield
    finally:
        os.close(handle)


def _take(handle: int, how: int, path: Path) -> bool:
    try:
        fcntl.flock(handle, how)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in UNSUPPORTED:
            raise _without_locks(path, error.strerror or str(error)) from error
        raise


def check_locks(folder: Path) -> None:
    """Measure that a lock in `folder` keeps another process out. Some file systems grant every lock.

    It cannot be measured whether a lock reaches another machine, so one home is for one machine.

    Raises:
        HomeError: it does not.
    """
    path = folder / f".locks-{os.getpid()}"
    try:
        with locked(path):
            second = subprocess.run([sys.executable, "-I", "-S", "-c", TRY, str(path)], capture_output=True, check=False)
    finally:
        path.unlink(missing_ok=True)
    if second.returncode == 0:
        raise _without_locks(path, "two processes both got the exclusive lock of one file")


def _without_locks(path: Path, found: str) -> HomeError:
    return HomeError(
        f"expected a file system with file locks (flock) at {path.parent}, found: {found}. Without them two commands could "
        "damage each other's files; pass a --home on a local disk, or mount this one with locks"
    )
