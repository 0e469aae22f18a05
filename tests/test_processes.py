"""Training in several processes under `accelerate launch`: two ranks equal one, and a killed rank costs the attempt only."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from data.errors import StageFailed
from data.recipe.loss import Loss
from data.rows import tables
from data.store.campaign import Campaign
from tasks.run.work import Work
from tasks.run.worker import run_apart
from tasks.train.train import train
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
