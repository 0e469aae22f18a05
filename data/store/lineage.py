"""Where an artifact comes from: the tree of what it was made of, back to prompts and files outside the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from data.errors import CampaignError, DamagedArtifact
from data.store.store import Store


@dataclass(frozen=True)
class Node:
    """One artifact, or with an empty key a file from outside the store, known by its digest."""

    name: str  # what it was to the one above: "checkpoint", "prompts", "score/exact_match"
    key: str
    digest: str
    stage: str
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    absent: str = ""
    made_of: tuple[Node, ...] = ()
    again: bool = False  # told in full further up

    def plain(self) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "name": self.name,
            "key": self.key,
            "digest": self.digest,
            "stage": self.stage,
            "settings": self.settings,
        }
        shown |= {"seed": self.seed, "absent": self.absent, "again": self.again}
        return shown | {"made_of": [node.plain() for node in self.made_of]}


def lineage(store: Store, key: str, name: str = "") -> Node:
    """The tree below an artifact. What it repeats is told once and then marked `again`.

    Raises:
        DamagedArtifact: the artifact has no manifest that holds.
    """
    return _node(store, key, name, set())


def _node(store: Store, key: str, name: str, told: set[str]) -> Node:
    manifest = store.manifest(key)
    job = manifest["job"]
    found = store.find(key)
    absent = found.absent if found else "gone"
    if key in told:
        return Node(name, key, manifest["digest"], job["stage"], {}, job["seed"], absent, again=True)
    told.add(key)
    inner = [_input(store, input_name, digest, manifest, told) for input_name, digest in job["inputs"].items()]
    return Node(name, key, manifest["digest"], job["stage"], job["settings"], job["seed"], absent, tuple(inner))


def _input(store: Store, name: str, digest: str, manifest: dict[str, Any], told: set[str]) -> Node:
    key = manifest["input_keys"].get(name)
    if key is None:
        return Node(name, "", digest, "from outside the store")
    try:
        return _node(store, key, name, told)
    except DamagedArtifact:
        return Node(name, key, digest, "gone", absent="gone")


def resolve(store: Store, start: str) -> str:
    """The key that begins with `start`, or whose digest does.

    Raises:
        CampaignError: none does, or several do.
    """
    known = store.keys()
    found = [key for key in known if key.startswith(start)]
    found = found or [key for key in known if _digest(store, key).startswith(start)]
    if len(found) != 1:
        what = f"{len(found)} artifacts begin so; give more of it" if found else "no artifact's key or digest begins so"
        raise CampaignError(f"'{start}': expected a campaign's name or an artifact's key or digest; {what}")
    return found[0]


def _digest(store: Store, key: str) -> str:
    try:
        return str(store.manifest(key)["digest"])
    except DamagedArtifact:
        return ""
