"""The files of a round's run in MLflow: small tables and notes copied, data sets named by digest, a sample to read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.store.campaign import Campaign, Round
from data.store.store import Artifact

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

LARGEST = 8 * 2**20  # bytes of a table that is copied; a larger one is only named, by its place and digest
NOTES = (  # a checkpoint's other JSON files are no notes
    *("alarms.json", "audit.json", "check.json", "facts.json", "report.md", "training.json"),
)
SAMPLES = 20  # prompts in samples.json
GREEDY = "evaluate/greedy"  # the completions that samples.json shows
EVALUATION = ("bias", "evaluate", "measure", "probe", "test", "ood")  # every other artifact counts as training data

Present = Mapping[str, Artifact]


def present(campaign: Campaign, finished: Round) -> Present:
    """The round's artifacts whose files are still there; evicted and lost ones are only named, in the run's tags."""
    found = {name: campaign.store.find(ref.key) for name, ref in finished.artifacts.items()}
    return {name: artifact for name, artifact in found.items() if artifact is not None and not artifact.absent}


def pointer(campaign: Campaign, finished: Round) -> dict[str, str]:
    """Where the round's checkpoint lies in the store: what a registered version stands for."""
    made = finished.checkpoint
    path = campaign.store.folder(made.key) / "payload"
    return {"round": str(finished.round), "key": made.key, "digest": made.digest, "path": str(path.absolute())}


def lay_out(campaign: Campaign, finished: Round, artifacts: Present, folder: Path) -> None:
    """Fill an empty folder with what the run will hold. Tables are links, so that only MLflow copies their bytes."""
    (folder / "round.json").write_text(finished.model_dump_json(indent=1))
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "pointer.json").write_text(json.dumps(pointer(campaign, finished), indent=1))
    rows = samples(campaign, artifacts)
    if rows:
        table = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}  # as mlflow's log_table writes it
        (folder / "samples.json").write_text(json.dumps(table))
    for name, artifact in artifacts.items():
        for path in sorted(artifact.path.rglob("*")):
            if path.name in NOTES or (path.suffix == ".parquet" and path.stat().st_size <= LARGEST):
                link = folder / "tables" / name / path.relative_to(artifact.path)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.absolute())


def inputs(artifacts: Present) -> list[DatasetInput]:
    """One data set per artifact that holds tables, by reference: MLflow shows which data a round used, and its digest."""
    import pyarrow.parquet as pq
    from mlflow.entities import Dataset, DatasetInput, InputTag

    made = []
    for name, artifact in artifacts.items():
        files = sorted(artifact.path.rglob("*.parquet"))
        if files:
            source = json.dumps({"uri": str(artifact.path.absolute())})
            profile = json.dumps({"num_rows": sum(pq.read_metadata(path).num_rows for path in files)})
            data = Dataset(name, artifact.digest[:36], "local", source, _schema(files[0]), profile)
            context = "evaluation" if name.split("/")[0] in EVALUATION else "training"
            made.append(DatasetInput(data, [InputTag("mlflow.data.context", context)]))
    return made


def _schema(path: Path) -> str:
    """The columns in the form that MLflow's data set panel reads."""
    import pyarrow.parquet as pq

    columns = pq.read_schema(path)
    return json.dumps({"mlflow_colspec": [{"name": f.name, "type": str(f.type), "required": not f.nullable} for f in columns]})


def samples(campaign: Campaign, artifacts: Present) -> list[dict[str, Any]]:
    """About 20 held-out prompts with this round's greedy completion and its score; the same prompts in every round."""
    if GREEDY not in artifacts:
        return []
    texts = {row["prompt_id"]: row for row in _rows(artifacts[GREEDY], "prompt_id", "completion_id", "text")}
    shown = [texts[prompt_id] for prompt_id in sorted(texts)[:SAMPLES]]  # ids are hashes: a random sample, yet a fixed one
    asked = _prompts(artifacts, [row["prompt_id"] for row in shown])
    scores = _scores(campaign, artifacts, [row["completion_id"] for row in shown])
    return [
        {
            "prompt": asked.get(row["prompt_id"], row["prompt_id"]),
            "completion": row["text"],
            "score": scores.get(row["completion_id"]),
        }
        for row in shown
    ]


def _prompts(artifacts: Present, wanted: list[str]) -> dict[str, str]:
    """The prompts' last messages: what the model was asked."""
    where = ("prompt_id", "in", wanted)
    rows = (row for artifact in artifacts.values() for row in _rows(artifact, "prompt_id", "messages", where=where))
    return {row["prompt_id"]: row["messages"][-1]["content"] for row in rows}


def _scores(campaign: Campaign, artifacts: Present, wanted: list[str]) -> dict[str, float | None]:
    """What the verifier (the recipe's first scorer) gave; another scorer's value where it has none."""
    verifier = campaign.recipe.score[0].label
    names = sorted(
        (n for n in artifacts if n.split("/")[0] in EVALUATION), key=lambda n: verifier in n
    )  # it comes last and wins
    where = ("completion_id", "in", wanted)
    rows = (row for name in names for row in _rows(artifacts[name], "completion_id", "value", where=where))
    return {row["completion_id"]: row["value"] for row in rows}


def _rows(artifact: Artifact, *columns: str, where: tuple[str, str, list[str]] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of those of the artifact's tables that have all these columns: file names differ by stage, columns do not."""
    import pyarrow.parquet as pq

    for path in sorted(artifact.path.rglob("*.parquet")):
        if set(columns) <= set(pq.read_schema(path).names):
            yield from pq.read_table(path, columns=list(columns), filters=[where] if where else None).to_pylist()
