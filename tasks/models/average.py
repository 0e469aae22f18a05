"""The exponential moving average of a campaign's heads, as a reference that changes slowly.

The head is the checkpoint that the next round starts from.
"""

from __future__ import annotations

import shutil

from data.errors import StageFailed
from tasks.models.models import inspect_checkpoint
from tasks.run.work import StageSettings, Work

VERSION = 1
LIBRARIES = ("torch", "safetensors")


class Settings(StageSettings):
    decay: float


def average(work: Work) -> None:
    """A checkpoint: decay * `inputs["average"]` + (1 - decay) * `inputs["head"]`, in float32, stored in the head's format.

    Raises:
        StageFailed: the two are not checkpoints of the same model.
    """
    import torch
    from safetensors.torch import load_file, save_file

    s: Settings = work.settings
    for path in inspect_checkpoint(work.inputs["head"]):
        if path.suffix != ".safetensors":
            shutil.copyfile(path, work.out / path.name)
            continue
        other = work.inputs["average"] / path.name
        head, average = load_file(path), load_file(other) if other.exists() else {}
        if {name: t.shape for name, t in head.items()} != {name: t.shape for name, t in average.items()}:
            raise StageFailed(
                f"average: expected the same tensors in {path.name} of the head and of the average, found others; "
                "average checkpoints of the same model"
            )
        mixed = {name: torch.lerp(t.float(), average[name].float(), s.decay).to(t.dtype) for name, t in head.items()}
        save_file(mixed, work.out / path.name, metadata={"format": "pt"})
