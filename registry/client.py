"""MLflow's address, the names of campaigns there, and a client whose failures all become MLflowUnreachable."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.addresses import http_address
from data.errors import CampaignError, StageFailed
from data.store.campaign import Campaign
from data.store.locks import locked
from data.store.store import write_atomic
from registry import moved

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

EXPERIMENT = "ratchet"
ID = "mlflow.id"  # in a campaign's folder
BACKENDS = ("sqlite:///", "postgresql", "mysql", "mssql", "databricks", "uc:")  # of MLflow, beside servers
VIEW = "mlflow.sharedViewState.ratchet"  # the tag with the columns of a shared view; by default MLflow's UI shows no numbers
COLUMNS = ["metrics.`accuracy`", "metrics.`accuracy_low`", "metrics.`accuracy_high`", "tags.`verdict`", "tags.`reason`"]
LONGEST_LOCK = 15.0  # seconds; a delivery holds the database for a fraction of one
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
    """`MLFLOW_TRACKING_URI` if it is set, else a SQLite database in the home.

    Raises:
        EndpointError: `MLFLOW_TRACKING_URI` is neither an address of a server nor a database.
    """
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if not named:
        return f"sqlite:///{home.absolute() / 'mlflow.db'}"
    if named.startswith(BACKENDS) and named.strip("/") != "sqlite:":  # that database is in memory, and lost at once
        return named
    return http_address(named, "MLFLOW_TRACKING_URI", "http://127.0.0.1:5000 or sqlite:////data/mlflow.db")


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

    failures = (mlflow.MlflowException, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, OSError, ImportError)
    for name in (
        "mlflow",
        "alembic",
    ):  # they log every table that they create, and the tracebacks of errors that are raised here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    uri = tracking_uri(home)
    try:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            _make_database(home)
            _wait_for_lock(home / "mlflow.db")
            moved.correct(home)
        yield mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    except failures as error:  # ImportError: a database needs a package of its own
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


def _wait_for_lock(database: Path) -> None:
    """Wait until the database can be written. MLflow itself would try ten times with growing pauses, for minutes in silence.

    Raises:
        sqlite3.OperationalError: another program has held it for LONGEST_LOCK seconds.
    """
    with contextlib.closing(sqlite3.connect(database, timeout=LONGEST_LOCK, isolation_level=None)) as connection:
        try:
            connection.execute("begin immediate")
            connection.execute("rollback")
        except sqlite3.OperationalError as error:  # a database that may only be read can be read all the same
            if "locked" in str(error):
                raise


def experiment(client: MlflowClient, home: Path) -> str:
    """The id of the experiment with all campaigns, which is created if it is missing.

    Raises:
        MLflowUnreachable: somebody deleted it; MLflow keeps the name of a deleted experiment.
    """
    from mlflow import MlflowException

    existing = client.get_experiment_by_name(EXPERIMENT) or _renamed(client)
    if existing is None:
        files = None if remote(client.tracking_uri) else moved.artifacts(home)
        try:
            return str(client.create_experiment(EXPERIMENT, files, {VIEW: json.dumps({"selectedColumns": COLUMNS})}))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            existing = client.get_experiment_by_name(EXPERIMENT)  # another campaign created it meanwhile
    if existing is not None and not existing.experiment_id:
        raise MLflowUnreachable(
            f"expected MLflow at {client.tracking_uri}, found another program's answer; correct MLFLOW_TRACKING_URI"
        )
    if existing is None or existing.lifecycle_stage != "active":
        raise MLflowUnreachable(
            f"expected the MLflow experiment '{EXPERIMENT}' to be active, found it deleted; restore it in the MLflow UI, or "
            "purge it with `mlflow gc`"
        )
    return str(existing.experiment_id)


def _renamed(client: MlflowClient) -> Experiment | None:
    """The experiment that was made here and has another name now, by the tag of its shared view."""
    made = client.search_experiments(filter_string=f"tags.`{VIEW}` LIKE '%'", order_by=["creation_time ASC"], max_results=1)
    return made[0] if made else None


# -- ids and names ------------------------------------------------------------------------------------------------------
def campaign_id(campaign: Campaign) -> str:
    """A random id in the campaign's folder, created at the first delivery, or again if its file was emptied.

    Names and paths are not unique: two machines can share a server, and a deleted campaign's name can be used again.
    """
    return stored_id(campaign.folder) or new_id(campaign)


def new_id(campaign: Campaign) -> str:
    """Give the campaign another id: MLflow then has it as a campaign of its own."""
    write_atomic(campaign.folder / ID, uuid.uuid4().hex)
    return stored_id(campaign.folder)


def stored_id(folder: Path) -> str:
    """The id in a campaign's folder, or an empty text."""
    path = folder / ID
    return path.read_text().strip() if path.is_file() else ""


def known_id(campaign: Campaign) -> str:
    """The campaign's id on the server.

    Raises:
        CampaignError: no round of it was delivered yet.
    """
    identity = stored_id(campaign.folder)
    if not identity:
        raise CampaignError(f"campaign '{campaign.name}' is not in MLflow yet; run it, which delivers its finished rounds")
    return identity


def plain(name: str) -> str:
    """A name that MLflow accepts for a metric, a parameter or a tag, e.g. `pass@4` -> `pass_at_4`."""
    return re.sub(r"[^/\w.\- :]", "_", name.replace("@", "_at_"))


def runs_of(client: MlflowClient, experiment_id: str, campaign: str) -> tuple[Run | None, dict[int, Run]]:
    """The campaign's parent run, and the runs of its rounds by number, without deleted runs.

    A person can delete and edit every tag in MLflow's UI. So a run that has a round's number is a round's, whatever its tags
    say, and one that has none is the campaign's. If two have one number, that of this parent counts, else the older one.
    """
    runs = sorted(_search(client, experiment_id, f"tags.`ratchet.campaign_id` = '{campaign}'"), key=lambda r: r.info.start_time)
    parent = next((run for run in runs if _is_campaign(run)), None)
    if parent is None:
        return None, {}
    runs.sort(key=lambda run: run.data.tags.get("mlflow.parentRunId") != parent.info.run_id)
    return parent, {number: run for run in reversed(runs) if run is not parent and (number := _number(run)) is not None}


def _is_campaign(run: Run) -> bool:
    kind = run.data.tags.get("ratchet.kind")
    return "round" not in run.data.params and (kind == "campaign" or (kind != "round" and _number(run) is None))


def _number(run: Run) -> int | None:
    """The number of a round's run: by its parameter, which nobody can change, or by its tag, which is written earlier."""
    texts = (run.data.params.get("round", ""), run.data.tags.get("ratchet.round", ""))
    return next((int(text) for text in texts if text.isdecimal()), None)


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
