"""Alarms about training, from its log and from metrics before and after it; and alarms about suites and judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.alarm import Alarm, Level
from data.recipe.loss import Loss
from data.recipe.settings import Score
from data.store.campaign import Metric
from tasks.gate import collapse_causes
from tasks.gate.training_curves import Row, TrainingCurves, training_curves
from tasks.train.collapse import Fall, Window


@dataclass(frozen=True)
class Limits:
    """The limits of the alarms. On the tiny world they separate healthy from collapsing runs (tests/README.md)."""

    tail: float = 0.2  # share of the steps that counts as the end
    margin: float = 0.02  # |reward margin| below which nothing was learned ...
    still: float = 0.5  # ... unless |margin| / beta reaches this many nats: SPPO has a small beta
    displaced: float = 3.0  # nats a chosen completion may lose
    displaced_token: float = 0.1  # the same per token, for losses that use means over tokens
    exploded: float = 20.0  # reward margin; 1 - sigmoid(20) is 2e-9
    ranking: float = 0.05  # fall of the share of pairs whose chosen completion is likelier
    reward: float = 0.1  # fall of an online reward, in standard deviations: 5 points of accuracy at 50% ...
    errors: float = 4.0  # ... and in standard errors: the best of many windows is compared
    few: int = 10  # optimizer steps below which a training that learned nothing had too few
    equal: float = 0.95  # share of prompts whose samples all have the same reward
    finished: float = 0.05  # fall of the share of completions that end by themselves; four times that is a STOP


def training_alarms(
    log: Sequence[Row],
    loss: Loss,
    before: Mapping[str, Metric],
    after: Mapping[str, Metric],
    kl_budget: float = 0.0,
    facts: Mapping[str, Any] = {},
    limits: Limits = Limits(),
) -> list[Alarm]:
    """Alarms about one training. A check is skipped if the loss's trainer does not log the values it needs.

    Args:
        log: rows of TRAINING.
        before, after: held-out metrics of the checkpoint that training started from, and of its result.
        kl_budget: nats per completion that the policy may move away from the reference; 0 = no budget.
        facts: of the data (pairs or rows, prompts, prompts_without) and of training.json (steps, vocabulary, stopped), as far
            as they are known.
    """
    curves = training_curves(log, loss, limits.tail)
    stopped, causes = facts.get("stopped"), collapse_causes.causes(curves, facts.get("vocabulary"))
    if curves.reward and not causes:  # some show only while the reward falls
        falling = [row for row in log if row["step"] <= curves.reward.now.last]
        causes = collapse_causes.causes(training_curves(falling, loss, limits.tail), facts.get("vocabulary"))
    if stopped or (curves.reward and curves.reward.collapsed):
        about_reward = [_collapsed(stopped, curves.reward, causes), _of_finishing(before, after, limits)]
        return [alarm for alarm in about_reward if alarm]
    alarms = [
        _one_step(loss, facts),
        _stuck(curves, loss, facts, limits),
        _exploded(curves, limits),
        _displaced(curves, loss, limits),
        _order_lost(curves, limits),
        _over_budget(curves, kl_budget),
        _reward_fell(curves, causes, limits),
        *_unlike_itself(curves, facts.get("vocabulary")),
        _all_equal(curves, limits),
        _of_finishing(before, after, limits),
    ]
    return [alarm for alarm in alarms if alarm]


def _one_step(loss: Loss, facts: Mapping[str, Any]) -> Alarm | None:
    """The margin and the loss of a step are logged before its update: of one step they are those of the start."""
    if facts.get("steps") != 1 or loss.kind.data == "online":
        return None
    return Alarm(
        "watch",
        "training",
        "one step",
        f"Training was a single step{_from_data(facts)}, so the log cannot show whether anything was learned. {MORE_DATA}",
    )


MORE_DATA = (
    "For more data, raise prompts.per_round or generate.n, or use easier prompts; for more steps of it, raise train.epochs."
)


def _from_data(facts: Mapping[str, Any]) -> str:
    """What a training read, in words: ' on 6 pairs from 40 prompts (prompts without: 34 all wrong)'; "" if it is not known."""
    unit = next((name for name in ("pairs", "rows") if facts.get(name) is not None), None)
    if unit is None:
        return ""
    text = f" on {facts[unit]} {unit}"
    if facts.get("prompts") is not None:
        text += f" from {facts['prompts']} prompts"
    without = ", ".join(f"{count} {why}" for why, count in facts.get("prompts_without", {}).items() if count)
    return f"{text} (prompts without: {without})" if without else text


def _stuck(curves: TrainingCurves, loss: Loss, facts: Mapping[str, Any], limits: Limits) -> Alarm | None:
    learned, steps = curves.learned, facts.get("steps")
    if learned is None or abs(learned) >= limits.margin or abs(learned) / loss.beta >= limits.still or steps == 1:
        return None
    few = steps is not None and steps < limits.few
    remedy = f"Training made only {steps} steps{_from_data(facts)}. {MORE_DATA}" if few else LEARN_MORE
    return Alarm(
        "watch",
        "training",
        "loss stuck",
        f"No learning: the final reward margin is {curves.margin:+.3f}, and the loss is where it began (0.69 for sigmoid). "
        + remedy,
    )


LEARN_MORE = "Raise train.learning_rate, train.steps or loss.beta."


def _exploded(curves: TrainingCurves, limits: Limits) -> Alarm | None:
    if curves.margin is None or curves.margin <= limits.exploded:
        return None
    return Alarm(
        "ALARM",
        "training",
        "margins exploded",
        f"The final reward margin is {curves.margin:.1f}: the policy already separates the pairs with certainty. Lower "
        "train.steps or train.learning_rate.",
    )


def _displaced(curves: TrainingCurves, loss: Loss, limits: Limits) -> Alarm | None:
    if curves.chosen is None or -curves.chosen <= (limits.displaced_token if curves.per_token else limits.displaced):
        return None
    lost, unit = f"{-curves.chosen:.{2 if curves.per_token else 1}f} nats", "per token" if curves.per_token else "each"
    since = "against the reference" if loss.kind.reference else "since training began"
    return Alarm(
        "ALARM",
        "training",
        "likelihood displacement",
        f"Chosen completions lost {lost} of log-probability {unit} {since}. The margin grows because both sides become less "
        f"likely (arXiv 2410.08847). Likely cause: {_displacing(loss)}.",
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
        f"The share of pairs whose chosen completion is the likelier one fell from {first:.0%} to {last:.0%}. Reward margins "
        "do not show this. Raise loss.beta, or add an NLL term.",
    )


def _over_budget(curves: TrainingCurves, budget: float) -> Alarm | None:
    if not budget or curves.kl is None or curves.kl <= budget:
        return None
    return Alarm(
        "ALARM",
        "training",
        "KL over budget",
        f"The policy is {curves.kl:.1f} nats per completion from its reference (k1, on the training data); "
        f"gate.kl_budget is {budget:g}. "
        "Raise loss.beta or lower train.steps.",
    )


def _collapsed(stopped: Mapping[str, Any] | None, seen: Fall | None, causes: Sequence[collapse_causes.Cause]) -> Alarm | None:
    """A watch if training stopped in time, since its result is then a save from before the collapse."""
    if stopped:
        fall = Fall(Window(**stopped["best"]), Window(**stopped["now"]), stopped["errors"], stopped["left"])
        result = f" Training stopped at step {stopped['step']}; its result is the save of step {stopped['save']}."
    elif seen:
        fall, result = seen, " It has not recovered. Use a save from before the fall."
    else:
        return None
    sentence = f"The reward collapsed: {_in_words(fall)}. {collapse_causes.in_words(causes)}{result}"
    return Alarm("watch" if stopped else "ALARM", "training", "reward collapse", sentence)


def _in_words(fall: Fall) -> str:
    best, now = fall.best, fall.now
    return (
        f"its mean was {best.mean:.2f} at its best (steps {best.first} to {best.last}) and {now.mean:.2f} in steps "
        f"{now.first} to {now.last}"
    )


def _reward_fell(curves: TrainingCurves, causes: Sequence[collapse_causes.Cause], limits: Limits) -> Alarm | None:
    if curves.reward is None or curves.lost is None:
        return None
    if curves.lost <= limits.reward or curves.reward.errors <= limits.errors:
        return None
    sentence = (
        f"The reward fell by {curves.lost:.2f} standard deviations from its best: {_in_words(curves.reward)}. "
        f"{collapse_causes.in_words(causes)}"
    )
    return Alarm("ALARM", "training", "reward fell", sentence)


def _unlike_itself(curves: TrainingCurves, vocabulary: int | None) -> list[Alarm]:
    """KL, entropy and length on their own, while the reward holds: it may be about to fall, or be fooled."""
    found: list[tuple[Level, str, collapse_causes.Cause | None]] = [
        ("ALARM", "KL blow-up", collapse_causes.of_kl(curves)),
        ("watch", "noise", collapse_causes.of_noise(curves.entropy, vocabulary)),
        ("watch", "token limit", collapse_causes.of_limit(curves, from_start=curves.truncated is not None)),
        ("watch", "empty answers", collapse_causes.of_empty(curves.length)),
    ]
    return [
        Alarm(level, "training", name, f"{cause.finding[0].upper()}{cause.finding[1:]}. {cause.remedy}")
        for level, name, cause in found
        if cause
    ]


def _all_equal(curves: TrainingCurves, limits: Limits) -> Alarm | None:
    if curves.equal is None or curves.equal <= limits.equal:
        return None
    start = f"For {curves.equal:.0%} of the prompts all samples have the same reward, so there is nothing to learn from them."
    if cause := collapse_causes.of_limit(curves, from_start=True):
        return Alarm("watch", "training", "rewards all equal", f"{start} Likely cause: {cause.finding}. {cause.remedy}")
    remedy = (
        "Use prompts that are neither too easy nor too hard ([[curate]] pass_rate_band), or more samples of a prompt "
        "(generate.n)."
    )
    return Alarm("watch", "training", "rewards all equal", f"{start} {remedy}")


def _of_finishing(before: Mapping[str, Metric], after: Mapping[str, Metric], limits: Limits) -> Alarm | None:
    old, new = before.get("finished"), after.get("finished")
    if old is None or new is None or old.value is None or new.value is None or old.low is None or new.high is None:
        return None
    lost = old.value - new.value
    if lost <= limits.finished or new.high >= old.low:
        return None
    sentence = (
        f"The share of completions that end by themselves fell from {old.value:.0%} to {new.value:.0%}: the end-of-sequence "
        "token lost probability. Lower train.steps, or add an NLL term."
    )
    return Alarm("STOP" if lost > 4 * limits.finished else "ALARM", "training", "finish rate", sentence)


FORGOTTEN = {"accuracy_vs_base": 0.02, "logprob_vs_base": 0.05}  # smallest losses that count: accuracy, nats per token


def forgetting(now: Mapping[str, Metric], before: Mapping[str, Metric]) -> list[Alarm]:
    """Alarms about evaluation suites that are significantly worse than at checkpoint 0: a watch, and an ALARM if it repeats.

    Checkpoint 0 is the model that the campaign started from.

    Args:
        now, before: the metrics of this round and of the round before.
    """
    alarms = []
    for name in now:
        suite, _, metric = name.removeprefix("suite/").partition("/")
        if name.startswith("suite/") and metric in FORGOTTEN and _lost(now[name], FORGOTTEN[metric]):
            repeated = name in before and _lost(before[name], FORGOTTEN[metric])
            loss = _loss_in_words(metric, now[name], now[name.removesuffix("_vs_base")])
            sentence = f"{loss} To lose less: raise loss.beta, set gate.kl_budget, or lower train.steps."
            alarms.append(Alarm("ALARM" if repeated else "watch", "suite", f"suite {suite}", sentence))
    return alarms


def _lost(difference: Metric, smallest: float) -> bool:
    if difference.value is None or difference.high is None:
        return False
    return difference.high < 0 and difference.value <= -smallest


def _loss_in_words(metric: str, difference: Metric, level: Metric) -> str:
    change, now = difference.value or 0.0, level.value or 0.0
    if metric == "accuracy_vs_base":
        values = f"Accuracy fell from {100 * (now - change):.1f}% to {100 * now:.1f}%"
    else:
        values = f"Log-probability per token fell from {now - change:.2f} to {now:.2f}"
    return f"{values} since round 0, on {difference.n} prompts."


UNINFORMATIVE = 0.55  # AUROC below which a judge is little better than chance (0.5)


def uninformative_judges(now: Mapping[str, Metric], before: Mapping[str, Metric], scores: Sequence[Score]) -> list[Alarm]:
    """An alarm if no rewarded scorer can rank the completions of one prompt: a watch, and a STOP if it repeats.

    No alarm if the verifier has a weight: then the other scorers may reward a style. The AUROC is within prompts, because
    selection is: a judge that only separates hard prompts from easy ones has a good AUROC overall.

    Args:
        now, before: the metrics of this round and of the round before, with `judge/<label>/within_prompt_auroc`.
        scores: of the recipe, the verifier first.
    """
    rewarded = [score for score in scores if score.weight]
    if scores[0].weight or not all(_uninformative(now, score) for score in rewarded):
        return []
    repeated = all(_uninformative(before, score) for score in rewarded)
    best = max((now[_auroc(score)] for score in rewarded), key=lambda auroc: auroc.value or 0.0)
    sentence = (
        f"{', '.join(score.label for score in rewarded)} ranks the completions of one prompt no better than chance: AUROC "
        f"{best.value:.2f} [{best.low:.2f}, {best.high:.2f}] over {best.n} prompts with right and wrong completions. "
        "Use another judge, or give the verifier a weight."
    )
    return [Alarm("STOP" if repeated else "watch", "judge", "judge", sentence)]


def _auroc(score: Score) -> str:
    return f"judge/{score.label}/within_prompt_auroc"


def _uninformative(metrics: Mapping[str, Metric], score: Score) -> bool:
    """Whether even the upper end of the interval is below the limit. A judge without this metric counts as informative."""
    auroc = metrics.get(_auroc(score))
    return auroc is not None and auroc.value is not None and auroc.high is not None and auroc.high < UNINFORMATIVE
