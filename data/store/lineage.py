"""Where an artifact comes from: the tree of its inputs, back to prompts and files outside the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from data.errors import CampaignError, DamagedArtifact
from data.store.store import Store


@dataclass(frozen=True)
class Node:
    """One artifact; or, with an empty key, a file from outside the store, which only its digest identifies."""

    name: str  # the name of this input in the stage above: "checkpoint", "prompts", "score/exact_match"
    key: str
    digest: str
    stage: str
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    absent: str = ""
    made_of: tuple[Node, ...] = ()
    again: bool = False  # its inputs are listed where it appears first

    def plain(self) -> dict[str, Any]:
        """The node and all below it as JSON holds them."""
        values = {name: value for name, value in self.__dict__.items() if name != "made_of"}
        return {**values, "made_of": [node.plain() for node in self.made_of]}


def lineage(store: Store, key: str, name: str = "") -> Node:
    """The tree of an artifact's inputs. An artifact that appears several times is listed in full once, then marked `again`.

    Raises:
        DamagedArtifact: the artifact has no valid manifest.
    """
    return _node(store, key, name, set())


def _node(store: Store, key: str, name: str, listed: set[str]) -> Node:
    manifest = store.manifest(key)
    job = manifest["job"]
    artifact = store.find(key)
    absent = artifact.absent if artifact else "gone"
    if key in listed:
        return Node(name, key, manifest["digest"], job["stage"], {}, job["seed"], absent, again=True)
    listed.add(key)
    inputs = [_input(store, input_name, digest, manifest, listed) for input_name, digest in job["inputs"].items()]
    return Node(name, key, manifest["digest"], job["stage"], job["settings"], job["seed"], absent, tuple(inputs))


def _input(store: Store, name: str, digest: str, manifest: dict[str, Any], listed: set[str]) -> Node:
    key = manifest["input_keys"].get(name)
    if key is None:
        return Node(name, "", digest, "from outside the store")
    try:
        return _node(store, key, name, listed)
    except DamagedArtifact:
        return Node(name, key, digest, "gone", absent="gone")


def resolve(store: Store, start: str) -> str:
    """The one artifact whose key, or else whose digest, begins with `start`.

    Raises:
        CampaignError: there is none, or there are several.
    """
    keys = store.keys()
    matching = [key for key in keys if key.startswith(start)]
    matching = matching or [key for key in keys if _digest(store, key).startswith(start)]
    if len(matching) != 1:
        count = f"{len(matching)} artifacts begin so; give more of it" if matching else "no artifact's key or digest begins so"
        raise CampaignError(f"'{start}': expected a campaign's name or an artifact's key or digest; {count}")
    return matching[0]


def _digest(store: Store, key: str) -> str:
    try:
        return str(store.manifest(key)["digest"])
    except DamagedArtifact:
        return ""
