"""What no campaign refers to any more, how much room it takes, and how to be rid of it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.errors import CampaignError, DamagedArtifact
from data.store.campaign import Campaign, names
from data.store.store import Store


@dataclass(frozen=True)
class Garbage:
    """Folders of the store that can go: (key, what it is, bytes). The quarantine stays: it is evidence."""

    artifacts: list[tuple[str, str, int]]
    attempts: list[tuple[str, str, int]]
    quarantine: int  # bytes

    @property
    def size(self) -> int:
        return sum(size for _, _, size in (*self.artifacts, *self.attempts))


@contextlib.contextmanager
def at_rest(home: Path) -> Iterator[list[Campaign]]:
    """All campaigns of a home, and nobody uses its store while this is held: neither they, nor one that begins now.

    Raises:
        CampaignError: a campaign is running.
        HomeError: something else uses the store.
    """
    for name in names(home):
        if Campaign.runs(home, name):
            raise CampaignError(f"campaign '{name}' is already running in another process; wait for it or stop it")
    with Store(home / "store").in_use(alone=True):
        yield [Campaign.open(home, name) for name in names(home)]


def live(store: Store, campaigns: list[Campaign]) -> set[str]:
    """Keys that a campaign stands on: what it used, and what that was made of, since it may have to be made again."""
    found: set[str] = set()
    waiting = [key for campaign in campaigns for key in campaign.used()]
    while waiting:
        key = waiting.pop()
        if key in found:
            continue
        found.add(key)
        with contextlib.suppress(DamagedArtifact):  # no manifest, no inputs: it is evicted from history, or not made yet
            waiting += [inner for inner in store.manifest(key)["input_keys"].values() if inner]
    return found


def find(home: Path, campaigns: list[Campaign]) -> Garbage:
    store = Store(home / "store")
    keep = live(store, campaigns)
    artifacts = [(key, _stage(store, key), _size(store.folder(key))) for key in store.keys() if key not in keep]
    left = [path for path in sorted((store.root / "partial").iterdir()) if path.name not in keep]
    attempts = [(path.name, "unfinished attempt", _size(path)) for path in left]
    return Garbage(artifacts, attempts, _size(store.root / "quarantine"))


def delete(home: Path, garbage: Garbage) -> None:
    """Remove it. Each folder is renamed out of the way first, so that a kill leaves no half of an artifact in its place."""
    store = Store(home / "store")
    bin_ = store.root / "deleted"
    bin_.mkdir(exist_ok=True)
    folders = [store.folder(key) for key, _, _ in garbage.artifacts]
    folders += [store.scratch(key).parent for key, _, _ in garbage.attempts]
    for folder in folders:
        shutil.rmtree(bin_ / folder.name, ignore_errors=True)  # of a deletion that was cut short
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
