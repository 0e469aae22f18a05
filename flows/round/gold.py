"""What gold touches in a round, and what the recipe permits. Gold is the verdicts of a verifier, and the answers behind them.

Gold may choose what is trained on (training), choose prompts (curriculum), and promote checkpoints (gate). If the recipe's
`gold` keeps it out of training, no part gets it: verdicts reach only the facts about what was chosen, and curators get no pass
rates. So a verifier without weight only watches, whatever parts a recipe names. Given solutions are demonstrations, not gold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from data import labels
from data.errors import PartError
from data.recipe.recipe import Recipe
from data.recipe.settings import Score
from data.store.store import Artifact
from tasks.run import parts

Permission = Literal["train", "gate", "never"]
PLACES: dict[Permission, tuple[str, ...]] = {"train": ("training", "curriculum", "gate"), "gate": ("gate",), "never": ()}
REMEDIES = {
    "training": "set gold = 'train', or choose by a reward that holds no verdicts",
    "curriculum": "set gold = 'train', or remove it",
    "gate": "set gate.rule = 'always_promote', or gold = 'gate'",
}


# -- what the recipe permits ---------------------------------------------------------------------------------------------
def permission(recipe: Recipe) -> Permission:
    """The recipe's `gold`. If it is empty: "train" where a verifier has a weight, else "gate"."""
    if recipe.gold:
        return recipe.gold
    first, *others = recipe.score
    verifiers = [first, *(score for score in others if _lists("VERIFIERS", "scorers", score.scorer))]
    return "train" if any(score.weight for score in verifiers) else "gate"


def refusals(recipe: Recipe) -> Iterator[str]:
    """A message for each place that gold would touch and the recipe does not permit."""
    permitted = permission(recipe)
    for place, readers in touched(recipe).items():
        if place not in PLACES[permitted]:
            why = f"gold = '{permitted}'" if recipe.gold else f"no verifier has a weight, so gold = '{permitted}', which"
            yield (
                f"{why} keeps verdicts out of the {place}, but {', '.join(readers)} read{'s' * (len(readers) == 1)} them; "
                f"{REMEDIES[place]}"
            )


# -- what gold touches ---------------------------------------------------------------------------------------------------
def touched(recipe: Recipe) -> dict[str, list[str]]:
    """The places that gold touches (of training, curriculum, gate), each with what reads it there."""
    places = {"training": _readers_in_training(recipe), "curriculum": _readers_in_curriculum(recipe)}
    places["gate"] = [] if recipe.gate.rule == "always_promote" else [f"gate.rule = '{recipe.gate.rule}'"]
    return {place: readers for place, readers in places.items() if readers}


def in_words(recipe: Recipe) -> str:
    """The places that gold touches, such as "training, gate", or "nothing"."""
    return ", ".join(touched(recipe)) or "nothing"


def holds_gold(recipe: Recipe, score: Score) -> bool:
    """Whether a score depends on verdicts: a verifier, a scorer that reads verdicts, a reward model fitted on them.

    An ensemble holds gold if a member does.
    """
    if score.label == recipe.score[0].label or score.checkpoint == "trained":
        return True
    return any(_lists("VERIFIERS", *part) or _reads_verdicts(*part) for part in _dependencies(score))


def _readers_in_training(recipe: Recipe) -> list[str]:
    if not recipe.samples and not recipe.online:
        return []
    weighted = [score for score in recipe.score if score.weight and holds_gold(recipe, score)]
    by_reward = [f"the weight of '{score.label}'" for score in weighted] if _reads_reward(recipe) else []
    reading = [(family, name) for family, name, settings in _choosing(recipe) if _reads(recipe, family, name, settings)]
    return by_reward + [f"{family[:-1]} '{name}'" for family, name in reading]


def _readers_in_curriculum(recipe: Recipe) -> list[str]:
    if not recipe.samples and not recipe.online:
        return []
    return [f"curator '{entry.curator}'" for entry in recipe.curate if _lists("NEEDS_GOLD", "curators", entry.curator)]


def _choosing(recipe: Recipe) -> list[tuple[str, str, Mapping[str, Any]]]:
    """The parts that choose what is trained on: (family, name, settings)."""
    select = [("selectors", recipe.select.selector, recipe.select.settings)] if recipe.select else []
    pair = [("pairers", recipe.pair.pairer, recipe.pair.settings)] if recipe.pair else []
    return [*select, *pair, *(("mitigations", entry.mitigation, entry.settings) for entry in recipe.mitigate)]


def _reads(recipe: Recipe, family: str, name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a part that chooses reads verdicts, also by the name of a score (`agreed`)."""
    named = {settings.get("one"), settings.get("other")} & labels_with_gold(recipe)
    uses = permission(recipe) == "train" and not settings.get("allow_wrong_chosen") and _lists("USES_GOLD", family, name)
    return bool(named) or uses or _lists("NEEDS_GOLD", family, name)


def _reads_reward(recipe: Recipe) -> bool:
    """Whether the reward decides anything: what is chosen, what a mitigation changes, or a margin in the loss."""
    choosers = [(family, name) for family, name, _ in _choosing(recipe) if family != "mitigations"]
    ignored = all(_lists("IGNORES_REWARD", *chooser) for chooser in choosers)
    return recipe.online or not ignored or bool(recipe.mitigate) or recipe.loss.offset > 0


def labels_with_gold(recipe: Recipe) -> set[str]:
    """The labels of the scores that hold gold."""
    return {score.label for score in recipe.score if holds_gold(recipe, score)}


# -- what parts get ------------------------------------------------------------------------------------------------------
def inputs_of_choice(recipe: Recipe, reward: Artifact, scores: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """`reward` and the scores by `score/<label>`, as inputs of the stages `select` and `pair`.

    Where gold may not choose what is trained on, a score that holds gold is called `watched/<label>`, which only the facts
    read, and a reward that holds gold is left out.

    Raises:
        PartError: a part cannot choose without verdicts. `check` says so earlier, except for a campaign of an older version.
    """
    if permission(recipe) == "train":
        return {"reward": reward, **scores}
    if refused := next(refusals(recipe), None):
        raise PartError(refused)
    hidden = labels_with_gold(recipe)
    rewarded = {} if any(s.weight and s.label in hidden for s in recipe.score) else {"reward": reward}
    shown = [score.label for score in recipe.score if score.label not in hidden]
    watched = {f"watched/{label}": scores[labels.score(label).text] for label in sorted(hidden)}
    return rewarded | {labels.score(label).text: scores[labels.score(label).text] for label in shown} | watched


# -- asking parts --------------------------------------------------------------------------------------------------------
def _lists(attribute: str, family: str, name: str) -> bool:
    """As `parts.lists`; False for a part that does not exist, about which `check` has its own message."""
    try:
        return parts.lists(attribute, family, name)
    except PartError:
        return False


def _dependencies(score: Score) -> list[tuple[str, str]]:
    try:
        return [part for part in parts.dependencies("scorers", score.scorer, score.settings) if part[0] == "scorers"]
    except PartError:
        return []


def _reads_verdicts(family: str, name: str) -> bool:
    return bool(parts.needs(family, name) & {"verdicts", "rollouts"})
