"""Verified trainer saves: each save has a manifest of hashes, written last. Training resumes only from a save that matches.

The trainer's saves are not atomic. A save without its optimizer would resume silently to another result.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

from data.store.store import hash_folder, write_atomic
from tasks.run.work import Tick

NAME = "ratchet-manifest.json"
NEEDED = ("optimizer.pt", "scheduler.pt", "trainer_state.json")


def save_callback(scratch: Path, tick: Tick) -> Any:
    """A TRL callback that reports steps and seals each save."""
    return _callback_class()(scratch, tick)


@functools.cache
def _callback_class() -> type[Any]:
    from transformers import TrainerCallback

    class Seal(TrainerCallback):  # type: ignore[misc]
        def __init__(self, scratch: Path, tick: Tick) -> None:
            self.scratch, self.tick = scratch, tick

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.tick(state.global_step, state.max_steps)
            if state.global_step == state.max_steps and not args.load_best_model_at_end:
                control.should_save = False  # the finished model is the artifact; nothing would read this save

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            _wait_for_all()  # each rank writes its own random state into the save
            over = control.should_training_stop or state.global_step >= state.max_steps
            if state.is_world_process_zero and not over:  # resumed from its end, a trainer would make one step more
                seal(self.scratch / f"checkpoint-{state.global_step}")

    return Seal


def _wait_for_all() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def seal(folder: Path) -> None:
    """Write the manifest of a save's files; only now can training resume from it."""
    write_atomic(folder / NAME, json.dumps(hash_folder(folder)))


def newest_save(scratch: Path) -> Path | None:
    """The newest save whose files match its manifest. Newer broken saves are removed, so that the trainer cannot read them."""
    saves = [p for p in scratch.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    for folder in sorted(saves, key=lambda p: int(p.name.split("-")[1]), reverse=True):
        if verifies(folder):
            return folder
        shutil.rmtree(folder)
    return None


def verifies(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / NAME).read_text())
    except (OSError, ValueError):
        return False  # no manifest, or a broken one
    present = {name: digest for name, digest in hash_folder(folder).items() if name != NAME}
    return present == manifest and all(name in present for name in NEEDED)
