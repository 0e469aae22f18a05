"""One stage at a time on a GPU. No GPU is needed: the lock is taken for the device a recipe names, whatever is there."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.recipe.settings import Hardware
from data.store.locks import LockHeld, locked
from data.store.store import Artifact, Store
from tasks.run.stage import Notes, describe, perform
from tasks.run.work import gpus, stage_module

CHECKOUT = Path(__file__).parents[1]
GPU = Hardware(device="cuda", isolation="inline")
QUIET = Notes()

STAGE = """
import time
from pydantic import BaseModel
VERSION = 1
LIBRARIES = ("torch",)
class Settings(BaseModel):
    then: str = ""
def on_gpu(work):
    exec(work.settings.then)
    (work.out / "out.txt").write_text("made")
"""


@pytest.fixture(autouse=True)
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A throw-away stage that loads models, and GPU 7, whose lock lies in the test's own folder."""
    path = tmp_path / "on_gpu.py"
    path.write_text(STAGE)
    load(path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield path
    del sys.modules["tasks.run.on_gpu"]


def load(path: Path) -> None:
    spec = importlib.util.spec_from_file_location("tasks.run.on_gpu", path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["tasks.run.on_gpu"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def lock_of(gpu: str) -> Path:
    return Path(tempfile.gettempdir()) / f"ratchet-{os.getuid()}-gpu-{gpu}.lock"


def run(store: Store, then: str = "", hardware: Hardware = GPU, notes: Notes = QUIET) -> Artifact:
    return perform(
        store, stage_module("on_gpu").on_gpu, stage_module("on_gpu").Settings(then=then), {}, hardware=hardware, notes=notes
    )


def test_a_stage_waits_for_the_gpu_and_says_so(tmp_path: Path) -> None:
    # Claim: while somebody else computes on the GPU a stage waits, and says for what; the same stage on a CPU does not.
    store, said, made = Store(tmp_path / "store"), [], []
    waits = threading.Event()

    def warn(text: str) -> None:
        said.append(text)
        waits.set()

    with locked(lock_of("7")):
        assert not run(store, then="pass  # on a CPU", hardware=Hardware(device="cpu")).reused
        thread = threading.Thread(target=lambda: made.append(run(store, notes=Notes(warn=warn))))
        thread.start()
        assert waits.wait(30)
        assert not made
    thread.join(30)
    assert said == ["on_gpu: GPU 7 is busy; waiting for it"]
    assert not made[0].reused


def test_the_gpu_is_free_while_a_stage_waits_for_an_artifact(tmp_path: Path) -> None:
    # Claim: a stage that waits for another process to finish its artifact does not hold the GPU meanwhile.
    store, waits = Store(tmp_path / "store"), threading.Event()
    key = describe(stage_module("on_gpu").on_gpu, stage_module("on_gpu").Settings(), {}, 0).key
    with store.attempt(key):
        thread = threading.Thread(target=lambda: run(store, notes=Notes(warn=lambda text: waits.set())))
        thread.start()
        assert waits.wait(30)
        with locked(lock_of("7"), wait=False):
            pass
    thread.join(30)
    assert store.keys() == [key]


def test_the_lock_is_held_only_while_the_stage_runs(tmp_path: Path) -> None:
    # Claim: it is taken for the computation, freed after it, also where the stage fails.
    held = "from tests.test_gpu_lock import taken; assert taken('7')"
    run(Store(tmp_path / "store"), then=held)
    with pytest.raises(ZeroDivisionError):
        run(Store(tmp_path / "store"), then="1 / 0")
    assert not taken("7")


def taken(gpu: str) -> bool:
    try:
        with locked(lock_of(gpu), wait=False):
            return False
    except LockHeld:
        return True


RUN = """
import sys, tempfile
from pathlib import Path
from data.store.store import Store
from tests import test_gpu_lock as t
place, source = sys.argv[1:]
tempfile.tempdir = str(Path(place))
t.load(Path(source))
t.run(t.Store(Path(place) / "store"), then="print('holds', flush=True); time.sleep(600)")
"""


def test_a_killed_run_frees_the_gpu_at_once(tmp_path: Path, source: Path) -> None:
    # Claim: after SIGKILL the next stage starts at once; nothing has to time out.
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-c", RUN, str(tmp_path), str(source)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "holds\n"
        assert taken("7")
        psutil.Process(victim.pid).send_signal(signal.SIGKILL)
        victim.wait()
    assert not taken("7")


def test_what_needs_no_gpu_passes(tmp_path: Path) -> None:
    # Claim: a stage that loads no model, or asks a server, does not queue for the GPU; one whose part takes a device does.
    from tasks.run.stage import on_gpu

    settings = {name: stage_module(name).Settings for name in ("draw", "score", "generate", "train", "logprobs")}
    assert not on_gpu(describe(stage_module("draw").draw, settings["draw"](count=1, split="rounds"), {}, 0), GPU)
    assert not on_gpu(
        describe(stage_module("score").score, settings["score"](scorer="exact_match", settings={}, split="rounds"), {}, 0), GPU
    )
    own = settings["score"](scorer="tests.test_gpu_lock:judge", settings={}, split="rounds")
    assert on_gpu(describe(stage_module("score").score, own, {}, 0), GPU)
    assert not on_gpu(describe(stage_module("score").score, own, {}, 0), Hardware(device="cpu"))
    server = {"url": "http://127.0.0.1:9/v1", "model": "m"}
    asks = {"template": "additive5", "engine": "endpoint", "engine_settings": server}
    for how, taken in ((asks, False), ({"template": "additive5"}, True)):
        judged = settings["score"](scorer="judge", settings=how, split="rounds")
        assert on_gpu(describe(stage_module("score").score, judged, {}, 0), GPU) == taken
    drawn: dict[str, Any] = {
        "dtype": "float32",
        "trust_remote_code": False,
        "split": "rounds",
        "n": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 8,
        "batch": 8,
        "shard": 8,
    }
    for engine, taken in (("endpoint", False), ("transformers", True)):
        how = settings["generate"](engine=engine, settings=server if engine == "endpoint" else {}, **drawn)
        assert on_gpu(describe(stage_module("generate").generate, how, {}, 0), GPU) == taken
    for stage in ("generate", "train", "logprobs"):
        assert "torch" in stage_module(stage).LIBRARIES


def judge(prompts: object, completions: object, *, device: str = "cpu") -> None:
    """A scorer that would load a model."""


def test_gpus_are_locked_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: a run that sees two GPUs takes both, always in the same order.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, 0")
    assert gpus() == ["0", "1"]
