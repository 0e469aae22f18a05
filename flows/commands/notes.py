"""Notes of `ratchet check`: what a recipe may do, with an effect that its author should know before it runs.

A note is a function that yields a sentence for each such effect. To add one, write the function and list it in NOTES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from data.recipe.recipe import Recipe
from data.recipe.settings import Score

Sentences = Iterator[str]
SCALES = {  # scorers whose values do not lie between -1 and 1
    "reward_model": "logits",
    "mean_logprob": "nats",
    "cosine_length": "-10 to 2",
    "ensemble": "standard deviations",
    "imported": "the scale of its file",
}


def notes(*rounds: Recipe) -> list[str]:
    """The notes on a recipe, in each of the rounds given. A note that several rounds have is told once."""
    return list(dict.fromkeys(sentence for recipe in rounds for note in NOTES for sentence in note(recipe)))


def weighted(recipe: Recipe) -> list[Score]:
    return [score for score in recipe.score if score.weight]


def a_sum_of_unlike_scales(recipe: Recipe) -> Sentences:
    own = [score for score in weighted(recipe) if score.scorer in SCALES]
    plain_sum = recipe.reward.how == "sum" and recipe.reward.normalise == "none"
    if own and len(weighted(recipe)) > 1 and plain_sum:
        listed = ", ".join(f"{score.label} ({SCALES.get(score.scorer, '-1 to 1')})" for score in weighted(recipe))
        remedy = "" if recipe.online else " Set reward.normalise = 'prompt', or read reward_share in a round's facts."
        yield f"The reward adds scores of unlike scales as they are: {listed}. The widest may decide alone.{remedy}"


def likelihood_prefers_short(recipe: Recipe) -> Sentences:
    for score in weighted(recipe):
        if score.scorer == "mean_logprob":
            yield (
                f"The best of n by '{score.label}' is mostly a short completion: a mean over few tokens varies most. "
                "Read length_gap in a round's facts."
            )


def a_given_price_decides_ties(recipe: Recipe) -> Sentences:
    for change in recipe.mitigate:
        if change.mitigation == "length_penalty" and change.settings.get("per_token"):
            yield (
                "length_penalty with per_token decides between completions of equal reward by their length. Without per_token "
                "it leaves them equal."
            )


NOTES: tuple[Callable[[Recipe], Sentences], ...] = (
    a_sum_of_unlike_scales,
    likelihood_prefers_short,
    a_given_price_decides_ties,
)
