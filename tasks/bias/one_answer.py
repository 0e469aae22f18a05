"""The alarm about a policy that gives many prompts one and the same answer."""

from __future__ import annotations

import numpy as np

from data.alarm import Alarm, Level
from tasks.bias.effects import Array, prompt_means
from tasks.bias.ledger import Sample
from tasks.bias.marks import Marks
from tasks.bias.pressure import Estimate, estimate

RISE = 0.10  # smallest rise of the commonest answer's share that raises an alarm
MOST = 0.90  # share of prompts with one answer that is a STOP
P = 0.001  # one-sided p of the rise, so that five rounds without a cause alarm in at most 0.5% of campaigns
FEWEST = 12  # prompts below which no alarm is raised
ONE_ANSWER = "one answer"
BETTER = "Verified accuracy surely rose, so these prompts may have few different right answers."


def one_answer(
    now: Marks | None, base: Marks | None, accuracy: Estimate | None = None, first: str = "round 0", advice: str = ""
) -> list[Alarm]:
    """An ALARM if surely more prompts get the commonest answer than at round 0; a STOP if at least 90% get it.

    Where answers are short by nature (yes or no), a policy that learns to answer raises the share too. So it is a watch if
    verified accuracy surely rose.

    Args:
        now, base: of the same prompts, in one order.
        accuracy: the rise of verified accuracy since round 0.
        first: what round 0 is called.
        advice: the last sentence of the alarm.
    """
    if now is None or base is None or len(now.prompts) < FEWEST:
        return []
    ours, theirs = commonest(now), commonest(base)
    share, before = ours.mean(), theirs.mean()
    if share - before < RISE or _p_of_rise(ours, theirs) >= P:
        return []
    better = accuracy is not None and accuracy.low > 0
    level: Level = "watch" if better else "STOP" if share >= MOST else "ALARM"
    sentences = [_sentence(now, base, first), BETTER if better else "", advice]
    return [Alarm(level, "ledger", ONE_ANSWER, " ".join(filter(None, sentences)))]


def _sentence(now: Marks, base: Marks, first: str) -> str:
    ours, n = commonest(now), len(now.prompts)
    quoted = now.openings[int(ours.argmax())].removesuffix(".")
    answer = f'the same answer: "{quoted}"' if quoted else "an answer without a word"
    return (
        f"{ours.sum()} of {n} prompts get {answer}. With {first} the commonest answer went to {commonest(base).sum()} of them. "
        f"Distinct answers: {len(np.unique(now.answers))}, with {first} {len(np.unique(base.answers))}."
    )


def accuracy_rise(now: Sample, base: Sample) -> Estimate | None:
    """The rise of verified accuracy, paired by prompt; None without verdicts."""
    if now.right is None or base.right is None:
        return None
    return estimate(prompt_means(now.right) - prompt_means(base.right))


def commonest(marks: Marks) -> Array:
    """Whether each prompt has the commonest answer."""
    _, which, counts = np.unique(marks.answers, return_inverse=True, return_counts=True)
    most: Array = which == counts.argmax()
    return most


def _p_of_rise(now: Array, then: Array) -> float:
    """One-sided exact McNemar test over the prompts where the two differ."""
    from scipy.stats import binom

    up, down = int((now & ~then).sum()), int((then & ~now).sum())
    return float(binom.sf(up - 1, up + down, 0.5))
