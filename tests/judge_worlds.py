"""The worlds of `bench judge`, and the judge that is taught on their seed split.

Addition is the built-in world. Countdown is made small enough for the tiny model: three numbers, every step written out, as a
file of puzzles and a model of one's own. `2,7,3:17?` is solved as `7*2=14;14+3=17</think>(7*2)+3`: what is checked is two
sums, what is sought is one expression of hundreds. The puzzles are the generator's, and the verifier is the project's.
"""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from data import labels
from data.labels import Label
from data.recipe import recipe as recipes
from data.recipe.loss import Loss
from data.recipe.recipe import Recipe
from data.recipe.settings import Train
from data.store.campaign import Campaign
from data.worlds import countdown
from flows.round.stages import Stages
from tasks.choose import pair
from tasks.generate import generate
from tasks.models import tiny_model
from tasks.train import fit_reward, train

Row = dict[str, Any]


@dataclass(frozen=True)
class World:
    verifier: Row  # the first [[score]]: it watches
    after: str  # what stands before the answer
    sets: tuple[str, ...]


WORLDS = {
    "addition": World({"scorer": "exact_match", "settings": {"after": "#"}}, "#", ()),
    "countdown": World(
        {"scorer": "countdown"},
        "</think>",
        ("prompts.source=file", "prompts.seed=2500", "generate.max_tokens=40", "train.replay=false"),
    ),
}
ALPHABET = [*"0123456789+-*/=;,:?()", "</think>"]
LARGEST_NUMBER, LARGEST_TARGET, PUZZLES = 15, 99, 5500
SCHOOL = Train(steps=1500, batch=32, learning_rate=4e-3, weight_decay=0.1, warmup=1 / 9, max_length=256, replay=True)
TEACHING = Train(steps=400, batch=32, learning_rate=1e-3, weight_decay=0.0, max_length=256)


def settings_of(world: str, home: Path, sets: Sequence[str]) -> list[str]:
    """The settings of a world's recipe. Countdown's puzzles and its base, which has seen the seed split, are made here."""
    sets = [*WORLDS[world].sets, *sets]
    if world == "addition":
        return sets
    seed = int(next(entry for entry in sets if entry.startswith("seed=")).partition("=")[2])
    puzzles, fresh = home / f"countdown-{seed}.jsonl", home / "countdown-model"
    write_puzzles(puzzles, seed)
    sets.append(f"prompts.path={puzzles}")
    recipe = recipes.load("tiny_raft", [*sets, f"model.path={fresh}"], {"score": [WORLDS[world].verifier]})
    stages = outside(home, recipe)
    prompts = stages.prepare()
    write_model(stages, fresh)
    inputs = {"checkpoint": stages.base(prompts), "seed_data": prompts}
    base = stages.do(Label("schooled"), train.train, stages.train_settings(SCHOOL, Loss()), inputs, stages.seed("base", 0))
    return [*sets, f"model.path={base.path}"]


def taught(home: Path, recipe: Recipe, number: int = 0) -> Path:
    """A reward model that has seen solutions of the seed's problems only, checkpoint 0's own, right against wrong.

    Another number: one that has seen other samples, from another start.
    """
    stages, verifier = outside(home, recipe), recipe.score[0].label
    prompts = stages.prepare()
    base = stages.base(prompts)
    how = stages.sampling(recipe, split="seed")
    drawn = stages.do(
        Label("drawn"), generate.generate, how, {"prompts": prompts, "checkpoint": base}, stages.seed("drawn", number)
    )
    checked = stages.verify(Label("checked"), "seed", prompts, drawn)
    judged = {"completions": drawn, "reward": checked, f"score/{verifier}": checked}
    pairing = pair.Settings(pairer="right_vs_wrong", settings={"cap": 4}, scorers=[verifier], mitigations=[])
    pairs = stages.do(Label("pairs"), pair.pair, pairing, judged)
    trained = stages.train_settings(TEACHING, Loss()).model_dump()
    shared = {name: value for name, value in trained.items() if name in fit_reward.Settings.model_fields}
    settings = fit_reward.Settings(**shared | {"split": "seed", "margin": False, "center": 0.01})
    inputs = {"checkpoint": base, "prompts": prompts, "completions": drawn, "pairs": pairs}
    return stages.do(Label("taught"), fit_reward.fit_reward, settings, inputs, stages.seed("taught", number)).path


def outside(home: Path, recipe: Recipe) -> Stages:
    """Stages of no round, in the store of a home."""
    from tasks.run.stage import perform

    campaign = Campaign(home, "outside", recipe)
    return Stages(
        campaign, 0, lambda _, s, c, i, seed, around: perform(campaign.store, s, c, i, seed=seed, hardware=recipe.hardware)
    )


# -- Countdown -----------------------------------------------------------------------------------------------------------------
def write_model(stages: Stages, folder: Path) -> None:
    """The tiny model as it is born, with an alphabet of our own."""
    from tasks.models.tiny_model import write_tokenizer

    model = stages.recipe.model
    shape = tiny_model.Settings(hidden=model.hidden, layers=model.layers)
    born = stages.do(labels.TINY_MODEL, tiny_model.tiny_model, shape, {}, model.init_seed)
    shutil.copytree(born.path, folder, dirs_exist_ok=True)
    write_tokenizer(folder, ALPHABET)


def write_puzzles(path: Path, seed: int) -> None:
    """PUZZLES of three numbers, one JSON record each: prompt, answer and solution."""
    world = countdown.World(seed, LARGEST_NUMBER, LARGEST_TARGET)
    records: list[dict[str, str]] = []
    while len(records) < PUZZLES:
        (puzzle,) = world.puzzles(1, (3,))
        if solution := worked(puzzle.expression):
            prompt = f"{','.join(map(str, puzzle.numbers))}:{puzzle.target}?"
            records.append({"prompt": prompt, "answer": puzzle.answer, "completion": solution})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def worked(expression: str) -> str | None:
    """An expression's steps, then itself; None where a step is no whole number from 1 to LARGEST_TARGET."""
    steps: list[str] = []
    value, text = _worked(ast.parse(expression, mode="eval").body, steps)
    return ";".join(steps) + "</think>" + text if value else None


def _worked(node: ast.expr, steps: list[str]) -> tuple[int | None, str]:
    if isinstance(node, ast.Constant):
        return int(str(node.value)), str(node.value)
    assert isinstance(node, ast.BinOp)
    sign = countdown.SIGNS[type(node.op)]
    (a, left), (b, right) = (_worked(side, steps) for side in (node.left, node.right))
    if a is None or b is None:
        return None, ""
    if sign in "+*" and (a, left) < (b, right):  # one way to write a sum, or the votes for it would split
        (a, left), (b, right) = (b, right), (a, left)
    read = countdown.evaluate(f"{a}{sign}{b}")
    value = read[0] if read else Fraction(0)
    if value.denominator != 1 or not 1 <= value <= LARGEST_TARGET:
        return None, ""
    steps.append(f"{a}{sign}{b}={value}")
    left, right = (side if side.isdigit() else f"({side})" for side in (left, right))
    return int(value), left + sign + right
