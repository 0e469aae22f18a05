"""Notes about a recipe: settings that nothing reads, values that are the same for every row, and effects easily overlooked.

Such a recipe runs, so these are no rules (those are in data/recipe/rules.py). `check` and the start of a campaign print them.
To add one, add a row to UNREAD, or write a function and list it in IN_EVERY_ROUND or IN_ANY_ROUND.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from data.recipe.dotted import flatten

if TYPE_CHECKING:
    from data.recipe.recipe import Recipe

Messages = Iterator[str]
VOTED = "most_vs_least_voted"  # the built-in pairer whose pairs have weights of their own
SMALLEST_PROBE = 30  # prompts below which the ledger tests nothing: `SMALLEST` in tasks/bias/effects.py
SURE_PROBE = 128  # prompts from which it mostly finds a jump of 0.3 SD at once (`./ratchet bench alarms`)
FROM_MICRO_BATCHES = ("kto", "aot", "aot_unpaired")  # losses that compare the rows of a micro-batch with one another


def notes(rounds: Sequence[Recipe]) -> list[str]:
    """The notes on the recipes of a campaign's rounds, each told once. A setting that one round reads is no mistake."""
    every, some = ([[m for note in kind for m in note(recipe)] for recipe in rounds] for kind in (IN_EVERY_ROUND, IN_ANY_ROUND))
    held = [message for message in every[0] if all(message in others for others in every)] if every else []
    return list(dict.fromkeys([*held, *itertools.chain(*some)]))


# -- settings that nothing reads ----------------------------------------------------------------------------------------
def _loss_ignores(setting: str) -> Callable[[Recipe], str]:
    return lambda r: "" if setting in r.loss.kind.reads else f"loss.name = '{r.loss.name}'"


def _no_moving_average(r: Recipe) -> str:
    return "" if r.loss.needs_reference and r.loss.reference == "ema" else "a loss without loss.reference = 'ema'"


def _chooses_nothing(r: Recipe) -> str:
    return "" if r.samples else f"the online loss '{r.loss.name}'" if r.online else "a recipe without [select] and [pair]"


def _fits_no_reward_model(r: Recipe) -> str:
    return "" if any(s.checkpoint == "trained" for s in r.score) else "a recipe without a score whose checkpoint is 'trained'"


def _reads_no_file(r: Recipe) -> str:
    return "" if r.prompts.source == "file" or r.recorded else f"prompts.source = '{r.prompts.source}'"


def _samples_no(kind: str) -> Callable[[Recipe], str]:
    return lambda r: "" if kind in r.probe.counterfactuals else f"probe.counterfactuals without '{kind}'"


def _keeps_no_ledger(r: Recipe) -> str:
    return "" if r.watched else "a recipe without a probe (prompts.probe = 0 or probe.samples = 0)"


# a setting, or a table with all its settings -> what does not read it, empty where something does
UNREAD: dict[str, Callable[[Recipe], str]] = {
    **{f"loss.{name}": _loss_ignores(name) for name in ("beta", "gamma", "desirable_weight", "undesirable_weight")},
    "loss.reference": lambda r: "" if r.loss.needs_reference else f"loss.name = '{r.loss.name}', which has no reference",
    "loss.ema_decay": _no_moving_average,
    "train.epochs": lambda r: f"train.steps = {r.train.steps}" if r.train.steps else "",
    "train.patience": lambda r: "" if r.train.validation else "train.validation = 0",
    "train.max_length": lambda r: f"the online loss '{r.loss.name}', whose limit is generate.max_tokens" if r.online else "",
    "train.minimum": _chooses_nothing,
    "reward.penalty": lambda r: "" if r.reward.how == "pessimistic" else f"reward.how = '{r.reward.how}'",
    "fit_reward": _fits_no_reward_model,
    "evaluate.temperature": lambda r: "" if r.evaluate.samples else "evaluate.samples = 0",
    "generate.path": lambda r: "" if r.recorded else f"generate.engine = '{r.generate.engine}'",
    "probe.hint": _samples_no("sycophancy"),
    **{f"probe.{name}": _samples_no("challenge") for name in ("challenge", "neutral")},
    **{f"probe.{name}": _keeps_no_ledger for name in ("baseline", "features", "counterfactuals")},
    **{f"prompts.{name}": _reads_no_file for name in ("path", "map", "answer_after", "template", "limit")},
    "prompts.filler": lambda r: "" if r.prompts.source == "addition" else f"prompts.source = '{r.prompts.source}'",
    "prompts.ood": lambda r: "prompts.source = 'file'" if r.prompts.source == "file" else "",
    **{
        f"model.{name}": lambda r: "model.path, since the model is not the tiny one" if r.model.path else ""
        for name in ("hidden", "layers", "steps", "batch", "learning_rate", "init_seed")
    },
}  # fmt: skip


def unread_settings(recipe: Recipe) -> Messages:
    for name, reason in UNREAD.items():
        if why := reason(recipe):
            for path, value in _changed(recipe, name):
                yield f"{path} = {value} is not read by {why}"


def _changed(recipe: Recipe, name: str) -> list[tuple[str, Any]]:
    """The settings at or below a dotted name that are not at their defaults, as (path, value)."""
    table = name.split(".")[0]
    settings = getattr(recipe, table)
    given, default = (flatten(values.model_dump(), table) for values in (settings, type(settings)()))
    below = [path for path in given if path == name or path.startswith(f"{name}.")]
    return [(path, given[path]) for path in below if given[path] != default.get(path)]


