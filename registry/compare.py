"""Where to look: links into the MLflow UI for a home's campaigns, and the command that opens it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from data.store.campaign import Campaign
from registry.checkpoints import model_name
from registry.client import VIEW, experiment, known_id, memory, remote, runs_of, tracking_uri

PORT = 5000
TRAINING = "workflowType=machine_learning"  # else the UI opens as a tool for chat traces
BY_ROUND = f"orderByKey={quote('params.`round`')}&orderByAsc=true"  # sorted by time, rounds hide below their folded parent
_KIND = "tags.`ratchet.kind` = '{}'"


def ui_command(home: Path, port: int = PORT) -> str:
    """The command that serves this home's MLflow on this machine only; empty where a server of the user's own serves it.

    One worker is enough for one person, and MLflow's job runner would start processes that nothing here uses.
    """
    uri = tracking_uri(home)
    if remote(uri):
        return ""
    settings = "MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
    options = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return f"{settings} {shlex.join([sys.executable, '-m', 'mlflow', 'server', *options])}"


def links(home: Path, names: Sequence[str], port: int = PORT) -> dict[str, str]:
    """Addresses in the MLflow UI, by what they show: all campaigns, their charts, and each campaign's rounds side by side.

    Raises:
        CampaignError: a campaign does not exist or was never delivered.
        MemoryUnreachable: MLflow is away.
    """
    uri = tracking_uri(home)
    start = f"{uri.rstrip('/') if remote(uri) else f'http://127.0.0.1:{port}'}/#/"
    found = {}
    with memory(home) as client:
        place = experiment(client, home)
        runs = f"{start}experiments/{place}/runs?{TRAINING}"
        known = client.get_experiment(place).tags
        found["campaigns"] = runs + (f"&viewStateShareKey={VIEW.rsplit('.', 1)[1]}" if VIEW in known else "")
        found["charts"] = f"{runs}&compareRunsMode=CHART&searchFilter={quote(_KIND.format('campaign'))}"
        for name in names:
            identity = known_id(Campaign.open(home, name))
            rounds = runs_of(client, place, identity)[1]
            ids = json.dumps([rounds[number].info.run_id for number in sorted(rounds)])
            only = quote(f"tags.`ratchet.campaign_id` = '{identity}' AND {_KIND.format('round')}")
            shown = f"runs={quote(ids)}&experiments={quote(json.dumps([place]))}"  # first: the UI fails on another order
            found[f"{name}: rounds"] = f"{start}compare-runs?{shown}&{TRAINING}"
            found[f"{name}: samples"] = f"{runs}&compareRunsMode=ARTIFACT&searchFilter={only}&{BY_ROUND}"
            found[f"{name}: checkpoints"] = f"{start}models/{model_name(client, identity)}?{TRAINING}"
    return found
