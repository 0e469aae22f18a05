"""Training in several processes under `accelerate launch`: two ranks equal one, and a killed rank costs the attempt only."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from data.errors import StageFailed
from data.recipe.loss import Loss
from data.recipe.settings import Hardware
from data.rows import tables
from data.store.campaign import Campaign
from data.store.store import Artifact, Store
from tasks.run.stage import perform
from tasks.run.work import Work, stage_module
from tasks.run.worker import run_apart
from tasks.train.train import train
from tests.test_stage import CUDA, apart, settings, source, store  # noqa: F401  (apart, source and store are fixtures)
from tests.test_train import finished, read, work_of  # noqa: F401  (finished is a fixture)

# Two ranks on a CPU: accelerate starts several processes under this name, and the trainer's use_cpu makes them speak gloo.
TWO = """compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
mixed_precision: 'no'
num_machines: 1
num_processes: 2
machine_rank: 0
main_process_port: 0
use_cpu: false
"""
CLOSE = 2e-4  # nats of loss and absolute weight: sums in another order, Adam on gradients near 0


def pair_of(campaign: Campaign, folder: Path, steps: int) -> Work:
    """On whole batches: a short last batch of an epoch is filled up by accelerate with the first rows of the epoch."""
    loss = Loss(name="sigmoid", beta=0.5).model_dump()
    work = work_of(campaign, folder, steps=steps, save_every=5, loss=loss, learning_rate=1e-4)
    pairs = tables.read(work.inputs["pairs"] / "pairs.parquet", tables.PAIRS)
    (folder / "pairs").mkdir()
    whole = pairs.slice(0, pairs.num_rows // work.settings.batch * work.settings.batch)
    tables.write(whole, tables.PAIRS, folder / "pairs" / "pairs.parquet")
    return replace(work, inputs={**work.inputs, "pairs": folder / "pairs"})


def in_two(work: Work, folder: Path) -> Work:
    (folder / "two.yaml").write_text(TWO)
    return replace(work, hardware=work.hardware.model_copy(update={"accelerate": str(folder / "two.yaml")}))


def ranks_of(scratch: Path) -> list[psutil.Process]:
    """The processes that train this job, by rank."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            if str(scratch / "job.json") in process.cmdline() and "RANK" in process.environ():
                found[process.environ()["RANK"]] = process
        except psutil.NoSuchProcess:
            continue
    return [found[rank] for rank in sorted(found)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_equal_one_and_a_killed_rank_resumes(finished: Campaign, tmp_path: Path) -> None:  # noqa: F811
    # same losses and weights within CLOSE where batches are whole; a rank killed by SIGKILL fails the stage, leaves nothing
    # behind, and the next attempt goes on from the last sealed save to the same end
    one = pair_of(finished, tmp_path / "one", steps=40)
    train(one)
    two = in_two(pair_of(finished, tmp_path / "two", steps=40), tmp_path)
    failed: list[BaseException] = []

    def attempt() -> None:
        try:
            run_apart("train", two)
        except StageFailed as error:
            failed.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    deadline = time.time() + 300
    while not list(two.scratch.glob("checkpoint-*/ratchet-manifest.json")) and time.time() < deadline and thread.is_alive():
        time.sleep(0.02)
    ranks = ranks_of(two.scratch)
    assert len(ranks) == 2
    ranks[1].send_signal(signal.SIGKILL)
    thread.join(timeout=200)
    assert failed
    assert not ranks_of(two.scratch)
    assert not (two.out / "model.safetensors").exists()
    run_apart("train", two)
    losses = [
        [r["value"] for r in read(w.out / "training.parquet", tables.TRAINING) if r["metric"] == "loss"] for w in (one, two)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=CLOSE)
    alone, together = (load_file(w.out / "model.safetensors") for w in (one, two))
    assert all(torch.allclose(alone[name], together[name], atol=CLOSE) for name in alone)


# What the ranks do. Rank 0 notices that rank 1 is gone by an error of its own, as gloo's and NCCL's are.
ONE_FAILS = """
if os.environ["RANK"] == "1":
    (work.scratch / "gone").touch()
    {fails}
while not (work.scratch / "gone").exists():
    time.sleep(0.01)
time.sleep({wait})
raise RuntimeError("Connection closed by peer")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wait", "fails", "says"),
    [
        (0.05, f"raise RuntimeError({CUDA!r})", f"toy: RuntimeError: {CUDA}"),
        (0.05, "os.kill(os.getpid(), 9)", "toy: the process of rank 1 was killed by SIGKILL (out of memory?)"),
        (
            5,
            "print('no licence', flush=True); os._exit(7)",
            "toy: the process of rank 1 ended with exit code 7; its last lines:\nno licence",
        ),
    ],
)
def test_the_rank_that_failed_first_is_heard(
    store: Store,  # noqa: F811
    apart: Callable[..., Artifact],  # noqa: F811
    tmp_path: Path,
    wait: float,
    fails: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # its whole error, or the signal that killed it: neither torch's summary of the launch nor what the other ranks say of it
    (tmp_path / "two.yaml").write_text(TWO)
    monkeypatch.setattr(sys.modules["tasks.run.toy"], "LAUNCHED", True, raising=False)
    (tmp_path / "toy.py").write_text((tmp_path / "toy.py").read_text() + "LAUNCHED = True\n")
    hardware = Hardware(device="cpu", isolation="process", accelerate=str(tmp_path / "two.yaml"))
    with pytest.raises(StageFailed) as failed:
        perform(store, stage_module("toy").toy, settings(then=ONE_FAILS.format(fails=fails, wait=wait)), {}, hardware=hardware)
    assert str(failed.value) == says
