"""Deliver a campaign to MLflow: every finished Round that MLflow does not have, or that a kill or an outage left incomplete.

A round's run is marked FINISHED last. A run that is not FINISHED is written again, so every earlier step can be repeated. Times
are those of the Round's file, so a late delivery shows the true times, and a metric sent twice is the same row in MLflow.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from data.errors import CampaignError
from data.store import test_reads
from data.store.campaign import Campaign, Round
from data.store.locks import locked
from registry import checkpoints, payload, projection
from registry.client import (
    MLflowUnreachable,
    campaign_id,
    experiment,
    known_id,
    mlflow_client,
    new_id,
    remote,
    runs_of,
    stored_id,
)  # fmt: skip
from registry.judges import mirror_templates
from registry.sweeps import sweep_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

T = TypeVar("T")


@dataclass(frozen=True)
class _Target:
    """Where this campaign's records go."""

    client: MlflowClient
    campaign: Campaign
    identity: str
    experiment: str
    parent: Run

    @property
    def parent_id(self) -> str:
        return str(self.parent.info.run_id)


def sync_campaign(campaign: Campaign) -> list[int]:
    """Deliver every finished Round that MLflow does not have in full, then the aliases, the state and the final metrics.

    Returns:
        The numbers of the rounds that were delivered now. If there are none, the call costs two or three reads.

    Raises:
        MLflowUnreachable: MLflow does not answer or refuses. Nothing is lost: a later call delivers.
    """
    rounds = campaign.rounds()
    if not rounds:
        return []
    with locked(campaign.folder / "mlflow.lock"), mlflow_client(campaign.home) as client:
        target, run_of_round = _find(client, campaign, rounds[0])
        missing = [finished for finished in rounds if not _complete(target, finished, run_of_round.get(finished.round))]
        if missing:
            mirror_templates(client, campaign)
            model = checkpoints.ensure_model(client, campaign, target.identity)
            steps = {m.step for m in client.get_metric_history(target.parent_id, projection.SENTINEL)}
            for finished in missing:
                _deliver(target, finished, run_of_round.get(finished.round), model, finished.round in steps)
        _close(target, rounds[-1])
    return [finished.round for finished in missing]


def _find(client: MlflowClient, campaign: Campaign, first: Round) -> tuple[_Target, dict[int, Run]]:
    """The campaign's parent run, created and completed if needed, and the existing runs of rounds by number."""
    identity, experiment_id = campaign_id(campaign), experiment(client, campaign.home)
    parent, run_of_round = runs_of(client, experiment_id, identity)
    if parent is not None and remote(client.tracking_uri) and _is_copy(campaign, parent, identity):
        identity, parent, run_of_round = new_id(campaign), None, {}
    tags = projection.campaign_tags(campaign, identity) | sweep_tags(client, experiment_id, campaign)
    if parent is None:
        parent = client.create_run(experiment_id, start_time=_began(campaign, first), tags=tags, run_name=campaign.name)
    _mend(client, parent, tags)
    params = {k: v for k, v in projection.recipe_params(campaign).items() if k not in parent.data.params}
    if params:
        client.log_dict(parent.info.run_id, campaign.recipe.plain(), "recipe.json")
        _log_params(client, parent.info.run_id, params)
    return _Target(client, campaign, identity, experiment_id, parent), run_of_round


def _is_copy(campaign: Campaign, parent: Run, identity: str) -> bool:
    """Whether the campaign's folder is a copy and the original is still there: the runs on the server are the original's."""
    original = Path(parent.data.tags.get("ratchet.folder") or campaign.folder)
    return stored_id(original) == identity and not original.samefile(campaign.folder)


def _mend(client: MlflowClient, run: Run, tags: Mapping[str, str]) -> None:
    """Write again what a person deleted, and what code reads and a person changed. A text that a person wrote stays."""
    from mlflow.entities import RunTag

    held = run.data.tags
    read = {name: value for name, value in tags.items() if name.startswith("ratchet.") or name == "mlflow.parentRunId"}
    wrong = {name: value for name, value in tags.items() if name not in held or held[name] != read.get(name, held[name])}
    if wrong:
        client.log_batch(run.info.run_id, tags=[RunTag(name, value) for name, value in wrong.items()])


def _complete(target: _Target, finished: Round, run: Run | None) -> bool:
    """Whether MLflow has all of this Round.

    Raises:
        MLflowUnreachable: it has another Round with this number, e.g. since the home was copied and both copies were run.
    """
    if run is None:
        return False
    campaign, recorded = target.campaign, run.data.tags.get("ratchet.record")
    if recorded is not None and not projection.is_record(finished, recorded):
        raise MLflowUnreachable(
            f"MLflow holds another round {finished.round} of campaign '{campaign.name}' than {campaign.folder}. The folder was "
            f"copied, or the round was run again. Delete {campaign.folder / 'mlflow.id'} to record it as a campaign of its own"
        )
    _mend(target.client, run, projection.round_tags(campaign, finished, target.identity, target.parent_id))
    return recorded is not None and bool(run.info.status == "FINISHED")


