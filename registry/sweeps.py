"""A sweep in MLflow: the parent run of its campaigns, with the grid as parameters and the results as a table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.store.campaign import Campaign
from data.store.sweep import Sweep
from registry.client import experiment, mlflow_client, plain, sweep_run
from registry.projection import cut

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def sweep_tags(client: MlflowClient, experiment_id: str, campaign: Campaign) -> dict[str, str]:
    """The tag that puts a campaign of a sweep below the sweep's run; empty for other campaigns."""
    if "sweep" not in campaign.origin:
        return {}
    sweep = Sweep.open(campaign.home, campaign.origin["sweep"])
    return {"mlflow.parentRunId": str(_ensure(client, experiment_id, sweep).info.run_id)}


def _ensure(client: MlflowClient, experiment_id: str, sweep: Sweep) -> Run:
    from mlflow.entities import Param

    run = sweep_run(client, experiment_id, sweep.id)
    if run is None:
        note = f"A campaign for every combination of {', '.join(sweep.over)}. The results are in sweep.json."
        tags = {"mlflow.source.name": "ratchet", "ratchet.kind": "sweep", "mlflow.note.content": note}
        tags |= {"ratchet.sweep": sweep.name, "ratchet.sweep_id": sweep.id}
        run = client.create_run(experiment_id, tags=tags, run_name=sweep.name)
    params = {plain(f"over.{path}"): str(values)[:5000] for path, values in sweep.over.items()}
    missing = [Param(name, value) for name, value in params.items() if name not in run.data.params]
    if missing:
        client.log_batch(run.info.run_id, params=missing)
    return run


def finish_sweep(home: Path, sweep: Sweep, results: list[dict[str, Any]], choice: str) -> None:
    """Write the results, one row per campaign, and end the sweep's run. Can be called again.

    Args:
        choice: what is told about the best campaign.

    Raises:
        MLflowUnreachable: MLflow does not answer or refuses.
    """
    with mlflow_client(home) as client:
        run = _ensure(client, experiment(client, home), sweep)
        columns = {name: [row[name] for row in results] for name in (results[0] if results else ())}
        client.log_dict(run.info.run_id, columns, "sweep.json")
        client.set_tag(run.info.run_id, "choice", cut(choice))
        client.set_tag(run.info.run_id, "mlflow.loggedArtifacts", '[{"path": "sweep.json", "type": "table"}]')
        client.set_terminated(run.info.run_id, end_time=int(time.time() * 1000))
