"""One stage in a process of its own: `python -m tasks.run.worker JOB.json`. The sure way to give a GPU's memory back.

A stage that trains becomes several processes where the recipe names an accelerate configuration: this process turns into
`accelerate launch`, which starts this module once per rank. Rank 0 speaks and writes the artifact.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from data import errors
from data.errors import StageFailed
from data.recipe.settings import Hardware
from tasks.run.work import Work, device_of, gpus, stage_module

TICK = "ratchet-tick "
PR_SET_PDEATHSIG = 1


def run_apart(stage: str, work: Work) -> None:
    """Run a stage in a child process, passing its progress on; the child never outlives this process.

    Raises:
        StageFailed: the child failed (its own message) or was killed (the signal).
    """
    job = work.scratch / "job.json"
    fields = {
        "stage": stage,
        "key": work.key,
        "settings": work.settings.model_dump(mode="json"),
        "inputs": {name: str(path) for name, path in work.inputs.items()},
        "seed": work.seed,
        "out": str(work.out),
        "scratch": str(work.scratch),
        "hardware": work.hardware.model_dump(mode="json"),
        "parent": os.getpid(),
    }
    job.write_text(json.dumps(fields))
    checkout = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([checkout, *sys.path])} | _one_gpu(stage, work.hardware)
    child = subprocess.Popen(
        [sys.executable, "-m", "tasks.run.worker", str(job)], stdout=subprocess.PIPE, text=True, env=environment
    )
    last = ""
    try:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith(TICK):
                done, total = line.removeprefix(TICK).split()
                work.tick(int(done), int(total))
            else:
                last = line.strip() or last
        code = child.wait()
    finally:
        if child.poll() is None:  # interrupted: the child goes first
            child.terminate()
            try:
                child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if child.stdout is not None:
            child.stdout.close()
    job.unlink(missing_ok=True)
    if code < 0:
        raise StageFailed(f"{stage}: its process was killed by {signal.Signals(-code).name} (out of memory?)")
    if code:
        kind, _, message = last.partition(": ")
        known = getattr(errors, kind, None)
        if isinstance(known, type) and issubclass(known, errors.RatchetError):
            raise known(message)  # as it would have been raised inline
        raise StageFailed(f"{stage}: {last or f'its process ended with exit code {code}'}")


def _one_gpu(stage: str, hardware: Hardware) -> dict[str, str]:
    """What a training in one process may see of several GPUs: the Trainer would spread its batches over all of them."""
    alone = getattr(stage_module(stage), "LAUNCHED", False) and not hardware.accelerate and device_of(hardware) == "cuda"
    return {"CUDA_VISIBLE_DEVICES": gpus()[0]} if alone else {}


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies, even by SIGKILL; checks that it is not too late.

    vLLM is told to run in it: a process of its own would live on, and hold the GPU.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that asked for this stage is gone")


def main(path: str) -> int:
    job: dict[str, Any] = json.loads(Path(path).read_text())
    module, hardware = stage_module(job["stage"]), Hardware.model_validate(job["hardware"])
    rank = os.environ.get("RANK")
    die_with_parent(job["parent"] if rank is None else os.getppid())
    if rank is None and hardware.accelerate and getattr(module, "LAUNCHED", False):
        launch = ["-m", "accelerate.commands.launch", "--config_file", hardware.accelerate, "-m", "tasks.run.worker", path]
        if device_of(hardware) == "cpu":
            os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # else "cpu:0", to which torch cannot load a save's optimizer
        os.execv(sys.executable, [sys.executable, *launch])  # still dies with the parent: the kernel keeps that over exec

    def tick(done: int, total: int) -> None:
        if rank in (None, "0"):
            print(f"{TICK}{done} {total}", flush=True)

    work = Work(
        key=job["key"],
        settings=module.Settings.model_validate(job["settings"]),
        inputs={name: Path(place) for name, place in job["inputs"].items()},
        seed=job["seed"],
        out=Path(job["out"]),
        scratch=Path(job["scratch"]),
        hardware=hardware,
        tick=tick,
    )
    if rank is not None and device_of(hardware) == "cuda":
        import torch

        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # before a model is loaded: "cuda" is the first GPU otherwise
    try:
        getattr(module, job["stage"])(work)
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
