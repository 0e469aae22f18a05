"""Copy a user's model directory into the store, so that checkpoint 0 cannot change during a campaign."""

from __future__ import annotations

import shutil

from tasks.models.models import inspect_checkpoint
from tasks.run.work import StageSettings, Work

VERSION = 1
LIBRARIES = ()


class Settings(StageSettings):
    """No settings: the directory's content is the input."""


def import_model(work: Work) -> None:
    """The checkpoint's configuration, tokenizer and safetensors. Other files are not copied."""
    files = inspect_checkpoint(work.inputs["model"])
    for done, path in enumerate(files):
        work.tick(done, len(files))
        shutil.copyfile(path, work.out / path.name)
