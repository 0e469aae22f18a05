"""The files of a round's run in MLflow: copies of small tables, data sets by digest, and samples to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import labels
from data.labels import Label
from data.store.campaign import Campaign, Round
from data.store.store import Artifact

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

LARGEST = 8 * 2**20  # bytes; a larger table is not copied, only named with its path and digest
NOTES = ("alarms.json", "check.json", "facts.json", "report.md", "training.json")  # not the JSON files of a checkpoint
SAMPLES = 20  # prompts in samples.json

Present = Mapping[Label, Artifact]


def present(campaign: Campaign, finished: Round) -> Present:
    """The round's artifacts whose files still exist. The run's tags also name evicted and lost ones."""
    stored = {labels.read(text): campaign.store.find(ref.key) for text, ref in finished.artifacts.items()}
    return {label: artifact for label, artifact in stored.items() if artifact is not None and not artifact.absent}


def pointer(campaign: Campaign, finished: Round) -> dict[str, str]:
    """Where the round's checkpoint is in the store. A registered version refers to it."""
    checkpoint = finished.checkpoint
    path = campaign.store.folder(checkpoint.key) / "payload"
    return {"round": str(finished.round), "key": checkpoint.key, "digest": checkpoint.digest, "path": str(path.absolute())}


def lay_out(campaign: Campaign, finished: Round, artifacts: Present, folder: Path) -> None:
    """Fill an empty folder with the files for the run. Tables are links, so that only MLflow copies their bytes."""
    (folder / "round.json").write_text(finished.model_dump_json(indent=1))
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "pointer.json").write_text(json.dumps(pointer(campaign, finished), indent=1))
    rows = samples(campaign, artifacts)
    if rows:
        table = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}  # as mlflow's log_table writes it
        (folder / "samples.json").write_text(json.dumps(table))
    for label, artifact in artifacts.items():
        for path in sorted(artifact.path.rglob("*")):
            if path.name in NOTES or (path.suffix == ".parquet" and path.stat().st_size <= LARGEST):
                link = folder / "tables" / label.mlflow / path.relative_to(artifact.path)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.absolute())


def inputs(artifacts: Present) -> list[DatasetInput]:
    """One data set per artifact with tables, by reference: MLflow shows which data a round used, with their digests."""
    import pyarrow.parquet as pq
    from mlflow.entities import Dataset, DatasetInput, InputTag

    datasets = []
    for label, artifact in artifacts.items():
        files = sorted(artifact.path.rglob("*.parquet"))
        if files:
            source = json.dumps({"uri": str(artifact.path.absolute())})
            profile = json.dumps({"num_rows": sum(pq.read_metadata(path).num_rows for path in files)})
            data = Dataset(label.mlflow, artifact.digest[:36], "local", source, _schema(files[0]), profile)
            datasets.append(DatasetInput(data, [InputTag("mlflow.data.context", label.use)]))
    return datasets


def _schema(path: Path) -> str:
    """The columns in the form that MLflow's data set panel reads."""
    import pyarrow.parquet as pq

    columns = pq.read_schema(path)
    return json.dumps({"mlflow_colspec": [{"name": f.name, "type": str(f.type), "required": not f.nullable} for f in columns]})


def samples(campaign: Campaign, artifacts: Present) -> list[dict[str, Any]]:
    """About 20 held-out prompts with this round's greedy completion and its score; the same prompts in every round."""
    greedy, scores = artifacts.get(labels.HELD_OUT.completions("greedy")), artifacts.get(labels.HELD_OUT.scores("greedy"))
    if greedy is None:
        return []
    rows = {row["prompt_id"]: row for row in _rows(greedy, "completions", "prompt_id", "completion_id", "text")}
    shown = [rows[prompt_id] for prompt_id in sorted(rows)[:SAMPLES]]  # ids are hashes, so this is a random but fixed sample
    prompts = _prompts(campaign)
    value_of = (
        {row["completion_id"]: row["value"] for row in _rows(scores, "scores", "completion_id", "value")} if scores else {}
    )
    return [
        {
            "prompt": prompts.get(row["prompt_id"], row["prompt_id"]),
            "completion": row["text"],
            "score": value_of.get(row["completion_id"]),
        }
        for row in shown
    ]


def _prompts(campaign: Campaign) -> dict[str, str]:
    """The last message of every held-out prompt. Round 0 has the prompts of the whole campaign."""
    prepared = campaign.store.find(campaign.rounds()[0].artifacts[labels.PREPARE.text].key)
    if prepared is None or prepared.absent:
        return {}
    return {row["prompt_id"]: row["messages"][-1]["content"] for row in _rows(prepared, "held_out", "prompt_id", "messages")}


def _rows(artifact: Artifact, table: str, *columns: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(artifact.file(f"{table}.parquet"), columns=list(columns)).to_pylist()
    return rows
