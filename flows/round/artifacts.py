"""Artifacts as a round names and reads them, and a user's files as inputs that are identified by their content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.rows import sources, tables
from data.store.campaign import Campaign, Metric, Ref
from data.store.store import Artifact, External, Store, digest_of, sha256_file
from tasks.models.models import inspect_checkpoint
from tasks.run.stage import Notes, remake


def external_file(path: Path) -> External:
    """A user's file, folder or data set, identified by its content."""
    return External(sources.digest(path), path)


def external_model(path: Path) -> External:
    """A user's model directory, identified by the content of the files that a checkpoint needs."""
    files = {p.name: sha256_file(p) for p in inspect_checkpoint(path)}
    return External(digest_of(files), path)


def ref(artifact: Artifact) -> Ref:
    return Ref(key=artifact.key, digest=artifact.digest)


def load(store: Store, ref: Ref) -> Artifact:
    """An artifact that a Round names. If its payload is gone, the stage that needs it computes it again."""
    artifact = store.find(ref.key)
    return artifact or Artifact(ref.key, ref.digest, "artifact", store.folder(ref.key) / "payload", absent="gone")


def present(campaign: Campaign, artifact: Artifact) -> Artifact:
    """The artifact with its payload, which is computed again if it was damaged."""
    stored = campaign.store.find(artifact.key)
    if stored is not None and not stored.absent:
        return stored
    return remake(campaign.store, artifact, campaign.recipe.hardware, Notes())


def read_metrics(artifact: Artifact) -> dict[str, Metric]:
    rows = tables.read(artifact.file("metrics.parquet"), tables.METRICS).to_pylist()
    columns = ("value", "low", "high", "n", "split")
    return {row["metric"]: Metric(**{column: row[column] for column in columns}) for row in rows}


def read_facts(data: Mapping[str, Artifact]) -> dict[str, Any]:
    """The facts about the pairs or the selection of a round; empty if it has neither."""
    for name in ("pairs", "selected"):
        if name in data:
            return facts_of(data[name])
    return {}


def facts_of(artifact: Artifact) -> dict[str, Any]:
    """The content of an artifact's facts.json; empty if it has none."""
    path = artifact.file("facts.json")
    facts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return facts
