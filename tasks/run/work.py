"""What a stage function receives (inputs, settings, seed, folders), and helpers that stages share: device, GPUs, memory."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict

import tasks
from data.errors import StageFailed
from data.recipe.settings import Hardware

Tick = Callable[[int, int], None]
Stage = Callable[["Work"], None]  # a public function with the name of its file
EVENTS = "events.txt"


def silent(done: int, total: int) -> None:
    """A progress callback that shows nothing."""


class StageSettings(BaseModel):
    """What shapes a stage's output besides its inputs and seed. Every field enters the key; an unknown name is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Work:
    """What a stage function receives. It writes its payload to `out`. `scratch` survives a crash and is removed on commit."""

    key: str
    settings: Any  # the stage module's own Settings
    inputs: Mapping[str, Path]
    seed: int
    out: Path
    scratch: Path
    hardware: Hardware
    tick: Tick = silent

    def record(self, event: str) -> None:
        """Note an event for the artifact's log.json, such as a retry. It is not part of the digest."""
        with (self.scratch / EVENTS).open("a") as file:
            file.write(event.replace("\n", " ") + "\n")

    def events(self) -> list[str]:
        """The events that this attempt and earlier ones recorded."""
        path = self.scratch / EVENTS
        return path.read_text(errors="replace").splitlines() if path.exists() else []


def module_of(stage: Stage) -> ModuleType:
    """The module that defines a stage, with its Settings, VERSION and LIBRARIES."""
    return sys.modules[stage.__module__]


def stage_module(name: str) -> ModuleType:
    """The module of the stage `name`, as a manifest or a job file gives it: `tasks/<folder>/<name>.py`.

    Raises:
        StageFailed: no folder of tasks/ has such a file.
    """
    for folder in pkgutil.iter_modules(tasks.__path__):
        if folder.ispkg and importlib.util.find_spec(module := f"tasks.{folder.name}.{name}"):
            return importlib.import_module(module)
    raise StageFailed(
        f"expected a stage '{name}' in tasks/, found none: another version of Ratchet made its artifact; use that version"
    )


def device_of(hardware: Hardware) -> str:
    """ "cuda" or "cpu"; "auto" is resolved by what torch finds."""
    if hardware.device != "auto":
        return hardware.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def give_back_memory() -> None:
    """Return freed memory that torch caches to the GPU. Otherwise no other process, such as vLLM's, could use it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def gpus() -> list[str]:
    """The GPUs that this process may use, sorted: those in CUDA_VISIBLE_DEVICES, or all GPUs of this host."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if visible:
        return sorted({name.strip() for name in visible.split(",")})
    import torch

    return [str(number) for number in range(max(torch.cuda.device_count(), 1))]


def chunks(total: int, size: int) -> Iterator[range]:
    """Ranges of `size` that cover 0..total. The last one holds the remainder, so no row is dropped."""
    for start in range(0, total, size):
        yield range(start, min(start + size, total))
