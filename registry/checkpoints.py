"""Checkpoints in MLflow's model registry: versions by reference, the aliases `champion` and `head`, and the way back.

A server refuses a local path as a version's source, so a version's source is `checkpoint/` among its run's artifacts, which
holds only `pointer.json`: the place, key and digest of the checkpoint in the store.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import CampaignError, DamagedArtifact, StageFailed
from data.store.campaign import Campaign, Ref, Round
from registry.client import known_id, memory
from registry.payload import pointer

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ALIASES = ("champion", "head")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint found through MLflow: its folder in the store, checked against its digest."""

    path: Path
    digest: str
    key: str
    model: str  # registered model
    version: str
    round: int  # the round that made it


def model_name(client: MlflowClient, identity: str) -> str | None:
    """The campaign's registered model: found by id, since on a shared server a namesake may have taken the short name first."""
    found = client.search_registered_models(filter_string=f"tags.`ratchet.campaign_id` = '{identity}'", max_results=1)
    return str(found[0].name) if found else None


def ensure_model(client: MlflowClient, campaign: Campaign, identity: str) -> str:
    """The campaign's registered model, created where it is missing."""
    from mlflow import MlflowException

    known = model_name(client, identity)
    if known:
        return known
    tags = {"ratchet.campaign": campaign.name, "ratchet.campaign_id": identity}
    note = f"Checkpoints of the campaign '{campaign.name}', by reference: each version names a folder of the store."
    name = f"ratchet-{campaign.name}"
    try:
        client.create_registered_model(name, tags, note)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        name = f"{name}-{identity[:8]}"
        client.create_registered_model(name, tags, note)
    return name


def register(client: MlflowClient, campaign: Campaign, finished: Round, model: str, run_id: str) -> None:
    """Give the round's checkpoint a version, unless one has this digest already: a round that did not train adds none."""
    if _version(client, model, finished.checkpoint) is None:
        place = pointer(campaign, finished)
        tags = {f"ratchet.{name}": value for name, value in place.items()}
        note = f"Round {finished.round}: {place['path']}"
        client.create_model_version(model, f"runs:/{run_id}/checkpoint", run_id, tags, description=note)


def set_aliases(client: MlflowClient, finished: Round, model: str) -> None:
    """Move `champion` and `head` to the versions that the round names."""
    now = client.get_registered_model(model).aliases
    for alias in ALIASES:
        version = _version(client, model, getattr(finished, alias))
        if version is not None and now.get(alias) != version.version:
            client.set_registered_model_alias(model, alias, version.version)


def _version(client: MlflowClient, model: str, checkpoint: Ref) -> ModelVersion | None:
    found = client.search_model_versions(f"name = '{model}' and tags.`ratchet.digest` = '{checkpoint.digest}'")
    return min(found, key=lambda version: int(version.version)) if found else None


# -- the way back -------------------------------------------------------------------------------------------------------
def resolve(home: Path, name: str, alias: str = "champion") -> Checkpoint:
    """The checkpoint that `alias` of a campaign's registered model points to.

    Raises:
        CampaignError: no such campaign, or nothing of it is in MLflow, or no such alias.
        DamagedArtifact: version, pointer and store do not name the same digest.
        StageFailed: the store holds only the checkpoint's manifest (it was evicted), or not even that.
        MemoryUnreachable: MLflow is away.
    """
    campaign = Campaign.open(home, name)
    with memory(home) as client:
        version = _by_alias(client, campaign, alias)
        place = _read_pointer(client, version)
    told, found = version.tags.get("ratchet.digest", "none"), place["digest"]
    if told != found:
        raise DamagedArtifact(
            f"{version.name} version {version.version}: its tag says digest {told[:12]}, its pointer {found[:12]}; "
            "one of them was edited in MLflow, so neither is trusted"
        )
    path = _in_store(campaign, Ref(key=place["key"], digest=found))
    return Checkpoint(path, found, place["key"], version.name, str(version.version), int(place["round"]))


def _by_alias(client: MlflowClient, campaign: Campaign, alias: str) -> ModelVersion:
    model = model_name(client, known_id(campaign))
    if model is None:
        raise CampaignError(
            f"campaign '{campaign.name}' has no registered model in {client.tracking_uri}; run it again to deliver it"
        )
    aliases = client.get_registered_model(model).aliases
    if alias not in aliases:
        raise CampaignError(f"{model} has no alias '{alias}': expected one of {', '.join(sorted(aliases)) or '(none yet)'}")
    return client.get_model_version(model, aliases[alias])


def _read_pointer(client: MlflowClient, version: ModelVersion) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(str(version.run_id), "checkpoint/pointer.json", folder)
        text = Path(path).read_text()
    try:
        place = json.loads(text)
        return {name: str(place[name]) for name in ("round", "key", "digest")}
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedArtifact(
            f"{version.name} version {version.version}: its pointer.json was edited in MLflow: {error!r}"
        ) from error


def _in_store(campaign: Campaign, checkpoint: Ref) -> Path:
    short, found = checkpoint.key[:12], campaign.store.find(checkpoint.key)
    if found is None:
        raise StageFailed(f"checkpoint {short} is not in {campaign.store.root}; run the campaign again to make it anew")
    if found.digest != checkpoint.digest:
        theirs, ours = checkpoint.digest[:12], found.digest[:12]
        raise DamagedArtifact(f"checkpoint {short}: MLflow says digest {theirs}, the store's manifest says {ours}")
    if found.absent:
        raise StageFailed(
            f"checkpoint {short} is {found.absent}, only its manifest is left; run the campaign again to make it anew"
        )
    return found.path
