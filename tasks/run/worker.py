"""One stage in a process of its own: `python -m tasks.run.worker JOB.json`. The sure way to give a GPU's memory back.

A stage that trains becomes several processes where the recipe names an accelerate configuration: this process turns into
`accelerate launch`, which starts this module once per rank. Rank 0 speaks and writes the artifact.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from pathlib import Path
from typing import IO, Any

from data.recipe.settings import Hardware
from tasks.run import failure
from tasks.run.work import Work, device_of, gpus, stage_module

TICK = "ratchet-tick "
END = 100_000  # bytes of a child's stderr that are kept: torch's summary of failed ranks and what was printed before it
PR_SET_PDEATHSIG = 1


def run_apart(stage: str, work: Work) -> None:
    """Run a stage in a child process, passing its progress on; the child never outlives this process.

    Raises:
        RatchetError: one of ours that the stage raised, as its own type.
        StageFailed: anything else, with its type and its whole message; or the child was killed (the signal).
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
    failure.clear(work.scratch)
    command = [sys.executable, "-m", "tasks.run.worker", str(job)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    code, output = _attend(child, work)
    job.unlink(missing_ok=True)
    if code:
        raise failure.error_of(stage, code, work.scratch, output)


def _attend(child: subprocess.Popen[str], work: Work) -> tuple[int, str]:
    """Pass on a child's progress and its stderr until it ends; its exit code and the end of its output."""
    assert child.stdout is not None
    assert child.stderr is not None
    lines: deque[str] = deque(maxlen=failure.LINES)
    errors = bytearray()
    listener = threading.Thread(target=_pass_on, args=(child.stderr, errors), daemon=True)
    listener.start()
    try:
        for line in child.stdout:
            if line.startswith(TICK):
                done, total = line.removeprefix(TICK).split()
                work.tick(int(done), int(total))
            else:
                lines.append(line)
        code = child.wait()
        listener.join(timeout=5)  # a process that the child started may still hold the other end
    finally:
        _end(child)
    return code, "".join(lines) + errors.decode(errors="replace")


def _pass_on(pipe: IO[str], end: bytearray) -> None:
    """Copy a pipe to this process's stderr as it comes, and keep its end."""
    with pipe:
        while chunk := os.read(pipe.fileno(), 65536):
            with contextlib.suppress(OSError):  # this process has no stderr; the child must not wait for one
                os.write(2, chunk)
            end += chunk
            del end[:-END]


def _end(child: subprocess.Popen[str]) -> None:
    if child.poll() is None:  # interrupted: the child goes first
        child.terminate()
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdout is not None:
        child.stdout.close()


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
    try:
        _work(path)
    except Exception as error:
        failure.write(Path(path).parent, error)
        traceback.print_exc()
        return 1
    return 0


def _work(path: str) -> None:
    """Do the job of a file, or become the launcher of the processes that do it."""
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
    getattr(module, job["stage"])(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
