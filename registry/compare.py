"""Where to look: links into the MLflow UI for a home's campaigns, and the command that opens it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from data.campaign import Campaign
from registry import checkpoints
from registry.client import experiment, known_id, memory, remote, runs_of, tracking_uri

PORT = 5000


def ui_command(home: Path, port: int = PORT) -> str:
    """The command that serves this home's MLflow on this machine only; empty where a server of the user's own serves it."""
    uri = tracking_uri(home)
    if remote(uri):
        return ""
    return shlex.join(["mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)])


def links(home: Path, names: Sequence[str], port: int = PORT) -> dict[str, str]:
    """Addresses in the MLflow UI, by what they show: all campaigns, their charts, and each campaign's rounds side by side.

    Raises:
        CampaignError: a campaign does not exist or was never delivered.
        MemoryUnreachable: MLflow is away.
    """
    uri = tracking_uri(home)
    found = {}
    with memory(home) as client:
        place = experiment(client, home)
        start = f"{uri.rstrip('/') if remote(uri) else f'http://127.0.0.1:{port}'}/#/"
        runs = f"{start}experiments/{place}/runs?workflowType=machine_learning"
        only = quote("tags.`ratchet.kind` = 'campaign'")
        found["campaigns"] = runs
        found["charts"] = f"{runs}&compareRunsMode=CHART&searchFilter={only}"
        for name in names:
            campaign = Campaign.open(home, name)
            identity = known_id(campaign)
            rounds = runs_of(client, place, identity)[1]
            ids = quote(json.dumps([rounds[number].info.run_id for number in sorted(rounds)]))
            found[f"{name}: rounds"] = f"{start}compare-runs?runs={ids}&experiments={quote(json.dumps([place]))}"
            of_campaign = quote(f"tags.`ratchet.campaign_id` = '{identity}' AND tags.`ratchet.kind` = 'round'")
            found[f"{name}: samples"] = f"{runs}&compareRunsMode=ARTIFACT&searchFilter={of_campaign}"
            found[f"{name}: checkpoints"] = f"{start}models/{checkpoints.model_name(client, campaign, identity)}"
    return found
