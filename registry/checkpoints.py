"""Checkpoints in MLflow's model registry: versions by reference, the aliases `champion` and `head`, and how to load them.

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
from data.store.campaign import Campaign, Ref, Round, checkpoints_at_end
from registry.client import known_id, mlflow_client
from registry.payload import pointer
from registry.projection import accuracy_in_words

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ALIASES = ("champion", "head")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that MLflow names: its folder in the store, checked against its digest."""

    path: Path
    digest: str
    key: str
    model: str  # registered model
    version: str
    round: int  # the round that trained it


def model_name(client: MlflowClient, identity: str) -> str | None:
    """Name of the campaign's registered model. It is found by id, since a shared server can have campaigns of one name."""
    models = client.search_registered_models(filter_string=f"tags.`ratchet.campaign_id` = '{identity}'", max_results=1)
    return str(models[0].name) if models else None


def ensure_model(client: MlflowClient, campaign: Campaign, identity: str) -> str:
    """Name of the campaign's registered model, which is created if it is missing."""
    from mlflow import MlflowException

    if existing := model_name(client, identity):
        return existing
    tags = {"ratchet.campaign": campaign.name, "ratchet.campaign_id": identity}
    note = (
        f"Checkpoints of campaign '{campaign.name}'. MLflow stores no weights: each version names a folder of Ratchet's store. "
        "The alias `champion` is the best checkpoint that the gate accepted, `head` the one that the next round starts from."
    )
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
    """Give the round's checkpoint a version, unless a version has its digest: a round without training adds none."""
    if _version(client, model, finished.checkpoint) is None:
        location = pointer(campaign, finished)
        tags = {f"ratchet.{name}": value for name, value in location.items()}
        note = f"Checkpoint of round {finished.round}, in the folder {location['path']}"
        client.create_model_version(model, f"runs:/{run_id}/checkpoint", run_id, tags, description=note)


def set_aliases(client: MlflowClient, finished: Round, model: str) -> None:
    """Move `champion` and `head` to the versions that the round names."""
    current = client.get_registered_model(model).aliases
    for alias in ALIASES:
        version = _version(client, model, getattr(finished, alias))
        if version is not None and current.get(alias) != version.version:
            client.set_registered_model_alias(model, alias, version.version)


def tag_test_accuracy(client: MlflowClient, campaign: Campaign, model: str) -> None:
    """Give the versions that were measured on the test split their accuracy on it, as the tag `test_accuracy`."""
    final, refs = campaign.final() or {}, checkpoints_at_end(campaign.rounds())
    for which, metrics in final.items():
        version = _version(client, model, refs[which])
        if version is not None and "accuracy" in metrics and (words := accuracy_in_words(metrics["accuracy"])):
            client.set_model_version_tag(model, version.version, "test_accuracy", words)


def _version(client: MlflowClient, model: str, checkpoint: Ref) -> ModelVersion | None:
    versions = client.search_model_versions(f"name = '{model}' and tags.`ratchet.digest` = '{checkpoint.digest}'")
    return min(versions, key=lambda version: int(version.version)) if versions else None


# -- from MLflow to a checkpoint on disk -----------------------------------------------------------------------------------
def resolve(home: Path, name: str, alias: str = "champion") -> Checkpoint:
    """The checkpoint that `alias` of a campaign's registered model points to.

    Raises:
        CampaignError: there is no such campaign, MLflow has nothing of it, or there is no such alias.
        DamagedArtifact: version, pointer and store do not name the same digest.
        StageFailed: the store has no weights of the checkpoint.
        MLflowUnreachable: MLflow does not answer.
    """
    campaign = Campaign.open(home, name)
    with mlflow_client(home) as client:
        version = _by_alias(client, campaign, alias)
        location = _read_pointer(client, version)
    tag, digest = version.tags.get("ratchet.digest", "none"), location["digest"]
    if tag != digest:
        raise DamagedArtifact(
            f"{version.name} version {version.version}: its tag says digest {tag[:12]}, its pointer says {digest[:12]}. "
            "One of them was edited in MLflow, so neither is trusted. Delete the version and run the campaign again"
        )
    path = _in_store(campaign, Ref(key=location["key"], digest=digest))
    return Checkpoint(path, digest, location["key"], version.name, str(version.version), int(location["round"]))


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
        location = json.loads(text)
        return {name: str(location[name]) for name in ("round", "key", "digest")}
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedArtifact(
            f"{version.name} version {version.version}: expected round, key and digest in its pointer.json, found it edited in "
            f"MLflow: {error!r}"
        ) from error


def _in_store(campaign: Campaign, checkpoint: Ref) -> Path:
    short, artifact = checkpoint.key[:12], campaign.store.find(checkpoint.key)
    if artifact is None:
        raise StageFailed(f"checkpoint {short} is not in {campaign.store.root}; run the campaign again to compute it")
    if artifact.digest != checkpoint.digest:
        theirs, ours = checkpoint.digest[:12], artifact.digest[:12]
        raise DamagedArtifact(f"checkpoint {short}: MLflow says digest {theirs}, the store's manifest says {ours}")
    if artifact.absent:
        raise StageFailed(
            f"checkpoint {short} is {artifact.absent}, only its manifest is left; run the campaign again to compute it"
        )
    return artifact.path
