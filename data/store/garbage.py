"""Garbage collection: artifacts that no campaign needs any more, their size, and their deletion."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.errors import CampaignError, DamagedArtifact
from data.store.campaign import Campaign, folders, names, used_keys
from data.store.store import Store


@dataclass(frozen=True)
class Garbage:
    """Folders of the store that can be deleted, as (key, stage, bytes). The quarantine is kept as evidence."""

    artifacts: list[tuple[str, str, int]]
    attempts: list[tuple[str, str, int]]
    quarantine: int  # bytes

    @property
    def size(self) -> int:
        return sum(size for _, _, size in (*self.artifacts, *self.attempts))


@contextlib.contextmanager
def at_rest(home: Path) -> Iterator[set[str]]:
    """Keys of all artifacts that campaigns of a home used. While this is held, none can run or start, or use the store.

    Raises:
        CampaignError: a campaign is running.
        DamagedCampaign: what a campaign used cannot be known.
        HomeError: another command uses the store.
    """
    for name in names(home):
        if Campaign.runs(home, name):
            raise CampaignError(f"campaign '{name}' is already running in another process; wait for it or stop it")
    with Store(home / "store").in_use(alone=True):
        yield {key for name in folders(home) for key in used_keys(home / "campaigns" / name)}


def live(store: Store, used: set[str]) -> set[str]:
    """Keys that campaigns need: the artifacts they used and the inputs of these, to compute them again if necessary."""
    needed: set[str] = set()
    waiting = list(used)
    while waiting:
        key = waiting.pop()
        if key in needed:
            continue
        needed.add(key)
        with contextlib.suppress(DamagedArtifact):  # no manifest, so no known inputs: it was deleted or is not computed yet
            waiting += [inner for inner in store.manifest(key)["input_keys"].values() if inner]
    return needed


def find(home: Path, used: set[str]) -> Garbage:
    """Artifacts and unfinished attempts that no campaign needs, of which `used` has the keys that they used."""
    store = Store(home / "store")
    keep = live(store, used)
    artifacts = [(key, _stage(store, key), _size(store.folder(key))) for key in store.keys() if key not in keep]
    unfinished = [path for path in sorted((store.root / "partial").iterdir()) if path.name not in keep]
    attempts = [(path.name, "unfinished attempt", _size(path)) for path in unfinished]
    return Garbage(artifacts, attempts, _size(store.root / "quarantine"))


def delete(home: Path, garbage: Garbage) -> None:
    """Delete it. Each folder is renamed first, so that a killed process leaves no half-deleted artifact in the store."""
    store = Store(home / "store")
    bin_ = store.root / "deleted"
    bin_.mkdir(exist_ok=True)
    folders = [store.folder(key) for key, _, _ in garbage.artifacts]
    folders += [store.scratch(key).parent for key, _, _ in garbage.attempts]
    for folder in folders:
        shutil.rmtree(bin_ / folder.name, ignore_errors=True)  # left by a deletion that was interrupted
        shutil.rmtree(folder.rename(bin_ / folder.name))
        for stamp in (store.root / "stamps").glob(f"{folder.name}.*"):
            stamp.unlink()
        (store.root / "locks" / f"{folder.name}.lock").unlink(missing_ok=True)
    shutil.rmtree(bin_)


def _stage(store: Store, key: str) -> str:
    try:
        return str(store.manifest(key)["job"]["stage"])
    except DamagedArtifact:
        return "damaged"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
