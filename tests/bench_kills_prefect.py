"""Kill one part of a served campaign with SIGKILL in a known stage, retry it as a person would, and compare with a calm run.

    ./ratchet bench kills_prefect [--times 3] [--seed 0] [--victims flow,worker,server,everything] [--stages generate,...]

`./ratchet serve` runs for real on loopback; campaigns are started and retried through Prefect's API, as its UI does. Before a
scenario the store holds what the calm run made, less the stage that is to be killed, so that a scenario costs seconds and any
difference in what that stage makes changes every later key. Prints one row per victim and stage: in how many runs the kill fell
into the stage, whether every digest is equal, whether MLflow holds each metric once, how often a person had to retry, and what
stayed behind (half-written artifacts, locks, runs that Prefect still shows as running).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from data.store.campaign import Campaign, Round
from data.store.store import Store
from flows.service.access import credentials
from flows.service.services import free_port
from registry.client import mlflow_client
from tests.bench_kill import left_over
from tests.micro import SETS

ROOT = Path(__file__).parent.parent
VICTIMS = ("flow", "worker", "server", "everything")
STAGES = {
    "generate": "generate",
    "score": "score/tests.micro:ends_even",
    "train": "train",
    "evaluate": "evaluate/sampled",
    "sync": "",  # between the record of round 1 and MLflow's receipt
}
OVERRIDES = [*SETS, "rounds=1"]
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
PATIENCE = 400  # seconds


class Stand:
    """`./ratchet serve` and what a person does in Prefect's UI."""

    def __init__(self, home: Path) -> None:
        self.home, self.ports = home, (free_port(), free_port())
        user, _, password = credentials(home).partition(":")
        hooks = {"request": [self._with_token]}
        address = f"http://127.0.0.1:{self.ports[0]}/api"
        self.api = httpx.Client(base_url=address, timeout=60, auth=(user, password), event_hooks=hooks)
        self.serve: psutil.Popen | None = None

    def start(self) -> None:
        ports = ["--port", str(self.ports[0]), "--mlflow-port", str(self.ports[1])]
        command = [sys.executable, "-u", "-m", "flows.cli", "serve", "--home", str(self.home), *ports]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "serve.log").open("a") as log:
            began = log.tell()
            self.serve = serve = psutil.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        until(lambda: "Ctrl-C ends" in self.said(began) or not serve.is_running(), "serve to start")
        if serve.poll() is not None:
            raise RuntimeError(self.said(began))

    def said(self, since: int = 0) -> str:
        return (self.home / "serve.log").read_text()[since:]

    @contextlib.contextmanager
    def running(self) -> Iterator[Stand]:
        try:
            self.start()
            yield self
        finally:
            if self.serve is not None and self.serve.poll() is None:
                self.serve.terminate()
                self.serve.wait(60)
            self.api.close()

    def _with_token(self, request: httpx.Request) -> None:
        """The server takes changes only with a token that it gave, as its UI and its client have one."""
        if request.method != "GET":
            token = self.api.get("/csrf-token", params={"client": "stand"}).json()["token"]
            request.headers.update({"Prefect-Csrf-Client": "stand", "Prefect-Csrf-Token": token})

    # -- as a person ------------------------------------------------------------------------------------------------
    def ask(self, method: str, path: str, **body: Any) -> Any:
        """One call; a server that is just being restarted, or says 503 (its database is busy), is asked again."""
        deadline = time.time() + PATIENCE
        while True:
            try:
                answer = self.api.request(method, path, json=body or None)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.time() > deadline:
                    answer.raise_for_status()
                    return answer.json()
            except httpx.TransportError:
                if time.time() > deadline:
                    raise
            time.sleep(0.2)

    def order(self, home: Path, name: str = "k", overrides: list[str] = OVERRIDES) -> str:
        deployment = self.ask("GET", "/deployments/name/campaign/ratchet")["id"]
        form = {"recipe": "tiny_raft", "name": name, "home": str(home), "overrides": overrides}
        return str(self.ask("POST", f"/deployments/{deployment}/create_flow_run", parameters={"order": form})["id"])

    def state(self, run: str) -> dict[str, Any]:
        return dict(self.ask("GET", f"/flow_runs/{run}")["state"])

    def retry(self, run: str) -> None:
        self.ask("POST", f"/flow_runs/{run}/set_state", state={"type": "SCHEDULED", "name": "AwaitingRetry"})

    def cancel(self, run: str) -> None:
        self.ask("POST", f"/flow_runs/{run}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})

    def ended(self, run: str) -> str:
        """Wait for the end, of its process too; its state type. Twice the same: a worker may report a crash that the run
        reported already, and after a retry that would count against the new attempt."""
        until(lambda: self.state(run)["type"] in ENDED and not self.find("flow"), f"run {run} to end")
        time.sleep(2)
        return str(self.state(run)["type"]) if self.state(run)["type"] in ENDED else self.ended(run)

    def still_running(self, run: str) -> list[str]:
        """Stages of an ended run that Prefect shows as running; it learns from events, of lost ends from `serve`."""
        wanted = {"flow_runs": {"id": {"any_": [run]}}, "task_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
        deadline = time.time() + PATIENCE
        while (found := self.ask("POST", "/task_runs/filter", **wanted)) and time.time() < deadline:
            time.sleep(0.5)
        return [stage["name"] for stage in found]

    # -- as fate ----------------------------------------------------------------------------------------------------
    def find(self, victim: str) -> list[psutil.Process]:
        assert self.serve is not None
        words = {"flow": "prefect.engine", "worker": "worker start", "server": "server start", "everything": ""}[victim]
        found = []
        for process in [self.serve, *self.serve.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if words in " ".join(process.cmdline()):
                    found.append(process)
        return found


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=30)


def until(done: Callable[[], Any], what: str, pause: float = 0.2) -> None:
    deadline = time.time() + PATIENCE
    while not done():
        if time.time() > deadline:
            raise TimeoutError(f"waited {PATIENCE} s for {what}")
        time.sleep(pause)


@dataclass
class Calm:
    """The run that nobody disturbed."""

    home: Path
    round: Round = field(init=False)
    digests: list[dict[str, str]] = field(init=False)
    metrics: dict[tuple[str, str, int], int] = field(init=False)

    def __post_init__(self) -> None:
        self.round = Campaign.open(self.home, "k").rounds()[-1]
        self.digests, self.metrics = digests(self.home), metrics(self.home)

    def key(self, stage: str) -> str:
        return self.round.artifacts[STAGES[stage]].key

    def prepare(self, home: Path, stage: str) -> None:
        """A home whose store holds all that the calm run made, less one stage; MLflow is there and empty."""
        shutil.copytree(self.home / "store", home / "store")
        if STAGES[stage]:
            shutil.rmtree(Store(home / "store").folder(self.key(stage)))
        with mlflow_client(home):
            pass


def digests(home: Path) -> list[dict[str, str]]:
    return [{label: ref.digest for label, ref in r.artifacts.items()} for r in Campaign.open(home, "k").rounds()]


def metrics(home: Path) -> dict[tuple[str, str, int], int]:
    """How often MLflow holds each (run, metric, step)."""
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as database:
        rows = database.execute("select r.name, m.key, m.step from metrics m join runs r on r.run_uuid = m.run_uuid")
        return dict(collections.Counter(map(tuple, rows)))


@dataclass
class Outcome:
    victim: str
    stage: str
    landed: bool = False
    equal: bool = False
    metrics: bool = False
    retries: int = 0
    left: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return self.equal and self.metrics and not self.left


def scenario(stand: Stand, calm: Calm, victim: str, stage: str, draw: random.Random) -> Outcome:
    outcome, began = Outcome(victim, stage), time.time()
    home = Path(tempfile.mkdtemp(prefix="ratchet-kills-"))
    try:
        calm.prepare(home, stage)
        run = stand.order(home)
        starts, over = moments(home, calm, stage)
        until(lambda: stand.find("flow"), "the run to have a process")
        victims = stand.find(victim)  # now: looking for them takes longer than some stages
        until(starts, f"{stage} to start", pause=0.001)
        time.sleep(draw.uniform(0, lasts(calm, stage)))
        outcome.landed = not over()
        kill(victims)
        if victim == "everything":
            stand.start()
        while (state := stand.ended(run)) != "COMPLETED":
            if outcome.retries == 4:
                raise RuntimeError(f"still {state} after {outcome.retries} retries: {stand.state(run)}")
            stand.retry(run)
            outcome.retries += 1
            until(lambda: stand.state(run)["type"] != state, "the retry to count")
        outcome.equal = digests(home) == calm.digests and not Store(home / "store").verify()
        outcome.metrics = metrics(home) == calm.metrics
        outcome.left = left_over(home / "store") + stand.still_running(run)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    outcome.seconds = time.time() - began
    return outcome


def moments(home: Path, calm: Calm, stage: str) -> tuple[Callable[[], bool], Callable[[], bool]]:
    """Whether the stage has begun, and whether it is over."""
    if stage == "sync":
        folder = home / "campaigns" / "k"
        receipt = folder / "delivered"
        return (folder / "rounds" / "001.json").exists, lambda: receipt.exists() and receipt.read_text()[:8] == "2 rounds"
    store = Store(home / "store")
    return (store.root / "partial" / calm.key(stage)).exists, (store.folder(calm.key(stage)) / "manifest.json").exists


def lasts(calm: Calm, stage: str) -> float:
    """Seconds within which a kill falls into the stage."""
    if stage == "sync":
        return 0.5
    return float(json.loads((Store(calm.home / "store").folder(calm.key(stage)) / "log.json").read_text())["seconds"]) * 0.8


def rows(outcomes: list[Outcome]) -> Iterator[str]:
    yield f"{'victim':<11}{'stage':<10}{'runs':>5}{'in stage':>10}{'digests equal':>15}{'metrics once':>14}  retries  left over"
    for victim in VICTIMS:
        for stage in STAGES:
            some = [o for o in outcomes if (o.victim, o.stage) == (victim, stage)]
            if some:
                counts = [sum(o.landed for o in some), sum(o.equal for o in some), sum(o.metrics for o in some)]
                left = ", ".join(sorted({name for o in some for name in o.left})) or "nothing"
                retries = ",".join(str(o.retries) for o in some)
                yield f"{victim:<11}{stage:<10}{len(some):>5}{counts[0]:>10}{counts[1]:>15}{counts[2]:>14}  {retries:<9}{left}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="ratchet bench kills_prefect", description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victims", default=",".join(VICTIMS))
    parser.add_argument("--stages", default=",".join(STAGES))
    options = parser.parse_args()
    draw, outcomes = random.Random(options.seed), []
    place = Path(tempfile.mkdtemp(prefix="ratchet-kills-"))
    try:
        with Stand(place / "served").running() as stand:
            run = stand.order(place / "calm")
            if stand.ended(run) != "COMPLETED":
                raise RuntimeError(f"the calm run failed: {stand.state(run)}")
            calm = Calm(place / "calm")
            print(f"calm run: {sum(map(len, calm.digests))} artifacts, {len(calm.metrics)} metrics", flush=True)
            for _ in range(options.times):
                for victim in options.victims.split(","):
                    for stage in options.stages.split(","):
                        outcomes.append(scenario(stand, calm, victim, stage, draw))
                        print(f"{'ok ' if outcomes[-1].good else 'BAD'} {outcomes[-1]}", flush=True)
                print("\n".join(rows(outcomes)), flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(
        f"{len(outcomes)} kills, {sum(o.good for o in outcomes)} survived: equal digests, every metric once, nothing left over"
    )
    return 0 if all(o.good for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
