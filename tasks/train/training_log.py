"""The log of a training, stored apart from its weights: `keep.checkpoints` deletes whole checkpoints."""

from __future__ import annotations

import shutil

from tasks.run.work import StageSettings, Work

VERSION = 1
LIBRARIES = ()


class Settings(StageSettings):
    pass


def training_log(work: Work) -> None:
    """`training.parquet` (TRAINING) and `training.json` of `inputs["checkpoint"]`."""
    for name in ("training.parquet", "training.json"):
        shutil.copy(work.inputs["checkpoint"] / name, work.out / name)
