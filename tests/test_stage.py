from __future__ import annotations

import errno
import functools
import importlib
import importlib.util
import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import BaseModel

from data.errors import HomeError, LimitReached, ScorerFailed, StageFailed
from data.recipe.recipe import load
from data.recipe.settings import Hardware
from data.store.store import Artifact, External, Store, sha256_file
from tasks.run import failure, fingerprint, worker
from tasks.run import stage as running
from tasks.run.stage import Notes, describe, perform
from tasks.run.work import Work, chunks, stage_module

CHECKOUT = Path(__file__).parents[1]
CPU = Hardware(device="cpu", isolation="inline")
QUIET = Notes()
APART = Hardware(device="cpu", isolation="process")
PROMPTS = load("tiny_raft").prompts.model_copy(update={"rounds": 30, "held_out": 9, "test": 5, "ood": 3, "probe": 2, "seed": 4})

STAGE = """
import os, time
from pydantic import BaseModel
VERSION = 1
LIBRARIES = ("numpy",)
class Settings(BaseModel):
    text: str = "text"
    then: str = ""
def toy(work):
    (work.scratch / "shard").touch() if "shard" in work.settings.then else None
    exec(work.settings.then)
    read = [(path / "out.txt").read_text() for _, path in sorted(work.inputs.items())]
    (work.out / "out.txt").write_text(f"{work.settings.text} {work.seed} {read}")
"""


@dataclass
class Watched:
    """Notes that remember."""

    said: list[str] = field(default_factory=list)
    refresh: frozenset[str] = frozenset()

    @property
    def notes(self) -> Notes:
        return Notes(warn=self.said.append, refresh=self.refresh)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """A throw-away stage `toy` in a file of its own, which a test may edit and `reload`."""
    path = tmp_path / "toy.py"
    path.write_text(STAGE)
    reload(path)
    yield path
    del sys.modules["tasks.run.toy"]
    fingerprint.forget()


