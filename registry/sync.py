"""The one writer to MLflow: project a campaign's Round records, and complete whatever an outage or a kill left undone.

A round's run is marked FINISHED last, so one that is not is written again; every step before that may be repeated. Times are
those of the Round's file, so a late delivery tells the true ones, and a metric sent twice is the same row in MLflow.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from data.store.campaign import Campaign, Round
from data.store.store import locked
from registry import checkpoints, payload, projection
from registry.client import MemoryUnreachable, campaign_id, experiment, memory, runs_of
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
    """Deliver every finished Round that MLflow lacks or has only in part, then the aliases, the state and the final metrics.

    Returns:
        The numbers of the rounds delivered now; where there are none it costs two or three reads.

    Raises:
        MemoryUnreachable: MLflow is away or refuses. Nothing is lost: a later call delivers.
    """
    rounds = campaign.rounds()
    if not rounds:
        return []
    with locked(campaign.folder / "mlflow.lock"), memory(campaign.home) as client:
        target, known = _find(client, campaign, rounds[0])
        missing = [finished for finished in rounds if not _whole(campaign, finished, known.get(finished.round))]
        if missing:
            mirror_templates(client, campaign)
            model = checkpoints.ensure_model(client, campaign, target.identity)
            steps = {m.step for m in client.get_metric_history(target.parent_id, projection.SENTINEL)}
            for finished in missing:
                _deliver(target, finished, known.get(finished.round), model, finished.round in steps)
        _close(target, rounds[-1])
    return [finished.round for finished in missing]


def _find(client: MlflowClient, campaign: Campaign, first: Round) -> tuple[_Target, dict[int, Run]]:
    """The campaign's parent run, created and completed where needed, and the rounds' runs that exist."""
    identity, place = campaign_id(campaign), experiment(client, campaign.home)
    parent, known = runs_of(client, place, identity)
    if parent is None:
        tags = projection.campaign_tags(campaign, identity) | sweep_tags(client, place, campaign)
        parent = client.create_run(place, start_time=_began(campaign, first), tags=tags, run_name=campaign.name)
    params = {k: v for k, v in projection.recipe_params(campaign).items() if k not in parent.data.params}
    if params:
        client.log_dict(parent.info.run_id, campaign.recipe.plain(), "recipe.json")
        _log_params(client, parent.info.run_id, params)
    return _Target(client, campaign, identity, place, parent), known


def _whole(campaign: Campaign, finished: Round, run: Run | None) -> bool:
    """Whether MLflow has all of this Round.

    Raises:
        MemoryUnreachable: it has another Round of this number: two copies of a home have gone different ways.
    """
    if run is None:
        return False
    if run.data.tags["ratchet.record"] != projection.record_hash(finished):
        raise MemoryUnreachable(
            f"MLflow holds another round {finished.round} of campaign '{campaign.name}' than {campaign.folder}: its folder was "
            f"copied, or a round was made again. Delete {campaign.folder / 'mlflow.id'} to record it as a campaign of its own"
        )
    return bool(run.info.status == "FINISHED")


def _deliver(target: _Target, finished: Round, run: Run | None, model: str, on_parent: bool) -> None:
    """Write one Round, its run's end last."""
    client, campaign = target.client, target.campaign
    ended = _ended(campaign, finished)
    if run is None:
        tags = projection.round_tags(campaign, finished, target.identity, target.parent_id)
        name = f"round {finished.round:03d}"
        run = client.create_run(target.experiment, start_time=_began(campaign, finished), tags=tags, run_name=name)
    run_id = run.info.run_id
    _log_files(target, finished, run_id)
    _log_params(client, run_id, projection.round_params(campaign, finished))
    numbers = projection.round_numbers(finished)
    if projection.SENTINEL not in run.data.metrics:  # a metric logged twice for a step would be kept twice
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
        if (Path(folder) / "samples.json").exists():  # the tag is how the UI finds tables to compare
            target.client.set_tag(run_id, "mlflow.loggedArtifacts", '[{"path": "samples.json", "type": "table"}]')
    target.client.log_inputs(run_id, datasets=payload.inputs(artifacts))


def _close(target: _Target, newest: Round) -> None:
    """Final metrics, aliases and state; the parent's tags are written last and tell that all of it is done."""
    from mlflow.entities import RunTag

    client, campaign, parent = target.client, target.campaign, target.parent
    final = projection.final_numbers(campaign)
    if not final.keys() <= parent.data.metrics.keys():
        _log_metrics(client, target.parent_id, final, _milliseconds(campaign.final_path), 0)  # MLflow draws step 0 as bars
    tags = projection.progress_tags(campaign, newest)
    status = "FINISHED" if tags["state"] in ("done", "stopped") else "RUNNING"
    if parent.info.status == status and tags.items() <= parent.data.tags.items():
        return
    checkpoints.set_aliases(client, newest, checkpoints.ensure_model(client, campaign, target.identity))
    if status == "FINISHED":
        client.set_terminated(target.parent_id, end_time=_ended(campaign, newest))
    else:
        client.update_run(target.parent_id, status=status)
    client.log_batch(target.parent_id, tags=[RunTag(name, value) for name, value in tags.items()])


# -- small things -------------------------------------------------------------------------------------------------------
def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    for some in _batches([Param(name, value) for name, value in params.items()], 100):
        client.log_batch(run_id, params=some)


def _log_metrics(client: MlflowClient, run_id: str, values: Mapping[str, float], when: int, step: int) -> None:
    """One transaction per 1,000; whoever finds the last metric there finds them all."""
    from mlflow.entities import Metric

    for some in _batches([Metric(name, value, when, step) for name, value in values.items()], 1000):
        client.log_batch(run_id, metrics=some)


def _batches(items: list[T], size: int) -> Iterator[list[T]]:
    """MLflow takes at most 100 parameters and 1,000 metrics in one call."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _ended(campaign: Campaign, finished: Round) -> int:
    return _milliseconds(campaign.folder / "rounds" / f"{finished.round:03d}.json")


def _began(campaign: Campaign, finished: Round) -> int:
    return _ended(campaign, finished) - round(finished.seconds * 1000)


def _milliseconds(path: Path) -> int:
    return path.stat().st_mtime_ns // 1_000_000