def rounds_that_never_come(recipe: Recipe) -> Messages:
    for entry in recipe.at:
        if entry.round > recipe.rounds:
            yield f"[[at]] of round {entry.round} changes nothing: the campaign ends with round {recipe.rounds}"


# -- values that are the same for every row ------------------------------------------------------------------------------
def constant_weights(recipe: Recipe) -> Messages:
    if recipe.loss.weighted and recipe.pair and recipe.pair.pairer != VOTED and ":" not in recipe.pair.pairer:
        yield (
            f"loss.weighted multiplies by the weights of pairs, which are all 1 with pairer '{recipe.pair.pairer}'; use "
            f"'{VOTED}', or leave it out"
        )


def constant_offset(recipe: Recipe) -> Messages:
    rewarding = [score for score in recipe.score if score.weight]
    if recipe.loss.offset and recipe.pair and rewarding == [recipe.score[0]] and not recipe.mitigate:
        yield (
            f"loss.offset uses the log of each pair's reward difference. The reward is the verifier '{rewarding[0].label}' "
            "alone: where its verdicts are 0 and 1, every difference is the same; give a graded score a weight, or leave it out"
        )


def constant_margin(recipe: Recipe) -> Messages:
    if recipe.fit_reward.margin and not _fits_no_reward_model(recipe):
        yield (
            f"fit_reward.margin subtracts the difference of the verifier's scores. Where the verdicts of "
            f"'{recipe.score[0].label}' are 0 and 1, it is the same for every pair; leave it out"
        )


# -- what the device decides ---------------------------------------------------------------------------------------------
def depends_on_micro_batches(recipe: Recipe) -> Messages:
    names = [name for name in recipe.loss.weights if name in FROM_MICRO_BATCHES]
    if names and not recipe.train.accumulate:
        yield (
            f"the loss '{names[0]}' compares the rows of a micro-batch, whose size the device decides; set train.accumulate to "
            "get the same training on another device"
        )


def longer_than_training_reads(recipe: Recipe) -> Messages:
    longest, limit = recipe.generate.longest, recipe.train.max_length
    if recipe.samples and longest >= limit:
        yield (
            f"completions have up to {longest} tokens, and training reads at most {limit} of prompt and completion: longer "
            "ones are sampled and never trained on, so training sees the short ones; raise train.max_length, or lower "
            "generate.max_tokens"
        )


# -- effects that are easily overlooked ----------------------------------------------------------------------------------
SCALES = {  # scorers whose values do not lie between -1 and 1
    "reward_model": "logits",
    "mean_logprob": "nats",
    "cosine_length": "-10 to 2",
    "ensemble": "standard deviations",
    "imported": "the scale of its file",
}


def a_sum_of_unlike_scales(recipe: Recipe) -> Messages:
    weighted = [score for score in recipe.score if score.weight]
    plain_sum = recipe.reward.how == "sum" and recipe.reward.normalise == "none"
    if any(score.scorer in SCALES for score in weighted) and len(weighted) > 1 and plain_sum:
        listed = ", ".join(f"{score.label} ({SCALES.get(score.scorer, '-1 to 1')})" for score in weighted)
        remedy = "" if recipe.online else " Set reward.normalise = 'prompt', or read reward_share in a round's facts."
        yield f"The reward adds scores of unlike scales as they are: {listed}. The widest may decide alone.{remedy}"


def likelihood_prefers_short(recipe: Recipe) -> Messages:
    for score in recipe.score:
        if score.scorer == "mean_logprob" and score.weight:
            yield (
                f"The best of n by '{score.label}' is mostly a short completion: a mean over few tokens varies most. "
                "Read length_gap in a round's facts."
            )


def a_given_price_decides_ties(recipe: Recipe) -> Messages:
    for change in recipe.mitigate:
        if change.mitigation == "length_penalty" and change.settings.get("per_token"):
            yield (
                "length_penalty with per_token decides between completions of equal reward by their length. Without per_token "
                "it leaves them equal."
            )


def a_small_probe(recipe: Recipe) -> Messages:
    probe = recipe.prompts.probe
    if recipe.watched and probe < SMALLEST_PROBE:
        yield (
            f"prompts.probe = {probe} is too small for alarms: the ledger tests nothing on fewer than {SMALLEST_PROBE} "
            f"prompts; set {SURE_PROBE} or more, or 0 to leave it out"
        )
    elif recipe.watched and probe < SURE_PROBE:
        yield (
            f"prompts.probe = {probe}: alarms are as rarely wrong as on a larger probe, but a jump of 0.3 SD is mostly missed "
            f"in its round; set {SURE_PROBE} or more"
        )


Note = Callable[["Recipe"], Messages]
IN_EVERY_ROUND: tuple[Note, ...] = (
    unread_settings,
    rounds_that_never_come,
    constant_weights,
    constant_offset,
    constant_margin,
    depends_on_micro_batches,
    longer_than_training_reads,
)
IN_ANY_ROUND: tuple[Note, ...] = (
    a_sum_of_unlike_scales,
    likelihood_prefers_short,
    a_given_price_decides_ties,
    a_small_probe,
)