def reload(path: Path) -> None:
    """What a new process would see."""
    spec = importlib.util.spec_from_file_location("tasks.run.toy", path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["tasks.run.toy"] = module = importlib.util.module_from_spec(spec)
    exec(compile(path.read_text(), path, "exec"), module.__dict__)
    fingerprint.forget()


def settings(**values: Any) -> BaseModel:
    made: BaseModel = stage_module("toy").Settings(**values)
    return made


def toy(store: Store, seed: int = 0, hardware: Hardware = CPU, notes: Notes = QUIET, **values: Any) -> Artifact:
    inputs = values.pop("inputs", {})
    return perform(store, stage_module("toy").toy, settings(**values), inputs, seed=seed, hardware=hardware, notes=notes)


# -- reuse ------------------------------------------------------------------------------------------------------------


def test_a_stage_is_computed_once(store: Store, source: Path) -> None:
    # the same call a second time does no work and says that it reused
    made = toy(store)
    assert not made.reused
    assert made.file("out.txt").read_text() == "text 0 []"
    log = store.folder(made.key) / "log.json"
    before = log.stat().st_mtime_ns
    assert toy(store) == replace(made, reused=True)
    assert log.stat().st_mtime_ns == before


def test_what_shapes_the_output_is_in_the_key(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # settings, inputs' digests, names of inputs, seed, VERSION and libraries each make another artifact
    one, two = toy(store), toy(store, seed=2)
    jobs = [
        describe(stage_module("toy").toy, settings(), {}, 0),
        describe(stage_module("toy").toy, settings(text="other"), {}, 0),
        describe(stage_module("toy").toy, settings(), {}, 1),
        describe(stage_module("toy").toy, settings(), {"a": one}, 0),
        describe(stage_module("toy").toy, settings(), {"a": two}, 0),
        describe(stage_module("toy").toy, settings(), {"b": two}, 0),
        describe(stage_module("toy").toy, settings(), {"a": one, "b": two}, 0),
    ]
    monkeypatch.setattr(sys.modules["tasks.run.toy"], "VERSION", 2)
    jobs.append(describe(stage_module("toy").toy, settings(), {}, 0))
    monkeypatch.setattr(sys.modules["tasks.run.toy"], "LIBRARIES", ("numpy", "scipy"), raising=False)
    jobs.append(describe(stage_module("toy").toy, settings(), {}, 0))
    assert len({job.key for job in jobs}) == len(jobs)
    assert one.key == jobs[0].key


def test_a_bound_part_is_in_the_key(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a scorer that changes makes the scores anew, nothing else
    before = describe(stage_module("toy").toy, settings(), {}, 0)
    monkeypatch.setattr(sys.modules["tasks.run.toy"], "parts", lambda settings: [("scorers", "exact_match")], raising=False)
    job = describe(stage_module("toy").toy, settings(), {}, 0)
    assert job.parts == {"scorers:exact_match": "1"}
    assert job.key != before.key
    # and its code is in the fingerprint that the manifest keeps
    bound, alone = fingerprint.fingerprint("toy", job.parts), fingerprint.fingerprint("toy")
    assert store.manifest(toy(store).key)["fingerprint"] == bound != alone


def test_hardware_and_places_are_in_no_key(store: Store, source: Path, tmp_path: Path) -> None:
    # a campaign moves to another machine, another folder or more workers and finds its artifacts
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "out.txt").write_text("mine")
    digest = sha256_file(one / "out.txt")
    made = toy(store, inputs={"own": External(digest, one)})
    elsewhere = Hardware(device="cuda", workers=9, isolation="process", prefect=False)
    assert toy(store, hardware=elsewhere, inputs={"own": External(digest, two)}) == replace(made, reused=True)
    upstream = toy(store, seed=5)
    job = describe(stage_module("toy").toy, settings(), {"a": upstream}, 0)
    assert job == describe(
        stage_module("toy").toy, settings(), {"a": replace(upstream, path=two, key="other", absent="evicted")}, 0
    )


def test_a_manifest_says_how_to_make_it_again(store: Store, source: Path) -> None:
    # everything a later day needs is in the manifest; times and what an earlier attempt left are beside it
    one = toy(store)
    made = toy(store, seed=3, text="b", inputs={"a": one})
    manifest = store.manifest(made.key)
    assert manifest["input_keys"] == {"a": one.key}
    assert manifest["job"]["inputs"] == {"a": one.digest}
    assert manifest["job"]["settings"] == {"text": "b", "then": ""}
    assert manifest["fingerprint"] == fingerprint.fingerprint("toy")
    assert json.loads((store.folder(made.key) / "log.json").read_text())["seconds"] >= 0


# -- failure ----------------------------------------------------------------------------------------------------------


def test_a_failed_stage_leaves_no_artifact(store: Store, source: Path) -> None:
    # nothing half-made is ever found, nothing is left lying about, and the next attempt may succeed
    fails = "(work.out / 'half').touch(); 1 / (0 if not os.environ.get('TOY') else 1)"
    with pytest.raises(ZeroDivisionError):
        toy(store, then=fails)
    assert store.keys() == []
    assert list((store.root / "partial").iterdir()) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY", "1")
        assert not toy(store, then=fails).reused


def test_what_a_failed_stage_had_finished_is_kept(store: Store, source: Path) -> None:
    # the shards in scratch are there for the next attempt, which says what it found; the payload starts empty
    fails = "os.environ['TOY']  # after the first shard"
    with pytest.raises(KeyError):
        toy(store, then=fails)
    key = describe(stage_module("toy").toy, settings(then=fails), {}, 0).key
    assert [path.name for path in store.scratch(key).iterdir()] == ["shard"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY", "1")
        made = toy(store, then=fails)
    assert json.loads((store.folder(key) / "log.json").read_text())["found"] == ["shard"]
    assert sorted(store.manifest(made.key)["files"]) == ["out.txt"]
    assert list((store.root / "partial").iterdir()) == []


@pytest.mark.parametrize("where", ["stage", "commit"])
def test_a_full_disk_is_the_homes_problem(store: Store, source: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # "no room" says where and what to do; the same command goes on afterwards
    @functools.wraps(stage_module("toy").toy)
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((stage_module("toy"), "toy", full) if where == "stage" else (Store, "commit", full)))
    with pytest.raises(HomeError, match=f"toy: no space left on {store.root}"):
        toy(store)
    monkeypatch.undo()
    assert not toy(store).reused


def test_a_full_disk_in_a_process_of_its_own_is_the_homes_problem(store: Store, apart: Callable[..., Artifact]) -> None:
    # where the stage ran makes no difference to what the command line says
    with pytest.raises(HomeError, match=f"^toy: no space left on {store.root}"):
        apart(store, then="import errno; raise OSError(errno.ENOSPC, 'No space left on device')")


SAVE = (
    "import resource, torch; from safetensors.torch import save_file; "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.getrlimit(resource.RLIMIT_FSIZE)[1])); "
    "save_file({'w': torch.zeros(100_000)}, str(work.out / 'model.safetensors'))"
)


def test_a_models_save_that_does_not_fit_is_one_line(store: Store, apart: Callable[..., Artifact]) -> None:
    # safetensors has an error type of its own; a real limit of the system stops the file in the midst of it
    with pytest.raises(LimitReached, match=r"^toy: expected enough file size, found its limit reached .*ulimit -f.*again$"):
        apart(store, then=SAVE)
    assert store.keys() == []


def test_other_errors_of_the_system_keep_their_name(store: Store, source: Path) -> None:
    # only "no room" is about room
    with pytest.raises(FileNotFoundError):
        toy(store, then="open('/nowhere')")


# -- damage and eviction ----------------------------------------------------------------------------------------------


def test_a_damaged_artifact_is_made_again(store: Store, source: Path) -> None:
    # it comes out the same, and the one warning says what happened and where the evidence is
    made, watched = toy(store), Watched()
    made.file("out.txt").write_text("changed")
    again = toy(store, notes=watched.notes)
    assert (again.digest, again.absent) == (made.digest, "")
    assert again.file("out.txt").read_text() == "text 0 []"
    [line] = watched.said
    assert line == f"toy {made.key[:12]} was damaged and moved to {store.root / 'quarantine'}; recomputing it"


def flip(artifact: Artifact) -> None:
    """Change a bit and keep size and time, as a rotting disk does."""
    path = artifact.file("out.txt")
    before, data = path.stat(), bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_what_training_starts_from_is_hashed(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a flipped bit with the file's time kept is found before it is trained on, and made again; other stages trust the time
    first, watched = toy(store, seed=1), Watched()
    sound = first.file("out.txt").read_text()
    monkeypatch.setattr(stage_module("toy"), "LAUNCHED", True, raising=False)
    flip(first)
    trained = toy(store, text="b", inputs={"checkpoint": first}, notes=watched.notes)
    assert trained.file("out.txt").read_text() == f"b 0 ['{sound}']"
    assert any("was damaged" in line for line in watched.said)
    assert (store.root / "quarantine").exists()
    monkeypatch.setattr(stage_module("toy"), "LAUNCHED", False)
    flip(first)
    assert sound not in toy(store, text="c", inputs={"checkpoint": first}).file("out.txt").read_text()  # what is not promised
    assert len(store.verify()) == 1


def test_an_evicted_artifact_counts_as_done(store: Store, source: Path) -> None:
    # dropping old weights never forces recomputing: the digest is all that later keys need
    made = toy(store)
    store.evict(made.key)
    assert toy(store) == replace(made, absent="evicted", reused=True)


@pytest.mark.parametrize("how", ["evicted", "damaged"])
def test_absent_inputs_are_made_again_from_their_manifests(store: Store, source: Path, how: str) -> None:
    # recursively, each with the settings, seed and inputs of its manifest, each with the digest it had
    first = toy(store, seed=1)
    second = toy(store, text="b", seed=2, inputs={"a": first})
    for artifact in (first, second):
        if how == "evicted":
            store.evict(artifact.key)
        else:
            artifact.file("out.txt").unlink()
    watched = Watched()
    third = toy(store, inputs={"b": second, "a": first}, notes=watched.notes)
    one = ["text 1 []"]
    assert third.file("out.txt").read_text() == f"text 0 {[*one, f'b 2 {one}']}"
    assert [store.find(artifact.key) for artifact in (first, second)] == [replace(a, reused=True) for a in (first, second)]
    assert [line.split()[-4:] for line in watched.said] == [["was", f"{how};", "recomputing", "it"]] * 2
    assert store.verify() == []


def test_an_input_that_comes_out_different_is_never_used(store: Store, source: Path) -> None:
    # the round that follows was decided on the old bytes; other ones under its name would falsify it
    first = toy(store, then="work.settings.text = str(time.time_ns())")
    store.evict(first.key)
    with pytest.raises(StageFailed, match=f"toy {first.key[:12]}: expected the digest {first.digest[:12]} again, found "):
        toy(store, inputs={"a": first})
    assert describe(stage_module("toy").toy, settings(), {"a": first}, 0).key not in store.keys()


def test_an_input_without_a_manifest_is_named(store: Store, source: Path) -> None:
    # where nobody knows any more how it was made, the failure says which artifact is gone and what to do
    first = toy(store, seed=1)
    second = toy(store, inputs={"a": first})
    os.truncate(store.folder(first.key) / "manifest.json", 50)
    with pytest.raises(
        StageFailed, match=rf"cannot recompute toy {first.key[:12]}: expected its manifest .*; resume the campaign"
    ):
        toy(store, text="c", inputs={"a": first})
    store.evict(second.key)
    with pytest.raises(StageFailed, match=rf"cannot recompute toy {second.key[:12]}: expected its input 'a' in the store"):
        toy(store, inputs={"b": second})
    assert toy(store, seed=1).digest == first.digest
    assert not toy(store, inputs={"b": second}).reused


def test_a_users_own_file_cannot_be_made_again(store: Store, source: Path, tmp_path: Path) -> None:
    # an evicted artifact made of it says which input is gone instead of guessing a path
    (tmp_path / "out.txt").write_text("mine")
    first = toy(store, inputs={"file": External(sha256_file(tmp_path / "out.txt"), tmp_path)})
    store.evict(first.key)
    with pytest.raises(StageFailed, match="expected its input 'file' in the store, found none"):
        toy(store, inputs={"a": first})


# -- changed source ---------------------------------------------------------------------------------------------------


def test_changed_source_without_a_version_warns_and_refresh_makes_it_again(store: Store, source: Path) -> None:
    # an edit is never silently ignored and never silently recomputed; comments and layout are no edit
    made = toy(store)
    source.write_text(STAGE.replace("def toy", "# a comment\n\n\ndef toy"))
    reload(source)
    watched = Watched()
    assert toy(store, notes=watched.notes) == replace(made, reused=True)
    assert watched.said == []
    source.write_text(STAGE.replace('{read}"', '{read}!"'))
    reload(source)
    assert toy(store, notes=watched.notes) == replace(made, reused=True)
    assert len(watched.said) == 1
    assert watched.said[0].startswith("toy: its source changed since this artifact was made, but its VERSION did not; reusing")
    watched = Watched(refresh=frozenset({"toy"}))
    again = toy(store, notes=watched.notes)
    assert again.file("out.txt").read_text() == "text 0 []!"
    assert not again.reused
    assert watched.said == []
    assert toy(store, notes=watched.notes) == replace(again, reused=True)
    [place] = (store.root / "quarantine").iterdir()
    assert (place / "why.txt").read_text() == "--refresh toy\n"


def test_changed_source_warns_once_per_stage_and_run(store: Store, source: Path) -> None:
    # an edit of a file that every stage imports concerns hundreds of artifacts: a run warns once per stage
    for seed in range(3):
        toy(store, seed=seed)
    source.write_text(STAGE.replace('{read}"', '{read}!"'))
    reload(source)
    watched = Watched()
    notes = watched.notes
    for seed in range(3):
        assert toy(store, seed=seed, notes=notes).reused
    assert len(watched.said) == 1
    assert toy(store, notes=watched.notes).reused  # the next run says it again
    assert len(watched.said) == 2


def test_refresh_leaves_unchanged_source_alone(store: Store, source: Path) -> None:
    # --refresh of a stage that did not change costs nothing
    made = toy(store)
    assert toy(store, notes=Watched(refresh=frozenset({"toy"})).notes) == replace(made, reused=True)


# -- a process of its own ---------------------------------------------------------------------------------------------


def prepared(store: Store, hardware: Hardware) -> Artifact:
    values = stage_module("prepare").Settings(**PROMPTS.model_dump())
    return perform(store, stage_module("prepare").prepare, values, {}, seed=7, hardware=hardware)


def test_a_stage_apart_makes_the_same_bytes(store: Store, tmp_path: Path) -> None:
    # isolation is where, not what: prepare and draw come out with the same keys and digests inline and in a process
    def both(hardware: Hardware, place: Store) -> list[Artifact]:
        prompts = prepared(place, hardware)
        draw = stage_module("draw").Settings(count=10, split="rounds")
        return [prompts, perform(place, stage_module("draw").draw, draw, {"prompts": prompts}, seed=1, hardware=hardware)]

    inline, apart = both(CPU, store), both(APART, Store(tmp_path / "apart"))
    assert [(a.key, a.digest, a.reused) for a in inline] == [(a.key, a.digest, a.reused) for a in apart]


APART_STAGE = """
import sys
sys.path.insert(0, {folder!r})
import tasks.run
tasks.run.__path__.append({folder!r})
"""


@pytest.fixture
def apart(source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Artifact]:
    """Runs the throw-away stage in a process of its own, which finds it through a sitecustomize on PYTHONPATH."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(APART_STAGE.format(folder=str(source.parent)))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return lambda store, **values: toy(store, hardware=APART, **values)


def test_one_process_trains_on_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    # of several GPUs a training sees the first, or the Trainer would spread its batches; engines and launched ones see all
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    here = Hardware(device="cuda")
    assert worker._first_gpu("train", here) == {"CUDA_VISIBLE_DEVICES": "3"}
    assert worker._first_gpu("train", here.model_copy(update={"accelerate": "two.yaml"})) == {}
    assert worker._first_gpu("generate", here) == worker._first_gpu("train", Hardware(device="cpu")) == {}


def test_vllm_ends_with_its_stage(store: Store, apart: Callable[..., Artifact]) -> None:
    # its engine runs in the stage's process: in one of its own it would outlive a kill, and hold the GPU
    said = "import os; (work.out / 'said').write_text(os.environ['VLLM_ENABLE_V1_MULTIPROCESSING'])"
    assert apart(store, then=said).file("said").read_text() == "0"


def test_a_stage_apart_reports_its_progress(store: Store, apart: Callable[..., Artifact]) -> None:
    # ticks cross the process border, other output does not disturb them
    ticks: list[tuple[int, int]] = []
    notes = Notes(tick=lambda done, total: ticks.append((done, total)))
    made = apart(store, then="for i in range(4): work.tick(i, 3); print('noise')", notes=notes)
    assert ticks == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert sorted(store.manifest(made.key)["files"]) == ["out.txt"]


CUDA = """CUDA error: device-side assert triggered
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."""


def test_a_stage_apart_that_fails_says_why(
    store: Store, apart: Callable[..., Artifact], capfd: pytest.CaptureFixture[str]
) -> None:
    # all lines of the child's message with its type, its traceback on stderr, its shards kept; the artifact's log tells later
    # what the failed attempt died of
    fails = f"if 'TOY' not in os.environ: raise RuntimeError({CUDA!r})  # after a shard"
    with pytest.raises(StageFailed) as failed:
        apart(store, then=fails)
    assert str(failed.value) == f"toy: RuntimeError: {CUDA}"
    assert type(failed.value) is StageFailed
    assert "Traceback" in capfd.readouterr().err
    key = describe(stage_module("toy").toy, settings(then=fails), {}, 0).key
    assert sorted(path.name for path in store.scratch(key).iterdir()) == ["failures.jsonl", "shard"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY", "1")
        apart(store, then=fails)
    [kept] = json.loads((store.folder(key) / "log.json").read_text())["failures"]
    assert (kept["type"], kept["message"]) == ("RuntimeError", CUDA)
    assert kept["traceback"].startswith("Traceback")
    assert "exec(work.settings.then)" in kept["traceback"]


def test_our_own_errors_keep_their_type(store: Store, apart: Callable[..., Artifact]) -> None:
    # what the command line does with an error does not depend on where the stage ran
    message = "'good' is no number\nrow 7 of the scores"
    with pytest.raises(ScorerFailed) as failed:
        apart(store, then=f"from data.errors import ScorerFailed; raise ScorerFailed({message!r})")
    assert str(failed.value) == message
    impostor = "class ScorerFailed(Exception): pass\nraise ScorerFailed('of another library')"
    with pytest.raises(StageFailed, match=r"^toy: ScorerFailed: of another library$") as other:
        apart(store, then=impostor)
    assert type(other.value) is StageFailed


@pytest.mark.parametrize(
    ("then", "says"),
    [
        (
            "sys.stderr.write('no licence\\nfor this host\\n'); os._exit(3)",
            "exit code 3; its last lines:\nno licence\nfor this host",
        ),
        ("import sys; print('a word', flush=True); os._exit(4)", "exit code 4; its last lines:\na word"),
        ("os._exit(5)", "exit code 5 and no output"),
        ("raise SystemExit('stopped by a library')", "exit code 1; its last lines:\nstopped by a library"),
    ],
)
def test_a_stage_that_ends_without_an_error_shows_its_last_lines(
    store: Store, apart: Callable[..., Artifact], then: str, says: str
) -> None:
    # a library may end the process by itself: there is no error to hand back, only what it printed
    with pytest.raises(StageFailed) as failed:
        apart(store, then=f"import sys; {then}")
    assert str(failed.value) == f"toy: its process ended with {says}"


def test_of_several_ranks_the_first_error_is_handed_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the others fail because it is gone; a killed rank comes before what they say of it (with real ranks: test_processes.py)
    def left_by_both() -> None:
        for rank, message in (("1", "the cause\nin two lines"), ("0", "Connection closed by peer")):
            monkeypatch.setenv("RANK", rank)
            failure.write(tmp_path, RuntimeError(message))

    left_by_both()
    assert str(failure.error_of("train", 1, tmp_path, "")) == "train: RuntimeError: the cause\nin two lines"
    assert [fields["message"] for fields in failure.earlier(tmp_path)] == ["the cause\nin two lines"]
    left_by_both()
    summary = "rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 77)  (SIGKILL)\n"
    assert "the process of rank 1 was killed by SIGKILL" in str(failure.error_of("train", 1, tmp_path, summary))


def test_a_worker_that_cannot_start_shows_its_last_lines(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # an error in what the worker itself imports comes before it could write anything
    (source.parent / "sitecustomize.py").write_text("import sys\nsys.modules['psutil'] = sys.modules['pydantic'] = None\n")
    monkeypatch.syspath_prepend(str(source.parent))
    with pytest.raises(StageFailed, match=r"^toy: its process ended with exit code 1; its last lines:\n(.*\n)+.*pydantic"):
        toy(store, hardware=APART)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_stage_names_the_signal(store: Store, apart: Callable[..., Artifact], number: signal.Signals) -> None:
    # out of memory looks like SIGKILL: it fails the stage, not the machine, and leaves no artifact
    with pytest.raises(StageFailed, match=f"toy: its process was killed by {number.name}"):
        apart(store, then=f"os.kill(os.getpid(), {int(number)})")
    assert store.keys() == []
    assert list((store.root / "partial").iterdir()) == []


PARENT = """
import sys
from pathlib import Path
from data.recipe.settings import Hardware
from data.store.store import Store
from tasks.run.stage import Notes, perform
from tasks.run.work import stage_module
place, then = sys.argv[1:]
values = stage_module("toy").Settings(then=then)
notes, hardware = Notes(tick=lambda done, total: print(done, flush=True)), Hardware(device="cpu", isolation="process")
perform(Store(Path(place)), stage_module("toy").toy, values, {}, hardware=hardware, notes=notes)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stage_never_outlives_its_parent(store: Store, apart: Callable[..., Artifact], number: signal.Signals) -> None:
    # after kill -9 or Ctrl-C no orphan keeps the GPU, and the artifact can be made at once
    then = "work.tick(os.getpid(), 0); time.sleep(0 if os.environ.get('TOY') else 60)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), *sys.path])}
    command = [sys.executable, "-c", PARENT, str(store.root), then]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.ppid() == parent.pid
        parent.send_signal(number)
        gone, _ = psutil.wait_procs([child], timeout=10)
    assert gone == [child]
    assert store.keys() == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY", "1")
        assert not toy(store, then=then).reused


def test_a_worker_whose_parent_is_already_gone_stops() -> None:
    # between fork and the request to die with its parent the parent may be gone: the worker notices
    code = "from tasks.run.worker import die_with_parent; die_with_parent(1); print('lives')"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "has ended" in done.stderr


# -- small parts ------------------------------------------------------------------------------------------------------


def test_where_a_stage_runs_follows_the_recipe() -> None:
    # inline on a CPU, a process on a GPU, unless the recipe says otherwise
    assert not running.own_process(Hardware(device="cpu"))
    assert running.own_process(Hardware(device="cuda"))
    assert running.own_process(APART)
    assert not running.own_process(Hardware(device="cuda", isolation="inline"))


@pytest.mark.parametrize(("total", "size"), [(0, 3), (1, 3), (3, 3), (10, 3)])
def test_chunks_drop_nothing(total: int, size: int) -> None:
    # shards cover every row once, the last one is the remainder
    assert [i for chunk in chunks(total, size) for i in chunk] == list(range(total))
    assert all(len(chunk) == size for chunk in list(chunks(total, size))[:-1])


STAGES = sorted(path.stem for path in (CHECKOUT / "tasks").glob("*/*.py") if "\nVERSION = " in path.read_text())


def test_no_two_stages_share_a_name() -> None:
    # a manifest names its stage by name alone
    assert len(STAGES) == len(set(STAGES)) >= 30


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_keeps_the_contract(name: str) -> None:
    # a function named like its module taking one Work, a Settings model, an integer VERSION, and libraries that exist
    module = stage_module(name)
    assert inspect.signature(getattr(module, name), eval_str=True).parameters["work"].annotation is Work
    assert issubclass(module.Settings, BaseModel)
    assert module.Settings.model_config["extra"] == "forbid"  # a misspelt setting would silently be the default
    assert isinstance(module.VERSION, int)
    for library in module.LIBRARIES:
        assert importlib.metadata.version(library)
    assert getattr(module, name).__doc__
