"""How a stage runs: find its artifact by key, or make it once, in this process or in one of its own.

A stage is a file `tasks/<folder>/<name>.py` with a function of the same name: `def generate(work: Work) -> None` writes its
payload into `work.out`. Beside the function are a `Settings` (StageSettings), an integer `VERSION` to raise when its output
changes, and the `LIBRARIES` that shape its output. If settings decide on more, `libraries(settings) -> (name, ...)` adds
libraries and `parts(settings) -> [(family, name)]` names the parts it uses.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from data.errors import HomeError, StageFailed
from data.recipe.settings import Hardware
from data.store.store import Artifact, External, Job, Store, locked
from tasks.run import failure
from tasks.run.fingerprint import fingerprint
from tasks.run.work import Stage, Tick, Work, device_of, give_back_memory, gpus, module_of, silent, stage_module

Input = Artifact | External
Around = Callable[[Work], AbstractContextManager[Work]]


@dataclass(frozen=True)
class Notes:
    """What a run tells the person who watches it."""

    tick: Tick = silent
    warn: Callable[[str], None] = lambda message: None
    use: Callable[[str], None] = lambda key: None  # told the key before the artifact is looked for
    refresh: frozenset[str] = frozenset()  # stages to make again where their source changed
    warned: set[str] = field(default_factory=set)  # stages whose changed source this run has warned about


def describe(stage: Stage, settings: BaseModel, inputs: Mapping[str, Input], seed: int) -> Job:
    """The Job of a stage call: everything that shapes its output."""
    from tasks.run.parts import libraries_of, version_of

    module = module_of(stage)
    bound = module.parts(settings) if hasattr(module, "parts") else []
    chosen = module.libraries(settings) if hasattr(module, "libraries") else ()
    libraries = {name: importlib.metadata.version(name) for name in (*module.LIBRARIES, *chosen)}
    for part in bound:
        libraries |= libraries_of(*part)
    return Job(
        stage=stage.__name__,
        version=module.VERSION,
        settings=settings.model_dump(mode="json"),
        inputs={name: artifact.digest for name, artifact in sorted(inputs.items())},
        seed=seed,
        parts={f"{family}:{name}": version_of(family, name) for family, name in bound},
        libraries=libraries,
    )


def perform(
    store: Store,
    stage: Stage,
    settings: BaseModel,
    inputs: Mapping[str, Input],
    *,
    seed: int = 0,
    hardware: Hardware,
    notes: Notes = Notes(),
    around: Around = contextlib.nullcontext,
) -> Artifact:
    """Return the stage's artifact, computing it only where no whole one exists. Where it is computed, `around` is entered with
    the work, and gives the work to be done.

    Raises:
        StageFailed: the stage could not finish; whatever it had committed to scratch is kept for the next attempt.
    """
    job = describe(stage, settings, inputs, seed)
    notes.use(job.key)
    found = _find(store, job, notes)
    if found is not None:
        return found
    with store.attempt(job.key, lambda: notes.warn(f"{job.stage}: another process is making this artifact; waiting for it")):
        found = _find(store, job, Notes())  # what there is to say has been said
        if found is not None:  # somebody else made it while we waited
            return found
        paths = {name: _present(store, artifact, hardware, notes) for name, artifact in inputs.items()}
        return _make(store, job, settings, inputs, paths, hardware, notes, around)


def _find(store: Store, job: Job, notes: Notes) -> Artifact | None:
    found = store.find(job.key)
    if found is None:
        return None
    if found.absent == "damaged":
        notes.warn(f"{job.stage} {job.key[:12]} was damaged (set aside in {store.root / 'quarantine'}); making it again")
        return None
    if store.manifest(job.key)["fingerprint"] != fingerprint(job.stage, job.parts):
        if job.stage in notes.refresh:
            store.quarantine(job.key, f"--refresh {job.stage}")
            return None
        if job.stage not in notes.warned:
            notes.warned.add(job.stage)
            notes.warn(
                f"{job.stage}: its source changed since this artifact was made, VERSION did not; "
                f"reusing it (--refresh {job.stage} makes it again)"
            )
    return found


def _make(
    store: Store,
    job: Job,
    settings: BaseModel,
    inputs: Mapping[str, Input],
    paths: Mapping[str, Path],
    hardware: Hardware,
    notes: Notes,
    around: Around = contextlib.nullcontext,
) -> Artifact:
    partial = store.root / "partial" / job.key
    work = Work(job.key, settings, paths, job.seed, partial / "payload", partial / "scratch", hardware, notes.tick)
    began, found = time.time(), sorted(path.name for path in work.scratch.iterdir())
    try:
        with around(work) as watched, turn_on_gpu(job, hardware, notes):
            if own_process(hardware) or launched(job.stage, hardware):
                from tasks.run.worker import run_apart

                run_apart(job.stage, watched)
            else:
                try:
                    getattr(stage_module(job.stage), job.stage)(watched)
                finally:
                    give_back_memory()
        events = work.events()
        for event in events:
            notes.warn(f"{job.stage}: {event}")
        # found: what an earlier attempt had left
        log = {"began": began, "seconds": time.time() - began, "found": found, "events": events}
        log |= {"failures": failure.earlier(work.scratch)}
        input_keys = {name: artifact.key for name, artifact in inputs.items()}
        return store.commit(job, input_keys, fingerprint(job.stage, job.parts), log)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise HomeError(f"{job.stage}: no room left on {store.root}; free some, then run the same command again") from error


@contextlib.contextmanager
def turn_on_gpu(job: Job, hardware: Hardware, notes: Notes) -> Iterator[None]:
    """Hold every GPU this process sees while a stage computes on one; other stages pass freely.

    A flock per GPU, shared by all homes of a user on this host: the kernel frees it when the process dies, where a slot of
    Prefect's would stay taken for minutes. Inputs are whole before it is taken, so its holder never waits for an artifact,
    and a fixed order of GPUs rules out that two stages wait for each other.
    """
    with contextlib.ExitStack() as held:
        if on_gpu(job, hardware):
            for gpu in gpus():
                lock = (
                    Path(tempfile.gettempdir()) / f"ratchet-{os.getuid()}-gpu-{gpu.replace('/', '-')}.lock"
                )  # a MIG's name has /
                held.enter_context(locked(lock, lambda gpu=gpu: notes.warn(f"{job.stage}: GPU {gpu} is busy; waiting for it")))  # type: ignore[misc]
        yield


def on_gpu(job: Job, hardware: Hardware) -> bool:
    """Whether a stage computes on a GPU: it loads models itself (torch shapes its output), or a part of it takes a device.

    One whose engine asks a server loads none.
    """
    from tasks.run.parts import asks_server, takes_device

    parts = [part.split(":", 1) for part in job.parts]
    if any(asks_server(*part) for part in parts):
        return False
    models = "torch" in job.libraries or any(takes_device(*part) for part in parts)
    return models and device_of(hardware) == "cuda"


def launched(stage: str, hardware: Hardware) -> bool:
    """Whether a stage runs under `accelerate launch`: those that train do, where the recipe names a configuration."""
    return bool(hardware.accelerate) and getattr(stage_module(stage), "LAUNCHED", False)


def own_process(hardware: Hardware) -> bool:
    """A process per stage is the sure way to free a GPU; on a CPU it would only cost imports (7-12 s)."""
    if hardware.isolation != "auto":
        return hardware.isolation == "process"
    return device_of(hardware) == "cuda"


def _present(store: Store, artifact: Input, hardware: Hardware, notes: Notes) -> Path:
    """The payload folder of an input; an evicted or damaged one is made again from its manifest."""
    if isinstance(artifact, External):
        return artifact.path
    now = store.find(artifact.key)
    if now is not None and not now.absent:
        return now.path
    return remake(store, artifact, hardware, notes).path


def remake(store: Store, artifact: Artifact, hardware: Hardware, notes: Notes) -> Artifact:
    """Make an evicted or damaged artifact again from its manifest, its own inputs first; its digest must come out the same."""
    known = store.find(artifact.key)
    if known is None:
        raise StageFailed(f"{artifact.stage} {artifact.key[:12]} is gone, its manifest too; resume the campaign that made it")
    manifest = store.manifest(artifact.key)
    notes.warn(f"{artifact.stage} {artifact.key[:12]} was {known.absent or 'moved'}; making it again")
    inputs: dict[str, Input] = {}
    for name, key in manifest["input_keys"].items():
        found = store.find(key) if key else None
        if found is None:
            raise StageFailed(f"cannot make {artifact.stage} {artifact.key[:12]} again: its input '{name}' is gone")
        inputs[name] = found
    job = Job(**manifest["job"])
    settings = stage_module(job.stage).Settings.model_validate(manifest["job"]["settings"])
    with store.attempt(job.key):
        paths = {name: _present(store, found, hardware, notes) for name, found in inputs.items()}
        made = _make(store, job, settings, inputs, paths, hardware, notes)
    if made.digest != artifact.digest:
        raise StageFailed(
            f"{artifact.stage} {artifact.key[:12]} came out different when made again ({made.digest[:12]}, was "
            f"{artifact.digest[:12]}); this can happen on a GPU: use keep.checkpoints = 'all' there"
        )
    return made
