"""Links into MLflow's UI for the campaigns of a home, and the command that starts the UI."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from data.redact import IN_ADDRESS
from data.store.campaign import Campaign
from registry.checkpoints import model_name
from registry.client import VIEW, experiment, known_id, mlflow_client, remote, runs_of, tracking_uri

PORT = 5000
TRAINING = "workflowType=machine_learning"  # else the UI opens its view for chat traces
BY_ROUND = (
    f"orderByKey={quote('params.`round`')}&orderByAsc=true"  # sorted by time, rounds are hidden below their folded parent
)
_KIND = "tags.`ratchet.kind` = '{}'"


def links(home: Path, names: Sequence[str], port: int = PORT) -> dict[str, str]:
    """Addresses in MLflow's UI, by the name of the page: all campaigns, their charts, and the rounds of each campaign.

    Raises:
        CampaignError: a campaign does not exist, or no round of it was delivered yet.
        MLflowUnreachable: MLflow does not answer.
    """
    uri = IN_ADDRESS.sub("", tracking_uri(home))  # without the password: links are printed
    start = f"{uri.rstrip('/') if remote(uri) else f'http://127.0.0.1:{port}'}/#/"
    addresses = {}
    with mlflow_client(home) as client:
        experiment_id = experiment(client, home)
        runs = f"{start}experiments/{experiment_id}/runs?{TRAINING}"
        tags = client.get_experiment(experiment_id).tags
        addresses["campaigns"] = runs + (f"&viewStateShareKey={VIEW.rsplit('.', 1)[1]}" if VIEW in tags else "")
        addresses["charts"] = f"{runs}&compareRunsMode=CHART&searchFilter={quote(_KIND.format('campaign'))}"
        for name in names:
            identity = known_id(Campaign.open(home, name))
            rounds = runs_of(client, experiment_id, identity)[1]
            ids = json.dumps([rounds[number].info.run_id for number in sorted(rounds)])
            only = quote(f"tags.`ratchet.campaign_id` = '{identity}' AND {_KIND.format('round')}")
            shown = (
                f"runs={quote(ids)}&experiments={quote(json.dumps([experiment_id]))}"  # first: the UI fails on another order
            )
            addresses[f"{name}: rounds"] = f"{start}compare-runs?{shown}&{TRAINING}"
            addresses[f"{name}: samples"] = f"{runs}&compareRunsMode=ARTIFACT&searchFilter={only}&{BY_ROUND}"
            if model := model_name(client, identity):
                addresses[f"{name}: checkpoints"] = f"{start}models/{model}?{TRAINING}"
    return addresses
