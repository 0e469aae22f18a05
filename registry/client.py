"""Where MLflow is, what a campaign is called there, and a client that turns every trouble into one error of ours."""

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
VIEW = "mlflow.sharedViewState.ratchet"  # where the UI keeps a view's columns; by default it shows no numbers
COLUMNS = ["metrics.`accuracy`", "metrics.`accuracy_low`", "metrics.`accuracy_high`", "tags.`verdict`", "tags.`reason`"]
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's own 7 hold a round up for minutes when a server is down
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class MemoryUnreachable(StageFailed):
    """MLflow could not be reached or did not take the records. Nothing is lost: the Rounds on disk are the truth."""


def tracking_uri(home: Path) -> str:
    """`MLFLOW_TRACKING_URI` where it is set, else a SQLite database in the home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.absolute() / 'mlflow.db'}"


def remote(uri: str) -> bool:
    """Whether a server stands between us and the database; it then decides where files are kept."""
    return uri.startswith(("http://", "https://"))


def remembered(home: Path) -> bool:
    """Whether there is anything to have delivered to: a server, or this home's database still in its place."""
    return remote(tracking_uri(home)) or (home / "mlflow.db").exists()


@contextlib.contextmanager
def memory(home: Path) -> Iterator[MlflowClient]:
    """A client for this home's MLflow.

    Raises:
        MemoryUnreachable: MLflow is away, full, of another version, or refused what it was given.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow
    import sqlalchemy.exc

    for name in ("mlflow", "alembic"):  # they announce every table they make, and print the tracebacks that we raise
        logging.getLogger(name).setLevel(logging.CRITICAL)
    uri = tracking_uri(home)
    try:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            _make_database(home)
        yield mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    except (mlflow.MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        cause = " ".join(str(error).split())[:300] or repr(error)
        raise MemoryUnreachable(
            f"expected MLflow at {uri} to answer, found: {cause}\n"
            "  The rounds are safe on disk. Start the server (or free room, or correct MLFLOW_TRACKING_URI) and run the same "
            "command again: it delivers what MLflow lacks."
        ) from error


def _make_database(home: Path) -> None:
    """Create the database aside and rename it: MLflow's migrations are not one transaction, a kill would leave half of them."""
    import mlflow

    database, aside = home / "mlflow.db", home.absolute() / "mlflow.db.new"
    if database.exists():
        return
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / "mlflow.lock"):
        if database.exists():  # another campaign of this home made it while we waited
            return
        for stale in home.glob("mlflow.db.new*"):
            stale.unlink()
        mlflow.MlflowClient(tracking_uri=f"sqlite:///{aside}").search_experiments(max_results=1)
        aside.rename(database)


def experiment(client: MlflowClient, home: Path) -> str:
    """The id of the experiment that holds every campaign, created where it is missing.

    Raises:
        MemoryUnreachable: somebody deleted it; MLflow keeps the name of a deleted experiment.
    """
    from mlflow import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        place = None if remote(client.tracking_uri) else (home.absolute() / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(EXPERIMENT, place, {VIEW: json.dumps({"selectedColumns": COLUMNS})}))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(EXPERIMENT)  # another campaign was quicker
    if found is None or found.lifecycle_stage != "active":
        raise MemoryUnreachable(
            f"expected the MLflow experiment '{EXPERIMENT}' to be active, found it deleted; restore it in the MLflow UI, or "
            "purge it with `mlflow gc`"
        )
    return str(found.experiment_id)


# -- what a campaign is called ------------------------------------------------------------------------------------------
def campaign_id(campaign: Campaign) -> str:
    """A random id kept beside the recipe, given at the first delivery.

    A path or a name would mix up two machines on one server, or a campaign with its deleted namesake; this moves with the home.
    """
    path = campaign.folder / "mlflow.id"
    if not path.exists():
        write_atomic(path, uuid.uuid4().hex)
    return path.read_text()


def known_id(campaign: Campaign) -> str:
    """The campaign's id on the server.

    Raises:
        CampaignError: nothing of it was ever delivered.
    """
    path = campaign.folder / "mlflow.id"
    if not path.exists():
        raise CampaignError(f"campaign '{campaign.name}' is not in MLflow yet; run it, and its finished rounds are delivered")
    return path.read_text()


def plain(name: str) -> str:
    """A name that MLflow accepts for a metric, a parameter or a tag, e.g. `pass@4` -> `pass_at_4`."""
    return re.sub(r"[^/\w.\- :]", "_", name.replace("@", "_at_"))


def runs_of(client: MlflowClient, experiment_id: str, campaign: str) -> tuple[Run | None, dict[int, Run]]:
    """The campaign's parent run and its rounds' runs by number; deleted runs do not count."""
    found = _search(client, experiment_id, f"tags.`ratchet.campaign_id` = '{campaign}'")
    parents = [run for run in found if run.data.tags["ratchet.kind"] == "campaign"]
    if not parents:
        return None, {}
    parent = min(parents, key=lambda run: run.info.start_time)
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return parent, {int(run.data.tags["ratchet.round"]): run for run in children}


def sweep_run(client: MlflowClient, experiment_id: str, identity: str) -> Run | None:
    """The run that is the parent of a sweep's campaigns, by the sweep's id."""
    found = _search(client, experiment_id, f"tags.`ratchet.sweep_id` = '{identity}'")
    return min(found, key=lambda run: run.info.start_time, default=None)


def audit_runs(client: MlflowClient, experiment_id: str, identity: str) -> list[Run]:
    """The run of an audit and those nested in it, by the audit's id."""
    return _search(client, experiment_id, f"tags.`ratchet.audit_id` = '{identity}'")


def _search(client: MlflowClient, experiment_id: str, query: str) -> list[Any]:
    found, token = [], None
    while True:
        page = client.search_runs([experiment_id], filter_string=query, max_results=1000, page_token=token)
        found += list(page)
        token = page.token
        if not token:
            return found
