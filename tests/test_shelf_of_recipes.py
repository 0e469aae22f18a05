"""The shelf of recipes: each binds in every round, and each value that came from somewhere says where."""

from __future__ import annotations

import re

import pytest

from data import recipe as recipes
from flows import check
from flows.check import bind
from flows.estimate import drawn, rows_per_prompt, seven_b
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


COUNTS = {"seed": 0, "rounds": 7000, "probe": 0, "held_out": 200, "test": 200, "ood": 0}


@pytest.mark.parametrize("name", [n for n in recipes.shipped() if not re.match(OF_OUR_OWN, n)])
def test_every_published_recipe_has_its_cost_on_7b(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # tokens, GPU-hours and disk for 7,000 prompts; hours are the tokens over the assumed rates, and no recipe is for free
    monkeypatch.setattr(check, "model_bytes", lambda recipe: 15_000_000_000)
    recipe = load_shipped(name)
    estimate = check.cost(recipe, COUNTS | {"seed": recipe.prompts.seed}, 0)
    cost = estimate["seven_b"]
    assert cost.decoded == estimate["tokens_at_most"] >= estimate["completions"]
    assert cost.decode_hours == pytest.approx(cost.decoded / 5000 / 3600)
    assert cost.trained > 0
    assert 7.999 < cost.train_hours * 3600 * 0.4 * 989e12 / 7.6e9 / cost.trained < 10.001
    assert all(re.search(r"\d", line) for line in cost.lines())


def test_the_cost_follows_what_changes_between_rounds_and_who_else_writes() -> None:
    # a window that grows counts as long as it is; other samples and a judge's answers are decoded too; a cap bounds the pairs
    def of_four(*sets: str) -> tuple[int, int]:
        return drawn(load_shipped("iterative_dpo", "generate.n=4", "generate.max_tokens=100", *sets), 10)

    def judged(template: str) -> str:
        judge = f"{{scorer='judge', settings={{template='{template}', samples=3, max_tokens=50}}}}"
        return f"score=[{{scorer='math_equivalence'}}, {judge}]"

    assert of_four() == (40, 4000)
    assert of_four("pool.base=true") == (80, 8000)
    assert of_four(judged("additive5")) == (40, 4000 + 40 * 3 * 50)
    assert of_four(judged("better_of_two")) == (40, 4000 + 10 * (4 * 3) * 3 * 50)
    longer = load_shipped("context_lengthening")
    at = [drawn(longer.at_round(number), 10)[1] for number in (1, 3, 5)]
    assert at == [80 * 8192, 80 * 16384, 80 * 24576]
    most = {"iterative_dpo": 1, "irpo": 10, "kto": 8, "rso": 8, "self_rewarding": 1, "raft": 4, "grpo": 64}
    assert {name: rows_per_prompt(load_shipped(name)) for name in most} == most


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
