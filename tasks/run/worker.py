"""One stage in a process of its own: `python -m tasks.run.worker JOB.json`. Its end surely frees the GPU's memory.

If the recipe names an accelerate configuration, a training stage becomes several processes. This process then turns into
`accelerate launch`, which starts this module once per rank. Rank 0 reports progress and writes the artifact.
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

from data.limits import exhausted
from data.recipe.settings import Hardware
from tasks.run import failure
from tasks.run.work import Work, device_of, gpus, stage_module

TICK = "ratchet-tick "  # starts a line of progress on stdout
END = 100_000  # bytes of a child's stderr that are kept: enough for torch's summary of failed ranks and the lines before it
PR_SET_PDEATHSIG = 1


def run_apart(stage: str, work: Work) -> None:
    """Run a stage in a child process and pass its progress on. The child never outlives this process.

    Raises:
        RatchetError: the stage raised one of our own errors. It keeps its type.
        StageFailed: the stage raised any other error, named with its type and whole message, or a signal killed the child.
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
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([checkout, *sys.path])} | _first_gpu(stage, work.hardware)
    failure.clear(work.scratch)
    command = [sys.executable, "-m", "tasks.run.worker", str(job)]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=_leave_ctrl_c_to_the_parent,
    )
    code, output = _attend(child, work)
    job.unlink(missing_ok=True)
    if code:
        raise failure.error_of(stage, code, work.scratch, output)


def _leave_ctrl_c_to_the_parent() -> None:
    """A terminal sends Ctrl-C to the child too, which would print a traceback. The parent ends the child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _attend(child: subprocess.Popen[str], work: Work) -> tuple[int, str]:
    """Pass on a child's progress and stderr until it ends. Returns its exit code and the end of its output."""
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
        listener.join(timeout=5)  # a process that the child started may still keep the pipe open
    finally:
        _end(child)
    return code, "".join(lines) + errors.decode(errors="replace")


def _pass_on(pipe: IO[str], end: bytearray) -> None:
    """Copy a pipe to this process's stderr as data arrives, and collect its last bytes in `end`."""
    with pipe:
        while chunk := os.read(pipe.fileno(), 65536):
            with contextlib.suppress(OSError):  # this process may have no stderr; the child must not block
                os.write(2, chunk)
            end += chunk
            del end[:-END]


def _end(child: subprocess.Popen[str]) -> None:
    """Terminate a child that still runs, because this process was interrupted."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdout is not None:
        child.stdout.close()


def _first_gpu(stage: str, hardware: Hardware) -> dict[str, str]:
    """The environment that shows training in one process the first GPU only. The Trainer would spread batches over all GPUs."""
    one_process = getattr(stage_module(stage), "LAUNCHED", False) and not hardware.accelerate and device_of(hardware) == "cuda"
    return {"CUDA_VISIBLE_DEVICES": gpus()[0]} if one_process else {}


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies, even by SIGKILL. Exits if the parent is dead already.

    Also makes vLLM run inside this process: a process of its own would survive and keep the GPU's memory.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that started this stage has ended")


def main(path: str) -> int:
    try:
        _work(path)
    except Exception as error:
        failure.write(Path(path).parent, error)
        traceback.print_exc()
        return 1
    return 0


def _work(path: str) -> None:
    """Run the job of a file, or turn into the launcher of the processes that run it."""
    job: dict[str, Any] = json.loads(Path(path).read_text())
    module, hardware = stage_module(job["stage"]), Hardware.model_validate(job["hardware"])
    rank = os.environ.get("RANK")
    die_with_parent(job["parent"] if rank is None else os.getppid())
    if rank is None and hardware.accelerate and getattr(module, "LAUNCHED", False):
        launch = ["-m", "accelerate.commands.launch", "--config_file", hardware.accelerate, "-m", "tasks.run.worker", path]
        if device_of(hardware) == "cpu":
            os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # the default "cpu:0" cannot load a saved optimizer
        os.execv(sys.executable, [sys.executable, *launch])  # it still dies with its parent: exec keeps that

    def tick(done: int, total: int) -> None:
        if rank in (None, "0"):
            print(f"{TICK}{done} {total}", flush=True)

    work = Work(
        key=job["key"],
        settings=module.Settings.model_validate(job["settings"]),
        inputs={name: Path(path) for name, path in job["inputs"].items()},
        seed=job["seed"],
        out=Path(job["out"]),
        scratch=Path(job["scratch"]),
        hardware=hardware,
        tick=tick,
    )
    if rank is not None and device_of(hardware) == "cuda":
        import torch

        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # before a model is loaded; the default is the first GPU
    try:
        getattr(module, job["stage"])(work)
    except Exception as error:
        if limit := exhausted(error, job["stage"], work.out.parents[2]):
            raise limit from error
        raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
