"""Training that fails is noticed: from the log of every step and what was measured after it to alarms that name a cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.campaign import Metric
from data.loss import Loss
from data.settings import Score
from tasks.alarms import Alarm

Row = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """What counts as trouble. The tiny world's healthy and collapsing runs lie on either side of each (see the README)."""

    tail: float = 0.2  # share of the steps that "at the end" means
    margin: float = 0.02  # |reward margin| below which nothing was learned,
    still: float = 0.5  # unless it is this many nats all the same, with the small beta of SPPO
    displaced: float = 3.0  # nats a chosen completion may lose against the reference
    exploded: float = 20.0  # reward margin: sigmoid(20) is 1 to 9 digits
    ranking: float = 0.05  # share of pairs that may lose their order
    finished: float = 0.05  # share of completions that may stop finishing; four times that is a hard limit


def training_alarms(
    log: Sequence[Row],
    loss: Loss,
    before: Mapping[str, Metric],
    after: Mapping[str, Metric],
    kl_budget: float = 0.0,
    limits: Limits = Limits(),
) -> list[Alarm]:
    """Alarms about one training.

    Args:
        log: rows of TRAINING. before, after: what was measured of the start and of the result, `finished` among it.
        kl_budget: nats per completion that the policy may move away from the reference; 0 = no budget.
    """
    found = [*_of_pairs(log, loss, kl_budget, limits)] if loss.kind.trainer in ("dpo", "kto") else []
    if loss.kind.data == "online" and kl_budget and (kl := end(log, "kl", limits.tail)) is not None and kl > kl_budget:
        found.append(_over_budget(kl, kl_budget))
    return found + _of_finishing(before, after, limits)


def end(log: Sequence[Row], metric: str, tail: float) -> float | None:
    """The mean of a metric over the last steps that have it."""
    values = [row["value"] for row in log if row["metric"] == metric]
    last = values[-max(1, round(tail * len(values))) :]
    return sum(last) / len(last) if last else None


def _of_pairs(log: Sequence[Row], loss: Loss, kl_budget: float, limits: Limits) -> list[Alarm]:
    margin, chosen, rejected = (end(log, f"rewards/{name}", limits.tail) for name in ("margins", "chosen", "rejected"))
    found = []
    if margin is not None and abs(margin) < limits.margin and abs(margin) / loss.beta < limits.still:
        found.append(
            Alarm(
                "watch",
                "loss stuck",
                f"reward margins end at {margin:+.3f}, the loss where it began (0.69 for sigmoid): nothing was learned; likely "
                "train.learning_rate or train.steps too small, or loss.beta",
            )
        )
    if margin is not None and margin > limits.exploded:
        found.append(
            Alarm(
                "ALARM",
                "margins exploded",
                f"reward margins end at {margin:.1f}: the pairs are told apart with certainty and training goes on; likely too "
                "many steps or too high a train.learning_rate",
            )
        )
    if chosen is not None and (moved := chosen / loss.beta) < -limits.displaced:
        found.append(
            Alarm(
                "ALARM",
                "likelihood displacement",
                f"chosen completions lost {-moved:.1f} nats each against the reference: the margin grows by pushing both sides "
                f"down (arXiv 2410.08847); likely loss.beta = {loss.beta:g} is too small, or terms = {{ nll = 1.0 }} missing",
            )
        )
    first, last = (end(rows, "ranking_accuracy", limits.tail) for rows in (log[::-1], log))  # not of one step: a few pairs
    if first is not None and last is not None and last < first - limits.ranking:
        found.append(
            Alarm(
                "watch",
                "ranking accuracy",
                f"pairs in the right order by likelihood: {first:.0%} -> {last:.0%}, whatever the rewards say",
            )
        )
    if kl_budget and chosen is not None and rejected is not None:
        kl = -(chosen + rejected) / (
            2 * loss.beta
        )  # completions drawn near the reference: an estimate of KL(reference, policy)
        if kl > kl_budget:
            found.append(_over_budget(kl, kl_budget))
    return found


