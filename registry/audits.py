"""An audit in MLflow: one run for the audit, a nested one per source, metrics by step on both."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.client import audit_runs, experiment, memory, plain

if TYPE_CHECKING:
    from mlflow import MlflowClient

Found = Mapping[str, Any]
QUANTITIES = {"mean": "mean", "effect": "d0", "step": "step", "p_by": "p_by"}  # of an entry -> in the metric's name


def record_audit(home: Path, found: Found) -> None:
    """Write an audit's result. One that is whole already is left alone; one that a kill left half is written anew.

    Raises:
        MemoryUnreachable: MLflow is away or refuses.
    """
    with memory(home) as client:
        place = experiment(client, home)
        known = audit_runs(client, place, found["id"])
        if any(run.data.tags["ratchet.kind"] == "audit" and run.info.status == "FINISHED" for run in known):
            return
        for run in known:
            client.delete_run(run.info.run_id)
        _write(client, place, found)


def _write(client: MlflowClient, place: str, found: Found) -> None:
    common = {"mlflow.source.name": "ratchet", "ratchet.audit_id": found["id"]}
    parent = client.create_run(place, tags={**common, "ratchet.kind": "audit"}, run_name=found["name"]).info.run_id
    worst = ""
    for step, file in enumerate(found["files"]):
        judged = found["steps"][step - 1] if step else {"entries": [], "outcomes": [], "alarms": []}
        level = next(iter(alarm["level"] for alarm in judged["alarms"]), "")  # the gravest comes first
        worst = max(worst, level, key=("", "watch", "ALARM", "STOP").index)
        tags = {**common, "ratchet.kind": "audited", "mlflow.parentRunId": parent, "alarm.level": level}
        run = client.create_run(place, tags=tags, run_name=f"{step} {file['label']}").info.run_id
        params = {"step": str(step), "source": file["source"], "completions": str(file["completions"])}
        for name, value in params.items():
            client.log_param(run, name, value)
        values = dict(_metrics(file, judged, found["steps"][0] if found["steps"] else judged, step))
        _log(client, (run, parent), values, step)
        client.set_terminated(run)
    client.log_dict(parent, dict(found), "audit.json")
    client.log_text(parent, "\n".join(_lines(found)), "alarms.txt")
    client.set_tag(parent, "alarm.level", worst)
    client.set_terminated(parent)


def _metrics(
    file: Mapping[str, Any], judged: Mapping[str, Any], first: Mapping[str, Any], step: int
) -> Iterator[tuple[str, float]]:
    """`bias/<feature>/{mean,d0,step,p_by}` over the shared prompts, `all/<feature>` over all of the source's completions."""
    for name, value in file["means"].items():
        if value is not None:
            yield plain(f"all/{name}"), value
    entries = [*judged["entries"], *judged["outcomes"]] if step else [*first["entries"], *first["outcomes"]]
    for entry in entries:
        if entry["group"] is None:
            wanted = QUANTITIES if step else {"base": "mean"}  # the first source is the others' base
            for field, name in wanted.items():
                if entry[field] is not None:
                    yield plain(f"bias/{entry['feature']}/{name}"), entry[field]


def _log(client: MlflowClient, runs: tuple[str, ...], values: Mapping[str, float], step: int) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(name, value, int(time.time() * 1000), step) for name, value in values.items()]
    for run in runs:
        for start in range(0, len(metrics), 1000):  # MLflow takes no more in one call
            client.log_batch(run, metrics=metrics[start : start + 1000])


def _lines(found: Found) -> Iterator[str]:
    for file, step in zip(found["files"][1:], found["steps"], strict=True):
        for alarm in step["alarms"]:
            yield f"{file['label']}: {alarm['level']} {alarm['name']}: {alarm['sentence']}"
