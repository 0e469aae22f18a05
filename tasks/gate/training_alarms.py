"""Training that fails is noticed: from the log of every step and what was measured after it to alarms that name a cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.recipe.loss import Loss
from data.recipe.settings import Score
from data.store.campaign import Metric
from tasks.bias.alarm_rule import Alarm
from tasks.gate.training_curves import Course, Row, course


@dataclass(frozen=True)
class Limits:
    """What counts as trouble. The tiny world's healthy and collapsing runs lie on either side of each (see the README)."""

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
    seen = course(log, loss, limits.tail)
    found = [
        _stuck(seen, loss, limits),
        _exploded(seen, limits),
        _displaced(seen, loss, limits),
        _order_lost(seen, limits),
        _over_budget(seen, kl_budget),
        _reward_fell(seen, limits),
        _all_equal(seen, limits),
        _of_finishing(before, after, limits),
    ]
    return [alarm for alarm in found if alarm]


def _stuck(seen: Course, loss: Loss, limits: Limits) -> Alarm | None:
    learned = seen.learned
    if learned is None or abs(learned) >= limits.margin or abs(learned) / loss.beta >= limits.still:
        return None
    return Alarm(
        "watch",
        "loss stuck",
        f"reward margins end at {seen.margin:+.3f}, the loss where it began (0.69 for sigmoid): nothing was learned; likely "
        "train.learning_rate or train.steps too small, or loss.beta",
    )


def _exploded(seen: Course, limits: Limits) -> Alarm | None:
    if seen.margin is None or seen.margin <= limits.exploded:
        return None
    return Alarm(
        "ALARM",
        "margins exploded",
        f"reward margins end at {seen.margin:.1f}: the pairs are told apart with certainty and training goes on; likely too "
        "many steps or too high a train.learning_rate",
    )


def _displaced(seen: Course, loss: Loss, limits: Limits) -> Alarm | None:
    if seen.chosen is None or -seen.chosen <= (limits.displaced_token if seen.per_token else limits.displaced):
        return None
    lost, of = f"{-seen.chosen:.{2 if seen.per_token else 1}f} nats", "a token" if seen.per_token else "each"
    since = "against the reference" if loss.kind.reference else "since training began"
    return Alarm(
        "ALARM",
        "likelihood displacement",
        f"chosen completions lost {lost} {of} {since}: the margin grows by pushing both sides down (arXiv 2410.08847); "
        f"likely {_displacing(loss)}",
    )


def _displacing(loss: Loss) -> str:
    match loss.kind.trainer:
        case "kto":
            return "the wrong completions outweigh the right ones: loss.desirable_weight = 0 balances them"
        case "orpo":
            return f"loss.beta = {loss.beta:g}, the weight of the odds ratio, is too large beside the NLL"
        case "cpo":
            return "train.learning_rate is too high, or terms = { sft = 1.0 } missing"
        case _:
            term = "nll" if loss.name == "sigmoid" else "sft"
            return f"loss.beta = {loss.beta:g} is too small, or terms = {{ {term} = 1.0 }} missing"


def _order_lost(seen: Course, limits: Limits) -> Alarm | None:
    if seen.order is None or seen.order[1] >= seen.order[0] - limits.ranking:
        return None
    first, last = seen.order
    return Alarm(
        "watch",
        "ranking accuracy",
        f"pairs in the right order by likelihood: {first:.0%} -> {last:.0%}, whatever the rewards say",
    )


def _over_budget(seen: Course, budget: float) -> Alarm | None:
    if not budget or seen.kl is None or seen.kl <= budget:
        return None
    return Alarm(
        "ALARM",
        "KL over budget",
        f"{seen.kl:.1f} nats per completion from the reference, budget {budget:g}; raise loss.beta or train less",
    )


def _reward_fell(seen: Course, limits: Limits) -> Alarm | None:
    if seen.reward is None or -seen.reward <= limits.reward:
        return None
    return Alarm(
        "ALARM",
        "reward fell",
        f"the mean reward of the samples fell by {-seen.reward:.2f} of its standard deviation in the phase; likely "
        "train.learning_rate is too high, or loss.beta too small",
    )


def _all_equal(seen: Course, limits: Limits) -> Alarm | None:
    if seen.equal is None or seen.equal <= limits.equal:
        return None
    return Alarm(
        "watch",
        "rewards all equal",
        f"the samples of {seen.equal:.0%} of the prompts have one reward, so nothing tells them apart and nothing is learned; "
        "likely prompts too easy or too hard ([[curate]] pass_rate_band), or generate.n too small",
    )


def _of_finishing(before: Mapping[str, Metric], after: Mapping[str, Metric], limits: Limits) -> Alarm | None:
    old, new = before.get("finished"), after.get("finished")
    if old is None or new is None or old.value is None or new.value is None or old.low is None or new.high is None:
        return None
    lost = old.value - new.value
    if lost <= limits.finished or new.high >= old.low:
        return None
    said = f"completions that end by themselves: {old.value:.0%} -> {new.value:.0%}; the end-of-sequence token lost probability"
    return Alarm("STOP" if lost > 4 * limits.finished else "ALARM", "finish rate", said)


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
    """An alarm where nothing that is rewarded can rank the answers to one prompt: a watch, and a STOP in the second round
    running. None where the verifier's word is part of the reward: what stands beside it may reward a style.

    Within a prompt, because choosing is: a judge that only knows hard prompts from easy ones has a fine AUROC overall.

    Args:
        now, before: of this round and the one before, `judge/<label>/within_prompt_auroc` with its interval among them.
        scores: of the recipe, the verifier first.
    """
    rewarded = [score for score in scores if score.weight]
    if scores[0].weight or not all(_blind(now, score) for score in rewarded):
        return []
    again = all(_blind(before, score) for score in rewarded)
    best = max((now[_auroc(score)] for score in rewarded), key=lambda auroc: auroc.value or 0.0)
    said = (
        f"{', '.join(score.label for score in rewarded)} ranks the answers to one prompt no better than chance: AUROC "
        f"{best.value:.2f} [{best.low:.2f}, {best.high:.2f}] over {best.n} prompts with right and wrong ones; acts on it: "
        "another judge"
    )
    return [Alarm("STOP" if again else "watch", "judge", said)]


def _auroc(score: Score) -> str:
    return f"judge/{score.label}/within_prompt_auroc"


def _blind(metrics: Mapping[str, Metric], score: Score) -> bool:
    """Surely, by the end of its interval; a judge of which nothing is known is not."""
    auroc = metrics.get(_auroc(score))
    return auroc is not None and auroc.value is not None and auroc.high is not None and auroc.high < BLIND
