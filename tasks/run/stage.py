"""How a stage runs: find its artifact by key, or compute it in this process or in a process of its own.

A stage is a file `tasks/<folder>/<name>.py` with a function of the same name. For example, `def generate(work: Work) -> None`
writes its payload into `work.out`. The file also defines:

- `Settings`, a StageSettings. Every field enters the key.
- `VERSION`, an integer to raise when the output changes.
- `LIBRARIES`, the names of the libraries that shape the output.
- If settings decide on more: `libraries(settings) -> (name, ...)`, and `parts(settings) -> [(family, name)]` for the parts.
"""

from __future__ import annotations

import contextlib
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

from data.errors import StageFailed
from data.limits import exhausted
from data.recipe.settings import Hardware
from data.store.locks import locked
from data.store.store import Artifact, External, Job, Store
from tasks.run import failure
from tasks.run.fingerprint import fingerprint
from tasks.run.work import Stage, Tick, Work, device_of, give_back_memory, gpus, module_of, silent, stage_module

Input = Artifact | External
Around = Callable[[Work], AbstractContextManager[Work]]
RESUME = "resume the campaign that made it"


@dataclass(frozen=True)
class Notes:
    """How stage calls report to the person who runs them, and which stages that person wants recomputed."""

    tick: Tick = silent
    warn: Callable[[str], None] = lambda message: None
    use: Callable[[str], None] = lambda key: None  # called with each key, before its artifact is looked up
    refresh: frozenset[str] = frozenset()  # stages to recompute if their source changed
    warned: set[str] = field(default_factory=set)  # stages whose changed source has been reported in this run


