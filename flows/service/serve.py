"""`ratchet serve`: Prefect's server, a worker and MLflow's UI, on this machine only, until Ctrl-C."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from data.errors import CampaignError, ServiceFailed
from data.redact import redacted
from data.store.campaign import names
from data.store.locks import LockHeld, locked
from flows.commands.options import Home
from flows.service import environment
from flows.service.access import ENTER, USER, password
from flows.service.environment import CHECKOUT
from flows.service.services import HOST, PREFECT, Service, claim_port, mlflow_server, prefect_client, prefect_server
from flows.terminal import out
from registry.client import has_mlflow, mlflow_client, remote, tracking_uri
from registry.compare import PORT as MLFLOW_PORT

POOL, DEPLOYMENT = "ratchet", "campaign/ratchet"  # as prefect.yaml names them
PREFECT_PORT = 4200


def serve(
    home: Home = None,
    port: Annotated[int, typer.Option(help="Port of Prefect's UI and API; 0 = any free port.")] = PREFECT_PORT,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow's UI; 0 = any free port.")] = MLFLOW_PORT,
) -> None:
    """Start Prefect's server, a worker and MLflow's UI, reachable from this machine only.

    In Prefect's UI you schedule, follow, cancel and retry campaigns. Ctrl-C or
    SIGTERM ends all three and the campaigns that they run. Finished artifacts
    are kept. A second Ctrl-C ends at once.

    Examples:

      ratchet serve

      ratchet serve --home /data/runs --port 4300 --mlflow-port 5100
    """
    folder = environment.home_of(home)
    environment.prepare(folder)
    try:
        with locked(folder / "prefect" / "serve.lock", wait=False):
            _serve(folder, claim_port(port, "Prefect server", "--port"), claim_port(mlflow_port, "MLflow UI", "--mlflow-port"))
    except LockHeld as error:
        raise CampaignError(f"another `ratchet serve` is running on {folder}; use it, or stop it first") from error


def _serve(home: Path, port: int, mlflow_port: int) -> None:
    os.environ.update(prefect_client(home, port))  # for this process and the services started here
    os.environ["RATCHET_HOME"] = str(home)  # the default of the form in Prefect's UI
    server, worker, mlflow = prefect_server(home, port), _worker(home), _mlflow(home, mlflow_port)
    first = [server] if mlflow is None else [server, mlflow]
    with _until_stopped([worker, *reversed(first)]) as stop:
        out.print("Starting ...")
        for service in first:
            service.start()
        if not all(service.wait(stop.wait) for service in first):
            return
        _mark_runs_without_process()
        deploy()
        worker.start()
        threading.Thread(target=_close_orphaned_runs, args=[stop], name="close-orphaned-runs", daemon=True).start()
        _print_addresses(home, port, mlflow_port if mlflow else None)
        keep([*first, worker], stop)


@contextmanager
def _until_stopped(services: list[Service]) -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets. On exit the services are stopped in this order. A second signal kills them."""
    stop = threading.Event()

    def stopping(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            for service in services:
                service.signal(signal.SIGKILL)
            os._exit(130)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stopping)
    try:
        yield stop
    finally:
        stop.set()
        out.print("Stopping ...")
        for service in services:
            service.stop()


def keep(services: list[Service], stop: threading.Event) -> None:
    """Until `stop` is set, restart each service that ends.

    Raises:
        ServiceFailed: a service ended right after its start.
    """
    while not stop.wait(0.5):
        for service in services:
            if service.ended is not None:
                out.print(f"The {service.name} ended with exit code {service.ended}. Starting it again.")
                service.again()


def _worker(home: Path) -> Service:
    command = [sys.executable, "-m", "flows.service.campaign_worker"]
    quick = {"PREFECT_WORKER_QUERY_SECONDS": "2"}  # Prefect's default of 10 makes a person wait
    return Service("Prefect worker", command, home / "prefect" / "worker.log", quick, leaves=True)


