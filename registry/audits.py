"""An audit in MLflow: a run for the audit and a nested run per source, with metrics by step on both."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.client import audit_runs, experiment, mlflow_client, plain
from registry.projection import cut

if TYPE_CHECKING:
    from mlflow import MlflowClient

Result = Mapping[str, Any]  # what `ratchet audit --json` prints
QUANTITIES = {"mean": "mean", "effect": "d0", "step": "step", "p_by": "p_by"}  # of an entry -> in the metric's name


def record_audit(home: Path, result: Result) -> None:
    """Write an audit's result, unless MLflow has all of it. A result that was only written in part is written again.

    Raises:
        MLflowUnreachable: MLflow does not answer or refuses.
    """
    with mlflow_client(home) as client:
        experiment_id = experiment(client, home)
        runs = audit_runs(client, experiment_id, result["id"])
        if any(run.data.tags.get("ratchet.kind") == "audit" and run.info.status == "FINISHED" for run in runs):
            return
        for run in runs:
            client.delete_run(run.info.run_id)
        _write(client, experiment_id, result)


def _write(client: MlflowClient, experiment_id: str, result: Result) -> None:
    common = {"mlflow.source.name": "ratchet", "ratchet.audit_id": result["id"]}
    tags = {**common, "ratchet.kind": "audit", "mlflow.note.content": _note(result)}
    parent = client.create_run(experiment_id, tags=tags, run_name=result["name"]).info.run_id
    worst = ""
    for step, file in enumerate(result["files"]):
        compared = result["steps"][step - 1] if step else {"entries": [], "outcomes": [], "alarms": []}
        level = next(iter(alarm["level"] for alarm in compared["alarms"]), "")  # the highest level comes first
        worst = max(worst, level, key=("", "watch", "ALARM", "STOP").index)
        tags = {**common, "ratchet.kind": "audited", "mlflow.parentRunId": parent, "alarm.level": level}
        tags |= {"gold.verdict": compared["gold"]["result"]} if compared.get("gold") else {}
        run = client.create_run(experiment_id, tags=tags, run_name=f"{step} {file['label']}").info.run_id
        params = {"step": str(step), "source": file["source"], "completions": str(file["completions"])}
        for name, value in params.items():
            client.log_param(run, name, value)
        values = dict(_metrics(file, compared, result["steps"][0] if result["steps"] else compared, step))
        _log(client, (run, parent), values, step)
        client.set_terminated(run)
    client.log_dict(parent, dict(result), "audit.json")
    client.log_text(parent, "\n".join(_lines(result)), "alarms.txt")
    client.set_tag(parent, "alarm.level", worst)
    client.set_terminated(parent)


def _metrics(
    file: Mapping[str, Any], compared: Mapping[str, Any], first: Mapping[str, Any], step: int
) -> Iterator[tuple[str, float]]:
    """`bias/<feature>/{mean,d0,step,p_by}` on the shared prompts, and `all/<feature>` on all completions of the source."""
    for name, value in file["means"].items():
        if value is not None:
            yield plain(f"all/{name}"), value
    entries = [*compared["entries"], *compared["outcomes"]] if step else [*first["entries"], *first["outcomes"]]
    for entry in entries:
        if entry["group"] is None:
            wanted = QUANTITIES if step else {"base": "mean"}  # the first source is the base of the others
            for field, name in wanted.items():
                if entry[field] is not None:
                    yield plain(f"bias/{entry['feature']}/{name}"), entry[field]


def _log(client: MlflowClient, runs: tuple[str, ...], values: Mapping[str, float], step: int) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(name, value, int(time.time() * 1000), step) for name, value in values.items()]
    for run in runs:
        for start in range(0, len(metrics), 1000):  # MLflow's limit per call
            client.log_batch(run, metrics=metrics[start : start + 1000])


def _note(result: Result) -> str:
    """The description on the audit's page in MLflow."""
    first, *others = (file["label"] for file in result["files"])
    compared = f"Outputs of {', '.join(others)}, compared with those of {first} on {result['prompts']} shared prompts."
    gold = [step["gold"]["sentence"] for step in result["steps"] if step["gold"]]
    return cut(" ".join([*gold, compared, "The alarms are in alarms.txt, the whole result in audit.json."]))


def _lines(result: Result) -> Iterator[str]:
    """The verdicts on gold, what is printed about each source, and every alarm."""
    yield from (step["gold"]["sentence"] for step in result["steps"] if step["gold"])
    compared = list(zip(result["files"][1:], result["steps"], strict=True))
    for file, step in compared:
        yield from (f"{file['label']}: {told}" for told in step["lines"])
    yield ""
    for file, step in compared:
        for alarm in step["alarms"]:
            yield f"{file['label']}: {alarm['level']} {alarm['name']}: {alarm['sentence']}"