def describe(stage: Stage, settings: BaseModel, inputs: Mapping[str, Input], seed: int) -> Job:
    """The Job of a stage call: everything that shapes its output. Its hash is the artifact's key."""
    from tasks.run.parts import libraries_of, version_of

    module = module_of(stage)
    parts = module.parts(settings) if hasattr(module, "parts") else []
    more = module.libraries(settings) if hasattr(module, "libraries") else ()
    libraries = {name: importlib.metadata.version(name) for name in (*module.LIBRARIES, *more)}
    for part in parts:
        libraries |= libraries_of(*part)
    return Job(
        stage=stage.__name__,
        version=module.VERSION,
        settings=settings.model_dump(mode="json"),
        inputs={name: artifact.digest for name, artifact in sorted(inputs.items())},
        seed=seed,
        parts={f"{family}:{name}": version_of(family, name) for family, name in parts},
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
    """The artifact of a stage call. It is computed only if the store has no complete one.

    Args:
        around: a context manager entered with the stage's Work while it is computed. It yields the Work that is passed on.

    Raises:
        StageFailed: the stage could not finish. The next attempt continues from what it had written to scratch.
    """
    job = describe(stage, settings, inputs, seed)
    notes.use(job.key)
    stored = _find(store, job, notes)
    if stored is not None:
        return stored
    with store.attempt(job.key, lambda: notes.warn(f"{job.stage}: another process is computing this artifact; waiting for it")):
        stored = _find(store, job, Notes())  # silently: the first call has warned already
        if stored is not None:  # another process computed it while this one waited
            return stored
        whole = trains(job.stage)  # a rotten bit there would spread to every later checkpoint; hashing is cheap beside training
        paths = {name: _payload(store, artifact, hardware, notes, whole) for name, artifact in inputs.items()}
        return _make(store, job, settings, inputs, paths, hardware, notes, around)


def _find(store: Store, job: Job, notes: Notes) -> Artifact | None:
    """The stored artifact, unless it is damaged or the user wants it refreshed."""
    stored = store.find(job.key)
    if stored is None:
        return None
    if stored.absent == "damaged":
        notes.warn(f"{job.stage} {job.key[:12]} was damaged and moved to {store.root / 'quarantine'}; recomputing it")
        return None
    if store.manifest(job.key)["fingerprint"] != fingerprint(job.stage, job.parts):
        if job.stage in notes.refresh:
            store.quarantine(job.key, f"--refresh {job.stage}")
            return None
        if job.stage not in notes.warned:
            notes.warned.add(job.stage)
            notes.warn(
                f"{job.stage}: its source changed since this artifact was made, but its VERSION did not; "
                f"reusing the artifact (pass --refresh {job.stage} to recompute it)"
            )
    return stored


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
    began, left_over = time.time(), sorted(path.name for path in work.scratch.iterdir())
    try:
        with around(work) as wrapped, hold_gpus(job, hardware, notes):
            if own_process(hardware) or runs_under_accelerate(job.stage, hardware):
                from tasks.run.worker import run_apart

                run_apart(job.stage, wrapped)
            else:
                try:
                    getattr(stage_module(job.stage), job.stage)(wrapped)
                finally:
                    give_back_memory()
        events = work.events()
        for event in events:
            notes.warn(f"{job.stage}: {event}")
        # "found": the files in scratch that an earlier attempt left
        log = {"began": began, "seconds": time.time() - began, "found": left_over, "events": events}
        log |= {"failures": failure.earlier(work.scratch)}
        input_keys = {name: artifact.key for name, artifact in inputs.items()}
        return store.commit(job, input_keys, fingerprint(job.stage, job.parts), log)
    except Exception as error:
        if limit := exhausted(error, job.stage, store.root):
            raise limit from error
        raise


@contextlib.contextmanager
def hold_gpus(job: Job, hardware: Hardware, notes: Notes) -> Iterator[None]:
    """Lock every GPU that this process sees while a stage computes on one. A stage that needs no GPU does not wait.

    There is a flock per GPU for all homes of a user on this host. The kernel frees it when the process dies; a Prefect
    concurrency slot would stay occupied for minutes. No deadlock is possible: the inputs are complete before the first lock,
    so its holder never waits for an artifact, and GPUs are locked in a fixed order.
    """
    with contextlib.ExitStack() as locks:
        if on_gpu(job, hardware):
            for gpu in gpus():
                lock = (
                    Path(tempfile.gettempdir()) / f"ratchet-{os.getuid()}-gpu-{gpu.replace('/', '-')}.lock"
                )  # a MIG's name has /
                locks.enter_context(locked(lock, lambda gpu=gpu: notes.warn(f"{job.stage}: GPU {gpu} is busy; waiting for it")))  # type: ignore[misc]
        yield


def on_gpu(job: Job, hardware: Hardware) -> bool:
    """Whether a stage computes on a GPU: torch is in its LIBRARIES, or one of its parts has a parameter `device`.

    A stage whose engine sends requests to a server loads no model.
    """
    from tasks.run.parts import asks_server, takes_device

    parts = [part.split(":", 1) for part in job.parts]
    if any(asks_server(*part) for part in parts):
        return False
    models = "torch" in job.libraries or any(takes_device(*part) for part in parts)
    return models and device_of(hardware) == "cuda"


def runs_under_accelerate(stage: str, hardware: Hardware) -> bool:
    """Whether a stage runs under `accelerate launch`: a training stage does, if the recipe sets hardware.accelerate."""
    return bool(hardware.accelerate) and trains(stage)


def trains(stage: str) -> bool:
    """Whether a stage trains a model."""
    return getattr(stage_module(stage), "LAUNCHED", False)


def own_process(hardware: Hardware) -> bool:
    """Whether a stage runs in a process of its own. Only the end of a process surely frees a GPU's memory.

    On a CPU a process would only repeat the imports, which take 7-12 s.
    """
    if hardware.isolation != "auto":
        return hardware.isolation == "process"
    return device_of(hardware) == "cuda"


def _payload(store: Store, artifact: Input, hardware: Hardware, notes: Notes, whole: bool = False) -> Path:
    """The payload folder of an input. An evicted or damaged payload is recomputed from the manifest.

    With `whole` every byte is compared with its hash, not only sizes and times.
    """
    if isinstance(artifact, External):
        return artifact.path
    stored = store.find(artifact.key, full=whole)
    if stored is not None and not stored.absent:
        return stored.path
    return remake(store, artifact, hardware, notes).path


def remake(store: Store, artifact: Artifact, hardware: Hardware, notes: Notes) -> Artifact:
    """Recompute an evicted or damaged artifact from its manifest, its own inputs first.

    Raises:
        StageFailed: a manifest or an input is missing, or the new payload has another digest.
    """
    short = f"{artifact.stage} {artifact.key[:12]}"
    stored = store.find(artifact.key)
    if stored is None:
        raise StageFailed(f"cannot recompute {short}: expected its manifest in the store, found none; {RESUME}")
    manifest = store.manifest(artifact.key)
    notes.warn(f"{short} was {stored.absent or 'moved'}; recomputing it")
    inputs: dict[str, Input] = {}
    for name, key in manifest["input_keys"].items():
        stored_input = store.find(key) if key else None
        if stored_input is None:
            raise StageFailed(f"cannot recompute {short}: expected its input '{name}' in the store, found none; {RESUME}")
        inputs[name] = stored_input
    job = Job(**manifest["job"])
    settings = stage_module(job.stage).Settings.model_validate(manifest["job"]["settings"])
    with store.attempt(job.key):
        whole = trains(job.stage)
        paths = {name: _payload(store, stored_input, hardware, notes, whole) for name, stored_input in inputs.items()}
        recomputed = _make(store, job, settings, inputs, paths, hardware, notes)
    if recomputed.digest != artifact.digest:
        raise StageFailed(
            f"{short}: expected the digest {artifact.digest[:12]} again, found {recomputed.digest[:12]} after recomputing it; "
            "a GPU may compute other bytes each time: set keep.checkpoints = 'all' there"
        )
    return recomputed