def _mlflow(home: Path, port: int) -> Service | None:
    """MLflow's UI for this home; None if MLFLOW_TRACKING_URI names a server, which has a UI of its own."""
    if not has_mlflow(home):  # creates the database first, since two processes cannot create it at the same time
        with mlflow_client(home):
            pass
    uri = tracking_uri(home)
    return None if remote(uri) else mlflow_server(home, uri, port)


def _mark_runs_without_process() -> None:
    from flows.service.orphaned_runs import mark_runs_without_process

    for name in mark_runs_without_process():
        out.print(f"The last run of campaign '{name}' ended without a report. Prefect shows it as Crashed now; retry it there.")


def _close_orphaned_runs(stop: threading.Event, every: float = 20.0) -> None:
    """Until `stop` is set, mark runs and stages that ended without a report to the server."""
    from flows.service.orphaned_runs import close_orphaned_runs

    while not stop.is_set():
        try:
            close_orphaned_runs()
        except Exception as error:  # e.g. the server restarts, or a run was just deleted
            if not stop.is_set():
                out.print(f"Could not check for orphaned runs ({error}); retrying in {every:.0f} s.")
        stop.wait(every)


def deploy() -> None:
    """Create the work pool and the deployment of prefect.yaml if they are missing or belong to another checkout.

    If they belong to this checkout, only the form of the flow is updated. Schedules that a person set stay.

    Raises:
        ServiceFailed: Prefect refused; the message quotes its output.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
    from prefect.utilities.callables import parameter_schema
    from prefect.workers.process import ProcessWorker

    from flows.service.scheduled import campaign

    with get_client(sync_client=True) as client:
        try:
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        except ObjectAlreadyExists:
            pass
        try:
            deployment = client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            deployment = None
        if deployment is not None and deployment.job_variables.get("working_dir") == str(CHECKOUT):
            form = parameter_schema(campaign).model_dump_for_openapi()
            if deployment.parameter_openapi_schema != form:
                client.update_deployment(deployment.id, DeploymentUpdate(parameter_openapi_schema=form))
            return
    _deploy_all()


def _deploy_all() -> None:
    command = [*PREFECT, "--no-prompt", "deploy", "--all"]
    done = subprocess.run(
        command, cwd=CHECKOUT, env=os.environ | {"PWD": str(CHECKOUT)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ServiceFailed(
            f"Prefect could not create the deployment of prefect.yaml:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )


def _print_addresses(home: Path, port: int, mlflow_port: int | None) -> None:
    api, secret = f"http://{HOST}:{port}/api", password(home)
    prefect = f'PREFECT_API_URL={api} PREFECT_API_AUTH_STRING="{USER}:$(cat {shlex.quote(str(home))}/prefect/password)"'
    form = '{"recipe": "tiny_raft", "name": "first", "overrides": ["rounds=2"]}'
    run = f"{shlex.join(PREFECT)} deployment run {DEPLOYMENT} --param order='{form}'"
    lines = {
        "Prefect": f"http://{HOST}:{port}{ENTER}#{secret}",
        "MLflow": f"http://{USER}:{secret}@{HOST}:{mlflow_port}{ENTER}" if mlflow_port else redacted(tracking_uri(home)),
        "password": f"{secret} (user {USER}). The links hold it: pass them to nobody. It is in {home}/prefect/password",
        "home": f"{home} ({len(names(home))} campaigns). Logs: campaigns/NAME/log, prefect/*.log, mlflow.log",
        "run": f"Prefect's UI: Deployments > campaign > Run. Or: {prefect} \\\n            {run}",
        "schedule": "Prefect's UI: Deployments > campaign > Schedules. The one there (daily, 02:00 UTC) is switched off.",
        "show here": f"runs of the command line appear in this UI with: PREFECT_API_URL={api} ./ratchet run --home {home} ...",
    }
    for title, text in lines.items():
        out.print(f"{title:<10}{text}", soft_wrap=True)
    last = "Ctrl-C ends everything. Retry an interrupted run in Prefect's UI: it resumes from its last finished artifact."
    out.print(last, soft_wrap=True)
