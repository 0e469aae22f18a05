"""What a stage function gets: its inputs, settings, seed and folders; and what several stages ask of their surroundings."""

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
    """The progress callback of somebody who does not look."""


class StageSettings(BaseModel):
    """What shapes a stage's output, beside its inputs and seed. All of it enters the key, so a misspelt setting is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Work:
    """What a stage function gets. Payload goes to `out`; `scratch` survives a crash and is removed on commit."""

    key: str
    settings: Any  # the stage module's own Settings
    inputs: Mapping[str, Path]
    seed: int
    out: Path
    scratch: Path
    hardware: Hardware
    tick: Tick = silent

    def record(self, event: str) -> None:
        """Note what a reader of the artifact must know and no digest shows, such as a retry; it ends in its log.json."""
        with (self.scratch / EVENTS).open("a") as file:
            file.write(event.replace("\n", " ") + "\n")

    def events(self) -> list[str]:
        """What this attempt and those before it recorded."""
        path = self.scratch / EVENTS
        return path.read_text().splitlines() if path.exists() else []


def module_of(stage: Stage) -> ModuleType:
    """Where a stage is defined: its Settings, VERSION and LIBRARIES are there too."""
    return sys.modules[stage.__module__]


def stage_module(name: str) -> ModuleType:
    """The module of a stage that a manifest or a job names. The file has the stage's name: `tasks/<folder>/<name>.py`.

    Raises:
        StageFailed: no folder of tasks/ has such a file.
    """
    for folder in pkgutil.iter_modules(tasks.__path__):
        if folder.ispkg and importlib.util.find_spec(module := f"tasks.{folder.name}.{name}"):
            return importlib.import_module(module)
    raise StageFailed(f"expected a stage '{name}' in tasks/, found none; its artifact was made by another version of Ratchet")


def device_of(hardware: Hardware) -> str:
    if hardware.device != "auto":
        return hardware.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def give_back_memory() -> None:
    """Return to the GPU what torch keeps of what was freed: another process, such as vLLM's, cannot use it otherwise."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def gpus() -> list[str]:
    """The GPUs this process may use, sorted: as CUDA_VISIBLE_DEVICES names them, else all of this host."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if named:
        return sorted({name.strip() for name in named.split(",")})
    import torch

    return [str(number) for number in range(max(torch.cuda.device_count(), 1))]


def chunks(total: int, size: int) -> Iterator[range]:
    """Ranges that cover 0..total; the last one holds the remainder, no row is dropped."""
    for start in range(0, total, size):
        yield range(start, min(start + size, total))