def _deliver(target: _Target, finished: Round, run: Run | None, model: str, on_parent: bool) -> None:
    """Write one Round. The end of its run comes last."""
    client, campaign = target.client, target.campaign
    ended = _ended(campaign, finished)
    if run is None:
        tags = projection.round_tags(campaign, finished, target.identity, target.parent_id)
        name = f"round {finished.round:03d}"
        run = client.create_run(target.experiment, start_time=_began(campaign, finished), tags=tags, run_name=name)
    run_id = run.info.run_id
    _log_files(target, finished, run_id)
    params = projection.round_params(campaign, finished)
    _log_params(client, run_id, {k: v for k, v in params.items() if k not in run.data.params})  # MLflow refuses another value
    numbers = projection.round_numbers(finished)
    if projection.SENTINEL not in run.data.metrics:  # MLflow would store a metric twice that is logged twice
        _log_metrics(client, run_id, numbers, ended, finished.round)
    if not on_parent:
        _log_metrics(client, target.parent_id, numbers, ended, finished.round)
    checkpoints.register(client, campaign, finished, model, run_id)
    client.set_terminated(run_id, end_time=ended)


def _log_files(target: _Target, finished: Round, run_id: str) -> None:
    artifacts = payload.present(target.campaign, finished)
    with tempfile.TemporaryDirectory(prefix="ratchet-") as folder:
        payload.lay_out(target.campaign, finished, artifacts, Path(folder))
        target.client.log_artifacts(run_id, folder)
        if (Path(folder) / "samples.json").exists():  # with this tag the UI finds the table to compare
            target.client.set_tag(run_id, "mlflow.loggedArtifacts", '[{"path": "samples.json", "type": "table"}]')
    target.client.log_inputs(run_id, datasets=payload.inputs(artifacts))


def _close(target: _Target, newest: Round) -> None:
    """Write final metrics, aliases and state. The parent's tags come last: they show that everything was written."""
    from mlflow.entities import RunTag

    client, campaign, parent = target.client, target.campaign, target.parent
    final = projection.final_numbers(campaign)
    if not final.keys() <= parent.data.metrics.keys():
        _log_metrics(client, target.parent_id, final, _milliseconds(campaign.final_path), 0)  # MLflow draws step 0 as bars
    tags = projection.progress_tags(campaign, newest)
    status = "FINISHED" if tags["state"] in ("done", "stopped") else "RUNNING"
    if parent.info.status == status and tags.items() <= parent.data.tags.items():
        return
    model = checkpoints.ensure_model(client, campaign, target.identity)
    checkpoints.set_aliases(client, newest, model)
    if final:
        checkpoints.tag_test_accuracy(client, campaign, model)
        _tell_other_readers(target)
    if status == "FINISHED":
        client.set_terminated(target.parent_id, end_time=_ended(campaign, newest))
    else:
        client.update_run(target.parent_id, status=status)
    client.log_batch(target.parent_id, tags=[RunTag(name, value) for name, value in tags.items()])


def _tell_other_readers(target: _Target) -> None:
    """Renew what the runs of other campaigns say about their test split, which this campaign has read too."""
    from mlflow.entities import RunTag

    for name in test_reads.readers(target.campaign):
        try:
            other = Campaign.open(target.campaign.home, name)
            parent, _ = runs_of(target.client, target.experiment, known_id(other))
            tags = projection.test_tags(other)
        except CampaignError:  # deleted, damaged or never delivered: its own next delivery tells
            continue
        if parent is not None and not tags.items() <= parent.data.tags.items():
            target.client.log_batch(parent.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])


# -- parameters, metrics and times --------------------------------------------------------------------------------------
def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    for batch in _batches([Param(name, value) for name, value in params.items()], 100):
        client.log_batch(run_id, params=batch)


def _log_metrics(client: MlflowClient, run_id: str, values: Mapping[str, float], when: int, step: int) -> None:
    """One transaction per 1,000 metrics, in order: if the last one is there, all are."""
    from mlflow.entities import Metric

    for batch in _batches([Metric(name, value, when, step) for name, value in values.items()], 1000):
        client.log_batch(run_id, metrics=batch)


def _batches(items: list[T], size: int) -> Iterator[list[T]]:
    """MLflow accepts at most 100 parameters and 1,000 metrics per call."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _ended(campaign: Campaign, finished: Round) -> int:
    return _milliseconds(campaign.folder / "rounds" / f"{finished.round:03d}.json")


def _began(campaign: Campaign, finished: Round) -> int:
    return _ended(campaign, finished) - round(finished.seconds * 1000)


def _milliseconds(path: Path) -> int:
    return path.stat().st_mtime_ns // 1_000_000
