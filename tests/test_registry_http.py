"""The registry with a real MLflow server over HTTP, which refuses local paths as a model's source."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from data.store.campaign import Campaign, Metric, Ref
from data.store.store import sha256_text
from registry.checkpoints import resolve
from registry.client import MLflowUnreachable
from registry.compare import links
from registry.sync import sync_campaign
from tests.test_registry import add_round, everything, experiment_id, finish, start


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on this machine only, with a database and an artifact folder of its own."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    pytest.fail(f"no answer from {address}: {log.read_text()}")


@pytest.fixture
def campaign(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Campaign:
    """Rounds 0 to 2, with a name of the test's own since the tests share the server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    made = start(tmp_path, request.node.name.removeprefix("test_")[:40])
    for decision in ("start", "promote", "roll_back"):
        add_round(made, decision)
    return made


def test_the_champion_is_registered_and_found_again_over_http(campaign: Campaign) -> None:
    # Register, alias and load the champion's folder back, with nothing but HTTP between us and MLflow.
    assert sync_campaign(campaign) == [0, 1, 2]
    found = resolve(campaign.home, campaign.name, "champion")
    assert json.loads((found.path / "config.json").read_text()) == {"round": 1}
    assert found.digest == campaign.rounds()[-1].champion.digest
    assert not (campaign.home / "mlflow.db").exists(), "everything went to the server"


def test_a_second_delivery_over_http_changes_nothing(campaign: Campaign) -> None:
    # The same idempotence as on SQLite: runs, metric histories, files, versions and aliases stay as they are.
    finish(campaign)
    sync_campaign(campaign)
    before = everything(campaign.home, campaign.name)
    assert before[0]["round 001"]["history"]["accuracy"] == [(1, 0.25)]
    assert sync_campaign(campaign) == []
    assert everything(campaign.home, campaign.name) == before


def test_rounds_with_many_artifacts_fit(campaign: Campaign, server: str) -> None:
    # A server limits what a call may carry; a round with more parts than any recipe of ours still goes through.
    last = campaign.rounds()[-1]
    many = {f"score/part_{i}": Ref(key=sha256_text(str(i)), digest=last.head.digest) for i in range(150)}
    facts = {f"count_{i}": i for i in range(300)}
    metrics = {f"metric_{i}": Metric(value=0.5, low=0.4, high=0.6) for i in range(400)}
    changes = {"round": 3, "artifacts": last.artifacts | many, "facts": facts, "metrics": metrics}
    campaign.record(last.model_copy(update=changes))
    assert sync_campaign(campaign) == [0, 1, 2, 3]
    client = mlflow.MlflowClient(tracking_uri=server)
    found = client.search_runs([experiment_id(client)], "params.round = '003'")[0]
    assert len([tag for tag in found.data.tags if tag.startswith("artifact.")]) == len(last.artifacts) + 150
    assert len(found.data.metrics) == 1201


def test_two_homes_share_a_server_without_mixing(campaign: Campaign, tmp_path_factory: pytest.TempPathFactory) -> None:
    # Somebody else's campaign of the same name keeps its own runs and its own registered model.
    sync_campaign(campaign)
    other = start(tmp_path_factory.mktemp("other"), campaign.name)
    add_round(other, "start")
    assert sync_campaign(other) == [0]
    models = {resolve(c.home, c.name, "head").model for c in (campaign, other)}
    assert len(models) == 2


def test_links_point_to_the_server(campaign: Campaign, server: str) -> None:
    # The user's own server shows the campaigns.
    sync_campaign(campaign)
    assert all(link.startswith(f"{server}/#/") for link in links(campaign.home, [campaign.name]).values())


def test_a_deleted_experiment_is_said_plainly(campaign: Campaign, server: str) -> None:
    # MLflow keeps the name of a deleted experiment; the user is told to restore or purge it.
    client = mlflow.MlflowClient(tracking_uri=server)
    sync_campaign(campaign)
    found = experiment_id(client)
    client.delete_experiment(found)
    try:
        with pytest.raises(MLflowUnreachable, match="restore it in the MLflow UI"):
            sync_campaign(campaign)
    finally:
        client.restore_experiment(found)
