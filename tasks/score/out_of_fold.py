"""Score every prompt with the model that was not fitted on it, so that judge health does not measure what a model memorised."""

from __future__ import annotations

import contextlib
import dataclasses

from data.rows import tables
from data.rows.completions import as_rows, read_completions
from data.rows.folds import FOLDS, fold_of
from tasks.run.work import Work
from tasks.score import score
from tasks.score.score import Row, Settings
from tasks.score.score import parts as parts  # the scorer and what it depends on

VERSION = 1
LIBRARIES = score.LIBRARIES


def out_of_fold(work: Work) -> None:
    """SCORES of one scorer, a row per row of `inputs["completions"]`, in its order.

    A completion is scored with the model `inputs["checkpoint/<fold>"]` of its prompt's fold, which was fitted on the other
    folds. Without that model its status is that of a scorer without a checkpoint.
    """
    s: Settings = work.settings
    by_id = {
        row["prompt_id"]: row for row in tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS).to_pylist()
    }
    completions = as_rows(read_completions(work.inputs["completions"]))
    scored: dict[str, Row] = {}
    for fold in range(FOLDS):
        members = [row for row in completions if fold_of(row["prompt_id"]) == fold]
        with contextlib.ExitStack() as closing:
            scorer = score.configured(_with_model_of(work, fold), closing)
            scored |= {row["completion_id"]: row for row in score.scored(s.scorer, scorer, by_id, members, None)}
        work.tick(len(scored), len(completions))
    rows = [scored[row["completion_id"]] for row in completions]
    tables.write(tables.from_rows(rows, tables.SCORES), tables.SCORES, work.out / "scores.parquet")


def _with_model_of(work: Work, fold: int) -> Work:
    """The same work with the fold's model as the scorer's checkpoint, if there is one."""
    inputs = {name: path for name, path in work.inputs.items() if not name.startswith("checkpoint/")}
    model = work.inputs.get(f"checkpoint/{fold}")
    return dataclasses.replace(work, inputs=inputs | ({"checkpoint": model} if model else {}))
