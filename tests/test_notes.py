"""What `ratchet check` says about a recipe that may run."""

from __future__ import annotations

import pytest

from data.recipe import recipe as recipes
from flows.commands import notes as module
from flows.commands.notes import NOTES, notes
from tests.micro import micro

VERIFIER, MODEL = '{scorer="tests.micro:ends_even"}', '{scorer="reward_model", checkpoint="base"}'
BOTH = f"score=[{VERIFIER}, {MODEL}]"


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        ([BOTH], "tests.micro:ends_even (-1 to 1), reward_model (logits)"),
        ([BOTH, "reward.normalise=prompt"], ""),
        ([BOTH, "reward.how=mean"], ""),
        ([f"score=[{VERIFIER[:-1]}, weight=0.0}}, {MODEL}]"], ""),
        ([f'score=[{VERIFIER}, {{scorer="format", settings={{pattern="a"}}}}]'], ""),
        ([f'score=[{VERIFIER}, {{scorer="mean_logprob", name="sure"}}]', "reward.normalise=round"], "'sure' is mostly a short"),
        (['mitigate=[{mitigation="length_penalty", settings={per_token=0.01}}]'], "by their length"),
        (['mitigate=[{mitigation="length_penalty"}]'], ""),
    ],
)
def test_a_note_says_what_a_recipe_will_do(sets: list[str], says: str) -> None:
    # one sentence where it applies, and none on the other side
    found = notes(micro("tiny_dpo", *sets))
    assert len(found) == bool(says)
    assert all(says in note for note in found)


def test_every_note_is_listed_and_told_once() -> None:
    # a note that is written is also given, once for all rounds
    written = [f for f in vars(module).values() if getattr(f, "__annotations__", {}).get("return") == "Sentences"]
    assert written == list(NOTES)
    both = micro("tiny_dpo", BOTH)
    assert notes(both, both) == notes(both)


def test_shipped_recipes_need_no_note() -> None:
    # what we ship has no such effect
    for name in recipes.shipped():
        recipe = recipes.load(name, overrides={"model.path": "/m", "prompts.path": "/p"})
        assert notes(recipe.at_round(1)) == [], name