def _over_budget(kl: float, budget: float) -> Alarm:
    return Alarm(
        "ALARM",
        "KL over budget",
        f"{kl:.1f} nats per completion from the reference, budget {budget:g}; raise loss.beta or train less",
    )


def _of_finishing(before: Mapping[str, Metric], after: Mapping[str, Metric], limits: Limits) -> list[Alarm]:
    old, new = before.get("finished"), after.get("finished")
    if old is None or new is None or old.value is None or new.value is None or old.low is None or new.high is None:
        return []
    lost = old.value - new.value
    if lost <= limits.finished or new.high >= old.low:
        return []
    said = f"completions that end by themselves: {old.value:.0%} -> {new.value:.0%}; the end-of-sequence token lost probability"
    return [Alarm("STOP" if lost > 4 * limits.finished else "ALARM", "finish rate", said)]


LOSS = {"accuracy_vs_base": 0.02, "logprob_vs_base": 0.05}  # worth a word: points of accuracy, nats per token


def forgetting(now: Mapping[str, Metric], before: Mapping[str, Metric]) -> list[Alarm]:
    """Alarms about evaluation suites that are surely worse than at checkpoint 0: a watch, and an ALARM from the second round
    running on. `before`: what the round before measured."""
    found = []
    for name in now:
        suite, _, what = name.removeprefix("suite/").partition("/")
        if name.startswith("suite/") and what in LOSS and _lost(now[name], LOSS[what]):
            again = name in before and _lost(before[name], LOSS[what])
            said = _said_of(what, now[name], now[name.removesuffix("_vs_base")])
            found.append(
                Alarm(
                    "ALARM" if again else "watch",
                    f"suite {suite}",
                    f"{said}; acts on it: loss.beta, gate.kl_budget, fewer steps",
                )
            )
    return found


def _lost(difference: Metric, least: float) -> bool:
    return difference.value is not None and difference.high is not None and difference.high < 0 and difference.value <= -least


def _said_of(what: str, difference: Metric, level: Metric) -> str:
    lost, now = difference.value or 0.0, level.value or 0.0
    if what == "accuracy_vs_base":
        return f"accuracy {100 * (now - lost):.1f}% -> {100 * now:.1f}% since round 0, on {difference.n} prompts"
    return f"log-probability per token {now - lost:.2f} -> {now:.2f} since round 0, on {difference.n} prompts"


BLIND = 0.55  # AUROC below which a judge as good as guesses; 0.5 is chance


def blind_judges(now: Mapping[str, Metric], before: Mapping[str, Metric], scores: Sequence[Score]) -> list[Alarm]:
    """Alarms about judges that are rewarded and surely cannot rank the answers to one prompt: a watch, and from the second
    round running on a STOP, where the verifier's word is no part of the reward beside them.

    Within a prompt, because choosing is: a judge that only knows hard prompts from easy ones has a fine AUROC overall.

    Args:
        now, before: of this round and the one before, `judge/<label>/within_prompt_auroc` with its interval among them.
        scores: of the recipe, the verifier first.
    """
    verifier, *judges = scores
    found = []
    for score in judges:
        name = f"judge/{score.label}/within_prompt_auroc"
        if score.weight and name in now and _blind(now[name]):
            again = name in before and _blind(before[name])
            auroc = now[name]
            said = (
                f"ranks the answers to one prompt no better than chance: AUROC {auroc.value:.2f} [{auroc.low:.2f}, "
                f"{auroc.high:.2f}] over {auroc.n} prompts with right and wrong ones; acts on it: another judge, score.weight"
            )
            found.append(Alarm("STOP" if again and not verifier.weight else "watch", f"judge {score.label}", said))
    return found


def _blind(auroc: Metric) -> bool:
    return auroc.value is not None and auroc.high is not None and auroc.high < BLIND
