"""A campaign small enough for a test: every stage, several shards, several trainer saves, a second or two a round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data.recipe import recipe as recipes
from data.recipe.recipe import Recipe
from tasks.score.scorers import Score

Row = dict[str, Any]

SETS = (
    "rounds=2",
    "prompts.seed=60",
    "prompts.rounds=64",
    "prompts.probe=8",
    "prompts.held_out=40",
    "prompts.test=20",
    "prompts.ood=10",
    "prompts.per_round=32",
    "model.hidden=32",
    "model.layers=1",
    "model.steps=120",
    "generate.n=4",
    "generate.batch=32",
    "generate.shard=32",
    "generate.max_tokens=48",
    "probe.samples=0",  # the bias ledger has tests of its own (tests/test_ledger.py)
    "evaluate.samples=2",
    "evaluate.batch=40",
    "train.steps=6",
    "train.batch=8",
    "train.save_every=2",
    "train.minimum=1",
    "hardware.workers=1",
    'score=[{scorer="tests.micro:ends_even"}]',  # nothing is really right in so small a world
)


def ends_even(prompts: Sequence[Row], completions: Sequence[Row]) -> list[Score]:
    """A scorer that a model this small can satisfy: right where the text's last digit is even."""
    return [Score(float(row["text"].strip()[-1:] in "02468" and row["text"] != "")) for row in completions]


def micro(source: str = "tiny_raft", *more: str, prefect: bool = False) -> Recipe:
    return recipes.load(source, [*SETS, f"hardware.prefect={str(prefect).lower()}", *more])
