"""File locks: a file system that has none, or grants every one, is refused with one line."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data.errors import HomeError
from data.store import garbage
from data.store.campaign import Campaign
from data.store.locks import check_locks, locked
from data.store.store import Store
from tests.micro import micro


def granted_to_all(handle: int, how: int) -> None:
    """flock on a file system that grants every lock, as some FUSE ones and NFS without a lock server do."""


def fails(number: int) -> Callable[[int, int], None]:
    def flock(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    return flock


def test_locks_that_work_are_let_through_and_leave_nothing(tmp_path: Path) -> None:
    # Claim: on a file system with locks the measurement passes and leaves no file.
    check_locks(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_locks_that_two_processes_get_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: it is measured, by another process: where this one "holds" a lock that the other gets too, that is said.
    monkeypatch.setattr(fcntl, "flock", granted_to_all)
    with pytest.raises(HomeError, match=r"file locks \(flock\) at .*two processes both got the exclusive lock.*--home"):
        check_locks(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_one_line(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: whatever lock is wanted first, the message names the folder and what to do, also where waiting was asked for.
    monkeypatch.setattr(fcntl, "flock", fails(number))
    for wait in (True, False):
        with pytest.raises(HomeError, match=rf"flock\) at {tmp_path}, found: .*--home"), locked(tmp_path / "x", wait=wait):
            pass


def test_nothing_runs_and_nothing_is_deleted_without_locks(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: campaigns and gc are refused before they touch the store.
    campaign = Campaign.start(home, "c", micro())
    key = "a" * 64
    (campaign.store.folder(key) / "payload").mkdir(parents=True)
    monkeypatch.setattr(fcntl, "flock", granted_to_all)
    with pytest.raises(HomeError, match="both got the exclusive lock"), campaign.running():
        pytest.fail("it ran")
    with pytest.raises(HomeError, match="both got the exclusive lock"), garbage.at_rest(home):
        pytest.fail("it deletes")
    assert Store(home / "store").folder(key).exists()


def test_an_error_of_what_the_lock_guards_is_not_taken_for_a_held_lock(home: Path) -> None:
    # Claim: a process that cannot be started (EAGAIN, the number of a held lock) does not become "is already running".
    campaign = Campaign.start(home, "c", micro())
    with pytest.raises(BlockingIOError), campaign.running():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
