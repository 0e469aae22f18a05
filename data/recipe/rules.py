"""Rules between the settings of a recipe. A rule yields a message for each contradiction it finds, and nothing otherwise.

A message names the settings, says what was expected and found, and how to resolve it. `broken` applies every rule, so a person
reads about all contradictions at once. A rule yields nothing where another one already covers the case, so that one mistake
gives one message. To add a rule, write a function and list it in RULES.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from data.recipe.dotted import flatten
from data.recipe.loss import NEEDED_TABLE
from data.recipe.settings import SERVER_ENGINES, Pool

if TYPE_CHECKING:
    from data.recipe.recipe import Recipe

Messages = Iterator[str]

# Settings that every round shares: rounds could not be compared otherwise, or the campaign depends on them as a whole.
FROZEN_AFTER_START = (
    "prompts",
    "model",
    "probe",
    "suites",
    "evaluate",
    "seed",
    "rounds",
    "at",
    "hardware",
    "keep",
    "description",
)


def broken(recipe: Recipe) -> list[str]:
    """The messages of all rules that the recipe breaks, in the order of RULES."""
    return [message for rule in RULES for message in rule(recipe)]


# -- what is trained on -------------------------------------------------------------------------------------------------
def select_or_pair(recipe: Recipe) -> Messages:
    if recipe.select and recipe.pair:
        yield (
            "found [select] and [pair], expected one of them, not both: [select] trains on completions, [pair] on pairs; "
            "remove one"
        )


def pair_needs_a_pair_loss(recipe: Recipe) -> Messages:
    if recipe.pair and not recipe.select and recipe.loss.kind.data != "pairs":
        yield f"[pair] needs a pair loss, found loss.name = '{recipe.loss.name}'; set loss.name, e.g. 'sigmoid' (DPO)"


def select_needs_a_loss_on_completions(recipe: Recipe) -> Messages:
    data = recipe.loss.kind.data
    if not recipe.select or recipe.pair or NEEDED_TABLE[data] == "select":
        return
    remedy = "remove [select], since it samples while it trains" if data == "online" else "use [pair] instead of [select]"
    yield f"loss.name = '{recipe.loss.name}' {_trains_on(data)}, found [select]; {remedy}, or set loss.name = 'nll'"


def offline_loss_needs_its_table(recipe: Recipe) -> Messages:
    tables = {
        "pairs": "a [pair] table",
        "labelled": "a [select] table with labels (selector = 'labelled')",
        "ranked": "a [select] table with ranks (selector = 'ranked')",
    }
    data = recipe.loss.kind.data
    if not recipe.samples and data in tables:
        yield f"loss.name = '{recipe.loss.name}' {_trains_on(data)}, found neither [select] nor [pair]; add {tables[data]}"


def something_to_train_on(recipe: Recipe) -> Messages:
    if recipe.loss.kind.data == "selected" and not recipe.samples and not recipe.train.replay:
        yield "nothing to train on; add [select] or [pair], or set train.replay = true to train on the seed split alone"


def online_batch_holds_whole_groups(recipe: Recipe) -> Messages:
    n, batch = recipe.generate.n, recipe.train.batch
    if recipe.online and (n < 2 or batch % n):
        yield (
            "an online batch holds whole groups of generate.n completions: expected generate.n of at least 2 that divides "
            f"train.batch ({batch}), found generate.n = {n}; change one of them"
        )


def replay_needs_solutions(recipe: Recipe) -> Messages:
    if recipe.train.replay and not recipe.prompts.seed:
        yield "train.replay = true needs given solutions: set prompts.seed to the number of prompts that have one"


def replay_needs_nll(recipe: Recipe) -> Messages:
    if recipe.train.replay and recipe.loss.name != "nll":
        yield (
            "train.replay = true adds whole completions to the training data, so it needs loss.name = 'nll', found "
            f"'{recipe.loss.name}'; set train.replay = false"
        )


def validation_needs_rows(recipe: Recipe) -> Messages:
    if recipe.train.validation and recipe.online:
        yield (
            f"train.validation = {recipe.train.validation:g} keeps rows out of training, but the online loss "
            f"'{recipe.loss.name}' has no rows before it samples; set it to 0. The gate measures on held-out prompts"
        )


# -- samples and the pool -----------------------------------------------------------------------------------------------
def curate_needs_sampled_prompts(recipe: Recipe) -> Messages:
    if recipe.curate and not recipe.samples and not recipe.online:
        yield (
            "[[curate]] chooses the prompts that a round samples, found neither [select] nor [pair] nor an online loss; remove "
            "[[curate]]"
        )


def other_samplers_need_a_choice(recipe: Recipe) -> Messages:
    if recipe.generate.engine in ("recorded", "endpoint") and not recipe.samples:
        source = f"the online loss '{recipe.loss.name}' samples by itself" if recipe.online else "nothing is chosen"
        yield (
            f"generate.engine = '{recipe.generate.engine}' gives completions to choose from, but {source}; choose a local "
            "engine, or add [select] or [pair]"
        )


def given_pool_excludes_curate(recipe: Recipe) -> Messages:
    if recipe.pool.given and recipe.curate:
        yield (
            "pool.given = true samples the prompts of the seed split, but [[curate]] chooses among those of the rounds split; "
            "set one, not both"
        )


def given_pool_needs_solutions(recipe: Recipe) -> Messages:
    if recipe.pool.given and not recipe.prompts.seed:
        yield "pool.given = true needs given solutions: set prompts.seed to the number of prompts that have one"


def pool_and_mitigate_need_a_choice(recipe: Recipe) -> Messages:
    if (recipe.mitigate or recipe.pool != Pool()) and not recipe.samples:
        yield (
            "[[mitigate]] and [pool] change what [select] or [pair] choose from, found neither of these two; remove "
            "[[mitigate]] and [pool]. An online loss and training on the seed split alone choose nothing"
        )


def lengthen_needs_samples(recipe: Recipe) -> Messages:
    if recipe.generate.lengthen and (recipe.recorded or recipe.online):
        yield (
            "generate.lengthen raises the token limit of a round's samples, but generate.engine = 'recorded' and an online "
            "loss have no such samples; remove it"
        )


def recorded_pool_samples_nothing(recipe: Recipe) -> Messages:
    if recipe.recorded and (recipe.pool.base or recipe.pool.contrast):
        yield (
            "pool.base and pool.contrast sample a checkpoint, but generate.engine = 'recorded' reads completions from a file; "
            "remove them or choose another engine"
        )


def servers_have_no_base(recipe: Recipe) -> Messages:
    if recipe.generate.engine in SERVER_ENGINES and recipe.pool.base:
        yield (
            "pool.base samples checkpoint 0 (the model the campaign started from), which the server of generate.engine = "
            f"'{recipe.generate.engine}' does not have; set pool.base = false or choose a local engine"
        )


# -- model and prompts --------------------------------------------------------------------------------------------------
def tiny_model_needs_addition(recipe: Recipe) -> Messages:
    if recipe.model.path == "" and recipe.prompts.source != "addition" and not recipe.recorded:
        yield (
            f"the tiny model only knows addition, found prompts.source = '{recipe.prompts.source}'; pass --model DIR (or set "
            "model.path)"
        )


def file_source_needs_a_path(recipe: Recipe) -> Messages:
    if recipe.prompts.source == "file" and not recipe.prompts.path:
        yield "prompts.source = 'file' needs a file of prompts, found none; pass --prompts FILE (or set prompts.path)"


def recorded_needs_a_file(recipe: Recipe) -> Messages:
    if recipe.recorded and not recipe.generate.path and recipe.prompts.source != "file":
        yield "generate.engine = 'recorded' needs a file of completions: set generate.path"


def gate_needs_held_out(recipe: Recipe) -> Messages:
    if not recipe.prompts.held_out and not recipe.recorded:
        yield "the gate compares checkpoints on held-out prompts, found prompts.held_out = 0; set it to a few hundred"


# -- scores and reward --------------------------------------------------------------------------------------------------
def scorer_is_needed(recipe: Recipe) -> Messages:
    if not recipe.score:
        yield "expected at least one [[score]], found none; the first one is the verifier that held-out accuracy uses"


def some_score_has_weight(recipe: Recipe) -> Messages:
    if recipe.score and not _weighted(recipe):
        yield "every [[score]] has weight 0, so nothing makes a reward; give one of them a weight"


def ensemble_needs_several_scores(recipe: Recipe) -> Messages:
    if recipe.reward.how != "sum" and _weighted(recipe) == 1:
        yield (
            f"reward.how = '{recipe.reward.how}' needs at least two [[score]] tables with a weight, found one; set it to 'sum' "
            "or add another"
        )


def normalise_is_for_sums(recipe: Recipe) -> Messages:
    how, normalise = recipe.reward.how, recipe.reward.normalise
    if how != "sum" and normalise != "none":
        yield (
            f"reward.normalise = '{normalise}' needs reward.how = 'sum', found '{how}', which standardises each score within "
            "its prompt by itself; set reward.normalise = 'none'"
        )


def online_reward_is_a_sum(recipe: Recipe) -> Messages:
    plain = {"how": "sum", "normalise": "none"}
    for name, value in plain.items() if recipe.online else ():
        found = getattr(recipe.reward, name)
        if found != value:
            yield (
                f"reward.{name} = '{found}' needs an offline loss, found the online loss '{recipe.loss.name}', which only adds "
                f"scores up; set it to '{value}'"
            )


def score_names_differ(recipe: Recipe) -> Messages:
    names = [score.label for score in recipe.score]
    if len(set(names)) != len(names):
        yield f"expected each [[score]] under a name of its own, found {', '.join(names)}; set score.name of one"


def suite_names_differ(recipe: Recipe) -> Messages:
    names = [suite.name for suite in recipe.suites]
    if len(set(names)) != len(names):
        yield f"expected each [[suites]] under a name of its own, found {', '.join(names)}; rename one"


# -- the gate's KL budget -----------------------------------------------------------------------------------------------
def kl_budget_needs_a_logged_kl(recipe: Recipe) -> Messages:
    if recipe.gate.kl_budget and not recipe.loss.measures_kl:
        yield (
            "gate.kl_budget needs a loss that logs its KL to a reference: a DPO loss, kto, or an online loss with "
            f"loss.beta > 0; found loss.name = '{recipe.loss.name}', loss.beta = {recipe.loss.beta:g}. Set it to 0 or change "
            "the loss"
        )


def kl_budget_needs_the_previous_checkpoint(recipe: Recipe) -> Messages:
    start, reference = recipe.train.start_from, recipe.loss.reference
    if recipe.gate.kl_budget and not recipe.online and not start == reference == "previous":
        yield (
            "gate.kl_budget is measured on samples near the reference, so it needs loss.reference = 'previous' and "
            f"train.start_from = 'previous', found '{reference}' and '{start}'. Set it to 0 and read bias/kl_base instead"
        )


# -- numbers and [[at]] -------------------------------------------------------------------------------------------------
def challenge_and_neutral_turn_differ(recipe: Recipe) -> Messages:
    probe = recipe.probe
    if "challenge" in probe.counterfactuals and probe.challenge == probe.neutral:
        yield (
            f"probe.challenge is compared with probe.neutral, found '{probe.neutral}' for both; set probe.neutral to a "
            "second turn that asks again without a doubt"
        )


def numbers_are_finite(recipe: Recipe) -> Messages:
    for path, value in flatten(recipe.model_dump()).items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{path}: expected a finite number, found {value}"


def at_leaves_frozen_settings(recipe: Recipe) -> Messages:
    for entry in recipe.at:
        for path in entry.set:
            if path.split(".")[0] in FROZEN_AFTER_START:
                yield f"[[at]] of round {entry.round}: '{path}' cannot change between rounds; remove it"


RULES: tuple[Callable[[Recipe], Messages], ...] = (
    select_or_pair,
    pair_needs_a_pair_loss,
    select_needs_a_loss_on_completions,
    offline_loss_needs_its_table,
    something_to_train_on,
    online_batch_holds_whole_groups,
    replay_needs_solutions,
    replay_needs_nll,
    validation_needs_rows,
    curate_needs_sampled_prompts,
    other_samplers_need_a_choice,
    given_pool_excludes_curate,
    given_pool_needs_solutions,
    pool_and_mitigate_need_a_choice,
    lengthen_needs_samples,
    recorded_pool_samples_nothing,
    servers_have_no_base,
    tiny_model_needs_addition,
    file_source_needs_a_path,
    recorded_needs_a_file,
    gate_needs_held_out,
    scorer_is_needed,
    some_score_has_weight,
    ensemble_needs_several_scores,
    normalise_is_for_sums,
    online_reward_is_a_sum,
    score_names_differ,
    suite_names_differ,
    kl_budget_needs_a_logged_kl,
    kl_budget_needs_the_previous_checkpoint,
    challenge_and_neutral_turn_differ,
    numbers_are_finite,
    at_leaves_frozen_settings,
)


def _trains_on(data: str) -> str:
    return {
        "pairs": "trains on pairs",
        "labelled": "trains on labelled completions",
        "ranked": "trains on ranked completions",
        "online": "trains online",
    }[data]


def _weighted(recipe: Recipe) -> int:
    """How many scores have a weight, and so make up the reward."""
    return sum(score.weight != 0 for score in recipe.score)
