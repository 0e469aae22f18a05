"""Alarms about training: from the log of every step, and from what was measured before and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.alarm import Alarm
from data.recipe.loss import Loss
from data.recipe.settings import Score
from data.store.campaign import Metric
from tasks.gate.training_curves import Row, TrainingCurves, training_curves


@dataclass(frozen=True)
class Limits:
    """The limits of the alarms. On the tiny world, healthy and collapsing runs lie on either side of each (tests/README.md)."""

    tail: float = 0.2  # share of the steps that "at the end" means
    margin: float = 0.02  # |reward margin| below which nothing was learned,
    still: float = 0.5  # unless it is this many nats all the same, with the small beta of SPPO
    displaced: float = 3.0  # nats a chosen completion may lose
    displaced_token: float = 0.1  # ... per token, of losses that count so
    exploded: float = 20.0  # reward margin: sigmoid(20) is 1 to 9 digits
    ranking: float = 0.05  # share of pairs that may lose their order
    reward: float = 0.1  # standard deviations that the reward of an online phase may fall: 5 points of a verdict at 50%
    equal: float = 0.95  # share of prompts whose samples all have the same reward
    finished: float = 0.05  # share of completions that may stop finishing; four times that is a hard limit


def training_alarms(
    log: Sequence[Row],
    loss: Loss,
    before: Mapping[str, Metric],
    after: Mapping[str, Metric],
    kl_budget: float = 0.0,
    limits: Limits = Limits(),
) -> list[Alarm]:
    """Alarms about one training. Each diagnosis is made wherever the loss's trainer logs what it stands on.

    Args:
        log: rows of TRAINING. before, after: what was measured of the start and of the result, `finished` among it.
        kl_budget: nats per completion that the policy may move away from the reference; 0 = no budget.
    """
    curves = training_curves(log, loss, limits.tail)
    alarms = [
        _stuck(curves, loss, limits),
        _exploded(curves, limits),
        _displaced(curves, loss, limits),
        _order_lost(curves, limits),
        _over_budget(curves, kl_budget),
        _reward_fell(curves, limits),
        _all_equal(curves, limits),
        _of_finishing(before, after, limits),
    ]
    return [alarm for alarm in alarms if alarm]


def _stuck(curves: TrainingCurves, loss: Loss, limits: Limits) -> Alarm | None:
    learned = curves.learned
    if learned is None or abs(learned) >= limits.margin or abs(learned) / loss.beta >= limits.still:
        return None
    return Alarm(
        "watch",
        "training",
        "loss stuck",
        f"no learning: the final reward margin is {curves.margin:+.3f}, and the loss is where it began (0.69 for sigmoid). "
        "Raise train.learning_rate, train.steps or loss.beta",
    )


def _exploded(curves: TrainingCurves, limits: Limits) -> Alarm | None:
    if curves.margin is None or curves.margin <= limits.exploded:
        return None
    return Alarm(
        "ALARM",
        "training",
        "margins exploded",
        f"the final reward margin is {curves.margin:.1f}: the policy separates the pairs with certainty and trains on. Lower "
        "train.steps or train.learning_rate",
    )


def _displaced(curves: TrainingCurves, loss: Loss, limits: Limits) -> Alarm | None:
    if curves.chosen is None or -curves.chosen <= (limits.displaced_token if curves.per_token else limits.displaced):
        return None
    lost, of = f"{-curves.chosen:.{2 if curves.per_token else 1}f} nats", "per token" if curves.per_token else "each"
    since = "against the reference" if loss.kind.reference else "since training began"
    return Alarm(
        "ALARM",
        "training",
        "likelihood displacement",
        f"chosen completions lost {lost} of log-probability {of} {since}. The margin grows because both sides become less "
        f"likely (arXiv 2410.08847). Likely cause: {_displacing(loss)}",
    )


def _displacing(loss: Loss) -> str:
    match loss.kind.trainer:
        case "kto":
            return "wrong completions outweigh right ones; loss.desirable_weight = 0 balances them"
        case "orpo":
            return f"loss.beta = {loss.beta:g}, the weight of the odds ratio, is too large compared with the NLL"
        case "cpo":
            return "train.learning_rate is too high, or terms = { sft = 1.0 } is missing"
        case _:
            term = "nll" if loss.name == "sigmoid" else "sft"
            return f"loss.beta = {loss.beta:g} is too small, or terms = {{ {term} = 1.0 }} is missing"


def _order_lost(curves: TrainingCurves, limits: Limits) -> Alarm | None:
    if curves.order is None or curves.order[1] >= curves.order[0] - limits.ranking:
        return None
    first, last = curves.order
    return Alarm(
        "watch",
        "training",
        "ranking accuracy",
        f"the share of pairs whose chosen completion is the likelier one fell from {first:.0%} to {last:.0%}, although the "
        "reward margins do not show it",
    )


def _over_budget(curves: TrainingCurves, budget: float) -> Alarm | None:
    if not budget or curves.kl is None or curves.kl <= budget:
        return None
    return Alarm(
        "ALARM",
        "training",
        "KL over budget",
        f"the policy is {curves.kl:.1f} nats per completion from its reference; gate.kl_budget is {budget:g}. "
        "Raise loss.beta or lower train.steps",
    )


def _reward_fell(curves: TrainingCurves, limits: Limits) -> Alarm | None:
    if curves.reward is None or -curves.reward <= limits.reward:
        return None
    return Alarm(
        "ALARM",
        "training",
        "reward fell",
        f"the mean reward of the samples fell by {-curves.reward:.2f} standard deviations during training. Lower "
        "train.learning_rate or raise loss.beta",
    )


def _all_equal(curves: TrainingCurves, limits: Limits) -> Alarm | None:
    if curves.equal is None or curves.equal <= limits.equal:
        return None
    return Alarm(
        "watch",
        "training",
        "rewards all equal",
        f"for {curves.equal:.0%} of the prompts all samples have the same reward, so there is nothing to learn from them. Use "
        "prompts that are neither too easy nor too hard ([[curate]] pass_rate_band), or raise generate.n",
    )


def _of_finishing(before: Mapping[str, Metric], after: Mapping[str, Metric], limits: Limits) -> Alarm | None:
    old, new = before.get("finished"), after.get("finished")
    if old is None or new is None or old.value is None or new.value is None or old.low is None or new.high is None:
        return None
    lost = old.value - new.value
    if lost <= limits.finished or new.high >= old.low:
        return None
    sentence = (
        f"the share of completions that end by themselves fell from {old.value:.0%} to {new.value:.0%}. The end-of-sequence "
        "token lost probability"
    )
    return Alarm("STOP" if lost > 4 * limits.finished else "ALARM", "training", "finish rate", sentence)


LOSS = {"accuracy_vs_base": 0.02, "logprob_vs_base": 0.05}  # worth a word: points of accuracy, nats per token


def forgetting(now: Mapping[str, Metric], before: Mapping[str, Metric]) -> list[Alarm]:
    """Alarms about evaluation suites that are surely worse than at checkpoint 0: a watch, and an ALARM from the second round
    running on. `before`: what the round before measured."""
    found = []
    for name in now:
        suite, _, what = name.removeprefix("suite/").partition("/")
        if name.startswith("suite/") and what in LOSS and _lost(now[name], LOSS[what]):
            again = name in before and _lost(before[name], LOSS[what])
            sentence = _loss_in_words(what, now[name], now[name.removesuffix("_vs_base")])
            found.append(
                Alarm(
                    "ALARM" if again else "watch",
                    "suite",
                    f"suite {suite}",
                    f"{sentence}. To lose less: raise loss.beta, set gate.kl_budget, or lower train.steps",
                )
            )
    return found


def _lost(difference: Metric, least: float) -> bool:
    return difference.value is not None and difference.high is not None and difference.high < 0 and difference.value <= -least


def _loss_in_words(what: str, difference: Metric, level: Metric) -> str:
    lost, now = difference.value or 0.0, level.value or 0.0
    if what == "accuracy_vs_base":
        return f"accuracy {100 * (now - lost):.1f}% -> {100 * now:.1f}% since round 0, on {difference.n} prompts"
    return f"log-probability per token {now - lost:.2f} -> {now:.2f} since round 0, on {difference.n} prompts"


UNINFORMATIVE = 0.55  # AUROC of a judge that practically guesses; 0.5 is chance


def uninformative_judges(now: Mapping[str, Metric], before: Mapping[str, Metric], scores: Sequence[Score]) -> list[Alarm]:
    """An alarm where nothing that is rewarded can rank the answers to one prompt: a watch, and a STOP in the second round
    running. None where the verifier's word is part of the reward: what stands beside it may reward a style.

    Within a prompt, because choosing is: a judge that only knows hard prompts from easy ones has a fine AUROC overall.

    Args:
        now, before: of this round and the one before, `judge/<label>/within_prompt_auroc` with its interval among them.
        scores: of the recipe, the verifier first.
    """
    rewarded = [score for score in scores if score.weight]
    if scores[0].weight or not all(_uninformative(now, score) for score in rewarded):
        return []
    again = all(_uninformative(before, score) for score in rewarded)
    best = max((now[_auroc(score)] for score in rewarded), key=lambda auroc: auroc.value or 0.0)
    sentence = (
        f"{', '.join(score.label for score in rewarded)} ranks the completions of one prompt no better than chance: AUROC "
        f"{best.value:.2f} [{best.low:.2f}, {best.high:.2f}] over {best.n} prompts with right and wrong completions. "
        "Use another judge"
    )
    return [Alarm("STOP" if again else "watch", "judge", "judge", sentence)]


def _auroc(score: Score) -> str:
    return f"judge/{score.label}/within_prompt_auroc"


def _uninformative(metrics: Mapping[str, Metric], score: Score) -> bool:
    """By the upper end of its interval. A judge without this metric counts as informative."""
    auroc = metrics.get(_auroc(score))
    return auroc is not None and auroc.value is not None and auroc.high is not None and auroc.high < UNINFORMATIVE
