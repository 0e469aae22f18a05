"""How a stage is called: the reporter shows it and, in a campaign, it is a Prefect task. Reused artifacts end as Cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed
from pydantic import BaseModel

from data.labels import Label
from data.recipe.settings import Hardware
from data.store.campaign import Campaign
from data.store.store import Artifact, Store
from flows.round.reporter import Reporter
from flows.round.stages import Stages
from tasks.run.stage import Around, Input, perform
from tasks.run.work import Stage


def watched_stage(
    store: Store,
    report: Reporter,
    number: int,
    label: str,
    stage: Stage,
    settings: BaseModel,
    inputs: Mapping[str, Input],
    *,
    hardware: Hardware,
    seed: int = 0,
    around: Around = nullcontext,
    use: Callable[[str], None] = lambda key: None,
) -> Artifact:
    """Perform a stage and show it under its label. `use` gets the artifact's key before the store is searched for it."""
    with report.stage(number, label, use) as notes:
        artifact = perform(store, stage, settings, inputs, seed=seed, hardware=hardware, notes=notes, around=around)
        report.done(number, label, artifact)
        return artifact


def stages_of(campaign: Campaign, number: int, report: Reporter) -> Stages:
    """The stages of one round of a campaign, each a task named after its round and label."""
    hardware = campaign.recipe.hardware

    def call(
        label: Label, stage: Stage, settings: BaseModel, inputs: Mapping[str, Input], seed: int, around: Around
    ) -> Artifact:
        def run() -> Artifact:
            return watched_stage(
                campaign.store, report, number, label.text, stage, settings, inputs,
                hardware=hardware, seed=seed, around=around, use=campaign.use,
            )  # fmt: skip

        return as_task(f"round {number}: {label}", run) if hardware.prefect else run()

    return Stages(campaign, number, call)


def as_task(name: str, run: Callable[[], Artifact]) -> Artifact:
    """Run under Prefect. The artifact comes back in a list, so that Prefect neither stores nor caches it."""
    results: list[Artifact] = []
    _task(name, run, results)  # type: ignore[unused-coroutine]
    return results[0]


@task(name="stage", cache_policy=NO_CACHE, persist_result=False, task_run_name="{label}")
def _task(label: str, run: Callable[[], Artifact], results: list[Artifact]) -> Any:
    artifact = run()
    results.append(artifact)
    if artifact.reused:
        return Completed(name="Cached", message=f"reused {artifact.stage} {artifact.key[:12]}")
    return None
