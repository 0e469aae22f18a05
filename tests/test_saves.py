from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.train.saves import NAME, NEEDED, newest_save, seal


def save(scratch: Path, step: int, sealed: bool = True) -> Path:
    """A trainer's save as it lies on disk; the bytes do not matter."""
    folder = scratch / f"checkpoint-{step}"
    folder.mkdir()
    for name in ("model.safetensors", "rng_state.pth", *NEEDED):
        (folder / name).write_text(f"{name} at step {step}, a few bytes of it")
    if sealed:
        seal(folder)
    return folder


def torn(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def unlink(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / name).write_text(text)

    return harm


def tear(name: str) -> Callable[[Path], None]:
    return lambda folder: torn(folder / name)


HARM: dict[str, Callable[[Path], None]] = {
    "torn model": tear("model.safetensors"),
    "missing model": unlink("model.safetensors"),
    "torn optimizer": tear("optimizer.pt"),
    "missing optimizer": unlink("optimizer.pt"),
    "missing scheduler": unlink("scheduler.pt"),
    "missing trainer state": unlink("trainer_state.json"),
    "torn trainer state": tear("trainer_state.json"),
    "torn manifest": tear(NAME),
    "missing manifest": unlink(NAME),
    "empty manifest": write(NAME, ""),
    "manifest of nothing": write(NAME, "{}"),
    "manifest of another kind": write(NAME, "[1]"),
    "extra file": lambda folder: (folder / "more.bin").touch(),
    "same size, other bytes": lambda folder: write("optimizer.pt", (folder / "optimizer.pt").read_text().swapcase())(folder),
}


def test_without_saves_there_is_nothing_to_resume(tmp_path: Path) -> None:
    # a first attempt starts at step 0; files that are no saves are left alone
    (tmp_path / "job.json").touch()
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_save(tmp_path) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-best", "job.json"]


def test_the_newest_sealed_save_is_chosen_by_step(tmp_path: Path) -> None:
    # step 100 is newer than step 20, whatever their names sort like; older saves stay
    for step in (20, 100, 3):
        save(tmp_path, step)
    assert newest_save(tmp_path) == tmp_path / "checkpoint-100"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("harm", HARM)
def test_a_broken_save_is_passed_over_and_removed(tmp_path: Path, harm: str) -> None:
    # one bad byte would resume to another model in silence; the trainer must not find the broken one either
    good, bad = save(tmp_path, 40), save(tmp_path, 80)
    HARM[harm](bad)
    assert newest_save(tmp_path) == good
    assert not bad.exists()
    assert newest_save(tmp_path) == good


def test_a_save_that_was_cut_short_does_not_count(tmp_path: Path) -> None:
    # the seal is the last thing a save gets: killed before it, the save is not one
    good = save(tmp_path, 40)
    for step in (80, 120):
        save(tmp_path, step, sealed=False)
    assert newest_save(tmp_path) == good
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-40"]


def test_where_every_save_is_broken_the_training_starts_anew(tmp_path: Path) -> None:
    # no half state is better than none
    for step, harm in enumerate(HARM.values(), 1):
        harm(save(tmp_path, step))
    assert newest_save(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NEEDED)
def test_a_save_sealed_without_its_optimizer_does_not_count(tmp_path: Path, name: str) -> None:
    # a whole manifest is not enough: a save without optimizer, schedule or state would resume to another result
    folder = save(tmp_path, 40, sealed=False)
    (folder / name).unlink()
    seal(folder)
    assert name not in json.loads((folder / NAME).read_text())
    assert newest_save(tmp_path) is None
