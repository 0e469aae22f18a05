"""How a stage is called: as a Prefect task of the running flow, watched by the reporter. Reused artifacts end as Cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed
from pydantic import BaseModel

from data.store.campaign import Campaign
from data.store.store import Artifact
from flows.commands.report import Reporter
from flows.round.stages import Stages
from tasks.run.stage import Around, Input, perform


def stages_of(campaign: Campaign, number: int, report: Reporter) -> Stages:
    """The stages of one round of a campaign, each a task named after its round and label."""

    def call(label: str, stage: str, settings: BaseModel, inputs: Mapping[str, Input], seed: int, around: Around) -> Artifact:
        def run() -> Artifact:
            with report.stage(number, label, campaign.use) as notes:
                artifact = perform(
                    campaign.store,
                    stage,
                    settings,
                    inputs,
                    seed=seed,
                    hardware=campaign.recipe.hardware,
                    notes=notes,
                    around=around,
                )
                report.done(number, label, artifact)
                return artifact

        return as_task(f"round {number}: {label}", run) if campaign.recipe.hardware.prefect else run()

    return Stages(campaign, number, call)


def as_task(label: str, run: Callable[[], Artifact]) -> Artifact:
    """Run under Prefect. The artifact comes back past Prefect, which neither stores nor caches it."""
    made: list[Artifact] = []
    _task(label, run, made)  # type: ignore[unused-coroutine]
    return made[0]


@task(name="stage", cache_policy=NO_CACHE, persist_result=False, task_run_name="{label}")
def _task(label: str, run: Callable[[], Artifact], made: list[Artifact]) -> Any:
    made.append(run())
    if made[0].reused:
        return Completed(name="Cached", message=f"reused {made[0].stage} {made[0].key[:12]}")
    return None
