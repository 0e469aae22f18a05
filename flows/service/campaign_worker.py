"""The worker of `ratchet serve`: runs the campaign flow of this checkout, and refuses every run that asks for anything else.

Prefect lets a run, a deployment and a work pool replace the command, the environment and the code of a run. So whoever reached
Prefect's API could run any command as the user. This worker starts a run only as prefect.yaml describes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from abc import ABC
from typing import TYPE_CHECKING, Any

from anyio.abc import TaskStatus
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.utilities.processutils import setup_signal_handlers_worker
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from flows.service.environment import CHECKOUT
from flows.service.serve import POOL

if TYPE_CHECKING:
    from collections.abc import Mapping

ENTRYPOINT = "flows.service.scheduled:campaign"  # as prefect.yaml names it
JOB_VARIABLES = {"working_dir": str(CHECKOUT), "stream_output": False}
PULL_STEPS = [{"prefect.deployments.steps.set_working_directory": {"directory": str(CHECKOUT)}}]  # `prefect deploy` adds it


class RunRefused(Exception):
    """A run asks for something other than the campaign flow as prefect.yaml describes it. Prefect shows the text."""


def refusal(run: Mapping[str, Any], deployment: DeploymentResponse | None, template: Mapping[str, Any]) -> str:
    """What a run asks for that this worker does not do, or an empty text.

    Args:
        run: the job variables of the run itself.
        deployment: what the run belongs to; None if it belongs to none.
        template: the base job template of the work pool.
    """
    if run:
        return f"expected a run without job variables, found {', '.join(sorted(run))}"
    if deployment is None or deployment.entrypoint != ENTRYPOINT:
        return f"expected a run of {ENTRYPOINT}, found {deployment.entrypoint if deployment else 'no deployment'}"
    if deployment.job_variables != JOB_VARIABLES or (deployment.pull_steps or PULL_STEPS) != PULL_STEPS:
        return "expected the deployment to have the job variables and pull steps of prefect.yaml, found others"
    if template != ProcessWorker.get_default_base_job_template():
        return f"expected the work pool '{POOL}' to have Prefect's own job template, found a changed one"
    return ""


class CampaignWorker(ProcessWorker, ABC):  # ABC, so that Prefect does not register it in place of its own
    """Prefect's process worker for the campaign flow alone."""

    async def run(
        self, flow_run: FlowRun, configuration: ProcessJobConfiguration, task_status: TaskStatus[int] | None = None
    ) -> ProcessWorkerResult:
        deployment = await self.client.read_deployment(flow_run.deployment_id) if flow_run.deployment_id else None
        pool = await self.client.read_work_pool(POOL)
        if reason := refusal(flow_run.job_variables or {}, deployment, pool.base_job_template):
            raise RunRefused(f"{reason}; this worker runs campaigns only, see prefect.yaml")
        return await super().run(flow_run, configuration, task_status)


if __name__ == "__main__":
    setup_signal_handlers_worker(os.getpid(), "the worker", print)
    with contextlib.suppress(KeyboardInterrupt):  # how the handler ends it
        asyncio.run(CampaignWorker(work_pool_name=POOL).start())
