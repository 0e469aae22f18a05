"""The shelf of recipes: each binds in every round, and each value that came from somewhere says where."""

from __future__ import annotations

import re

import pytest

from data import recipe as recipes
from flows.check import bind
from flows.estimate import seven_b
from tests.test_recipe import load_shipped

SOURCED = ("n", "temperature", "top_p", "beta", "gamma", "length", "learning_rate", "epochs", "steps", "batch", "max_tokens")
OF_OUR_OWN = r"^(tiny_|.*control)"


@pytest.mark.parametrize("name", recipes.shipped())
def test_every_shipped_recipe_binds_in_every_round(name: str) -> None:
    # parts exist and take their settings, whatever [[at]] changes
    recipe = load_shipped(name)
    for number in range(1, recipe.rounds + 1):
        bind(recipe.at_round(number))


@pytest.mark.parametrize("name", [n for n in recipes.shipped() if not re.match(OF_OUR_OWN, n)])
def test_a_published_methods_recipe_says_where_it_was_read(name: str) -> None:
    # a paper or a repository is named in the file, and at least three values carry a comment of their own
    text = recipes.shipped()[name].read_text()
    assert re.search(r"arXiv|Online-DPO-R1|OpenRLHF|DeepScaleR|repository", text)
    settings = [line for line in text.splitlines() if re.match(rf"({'|'.join(SOURCED)}) = ", line)]
    assert sum("#" in line for line in settings) >= 2, settings


def test_the_cost_on_7b_is_its_formula() -> None:
    # one round, 1,000 prompts of 8 samples of 1,024 tokens, 100 steps of 32 pairs, full weights, a reference
    sets = ["rounds=1", "train.steps=100", "train.batch=32", "train.accumulate=32", "generate.max_tokens=1024"]
    cost = seven_b(load_shipped("iterative_dpo", *sets), 1000, 8 * 1000 * 1024)
    assert cost.trained == 100 * 32 * 2 * 1024
    assert cost.train_hours == pytest.approx(cost.trained * 10 * 7.6e9 / (0.4 * 989e12) / 3600)
    assert cost.decode_hours == pytest.approx(8 * 1000 * 1024 / 5000 / 3600)
    assert cost.memory_gb == pytest.approx(5 * 4 * 7.6)
    assert "does not fit" in cost.lines()[1]
    lora = seven_b(load_shipped("iterative_dpo", *sets, "train.lora={rank=16}"), 1000, 1)
    assert lora.memory_gb == pytest.approx(4 * 7.6)
