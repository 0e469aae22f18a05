"""MLflow's address, the names of campaigns there, and a client whose failures all become MLflowUnreachable."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import CampaignError, StageFailed
from data.store.campaign import Campaign
from data.store.store import locked, write_atomic

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "ratchet"
VIEW = "mlflow.sharedViewState.ratchet"  # the tag with the columns of a shared view; by default MLflow's UI shows no numbers
COLUMNS = ["metrics.`accuracy`", "metrics.`accuracy_low`", "metrics.`accuracy_high`", "tags.`verdict`", "tags.`reason`"]
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # with MLflow's default of 7 a round waits minutes for a server that is down
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class MLflowUnreachable(StageFailed):
    """MLflow did not answer, or refused the records. Nothing is lost: the Rounds are on disk."""


def tracking_uri(home: Path) -> str:
    """`MLFLOW_TRACKING_URI` if it is set, else a SQLite database in the home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.absolute() / 'mlflow.db'}"


def remote(uri: str) -> bool:
    """Whether MLflow is a server, which then decides where files are stored."""
    return uri.startswith(("http://", "https://"))


def has_mlflow(home: Path) -> bool:
    """Whether there is an MLflow that can have this home's rounds: a server, or the database in the home."""
    return remote(tracking_uri(home)) or (home / "mlflow.db").exists()


@contextlib.contextmanager
def mlflow_client(home: Path) -> Iterator[MlflowClient]:
    """A client for this home's MLflow.

    Raises:
        MLflowUnreachable: MLflow does not answer, has no space left, has another version, or refuses the records.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow
    import sqlalchemy.exc

    for name in (
        "mlflow",
        "alembic",
    ):  # they log every table that they create, and the tracebacks of errors that are raised here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    uri = tracking_uri(home)
    try:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            _make_database(home)
        yield mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    except (mlflow.MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        cause = " ".join(str(error).split())[:300] or repr(error)
        raise MLflowUnreachable(
            f"expected MLflow at {uri} to answer, found: {cause}\n"
            "  The rounds are safe on disk. Start the server, free disk space or correct MLFLOW_TRACKING_URI. Then run the "
            "same command again: it delivers all rounds that MLflow does not have."
        ) from error


def _make_database(home: Path) -> None:
    """Create the database under another name, then rename it: a kill during MLflow's migrations would leave half of them."""
    import mlflow

    database, aside = home / "mlflow.db", home.absolute() / "mlflow.db.new"
    if database.exists():
        return
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / "mlflow.lock"):
        if database.exists():  # another campaign created it meanwhile
            return
        for stale in home.glob("mlflow.db.new*"):
            stale.unlink()
        mlflow.MlflowClient(tracking_uri=f"sqlite:///{aside}").search_experiments(max_results=1)
        aside.rename(database)


def experiment(client: MlflowClient, home: Path) -> str:
    """The id of the experiment with all campaigns, which is created if it is missing.

    Raises:
        MLflowUnreachable: somebody deleted it; MLflow keeps the name of a deleted experiment.
    """
    from mlflow import MlflowException

    existing = client.get_experiment_by_name(EXPERIMENT)
    if existing is None:
        files = None if remote(client.tracking_uri) else (home.absolute() / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(EXPERIMENT, files, {VIEW: json.dumps({"selectedColumns": COLUMNS})}))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            existing = client.get_experiment_by_name(EXPERIMENT)  # another campaign created it meanwhile
    if existing is None or existing.lifecycle_stage != "active":
        raise MLflowUnreachable(
            f"expected the MLflow experiment '{EXPERIMENT}' to be active, found it deleted; restore it in the MLflow UI, or "
            "purge it with `mlflow gc`"
        )
    return str(existing.experiment_id)


# -- ids and names ------------------------------------------------------------------------------------------------------
def campaign_id(campaign: Campaign) -> str:
    """A random id in the campaign's folder, created at the first delivery.

    Names and paths are not unique: two machines can share a server, and a deleted campaign's name can be used again.
    """
    path = campaign.folder / "mlflow.id"
    if not path.exists():
        write_atomic(path, uuid.uuid4().hex)
    return path.read_text()


def known_id(campaign: Campaign) -> str:
    """The campaign's id on the server.

    Raises:
        CampaignError: no round of it was delivered yet.
    """
    path = campaign.folder / "mlflow.id"
    if not path.exists():
        raise CampaignError(f"campaign '{campaign.name}' is not in MLflow yet; run it, which delivers its finished rounds")
    return path.read_text()


def plain(name: str) -> str:
    """A name that MLflow accepts for a metric, a parameter or a tag, e.g. `pass@4` -> `pass_at_4`."""
    return re.sub(r"[^/\w.\- :]", "_", name.replace("@", "_at_"))


def runs_of(client: MlflowClient, experiment_id: str, campaign: str) -> tuple[Run | None, dict[int, Run]]:
    """The campaign's parent run, and the runs of its rounds by number, without deleted runs."""
    runs = _search(client, experiment_id, f"tags.`ratchet.campaign_id` = '{campaign}'")
    parents = [run for run in runs if run.data.tags["ratchet.kind"] == "campaign"]
    if not parents:
        return None, {}
    parent = min(parents, key=lambda run: run.info.start_time)
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return parent, {int(run.data.tags["ratchet.round"]): run for run in children}


def sweep_run(client: MlflowClient, experiment_id: str, identity: str) -> Run | None:
    """The run that is the parent of a sweep's campaigns, by the sweep's id."""
    runs = _search(client, experiment_id, f"tags.`ratchet.sweep_id` = '{identity}'")
    return min(runs, key=lambda run: run.info.start_time, default=None)


def audit_runs(client: MlflowClient, experiment_id: str, identity: str) -> list[Run]:
    """The run of an audit and its nested runs, by the audit's id."""
    return _search(client, experiment_id, f"tags.`ratchet.audit_id` = '{identity}'")


def _search(client: MlflowClient, experiment_id: str, query: str) -> list[Any]:
    runs, token = [], None
    while True:
        page = client.search_runs([experiment_id], filter_string=query, max_results=1000, page_token=token)
        runs += list(page)
        token = page.token
        if not token:
            return runs
