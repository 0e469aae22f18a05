"""Features by the verifier: agreement of answers, coverage, over-confidence, effect of reflection."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from data.rows.completions import is_right, is_wrong
from tasks.bias.features.reflection import reflects
from tasks.bias.features.tone import confidence
from tasks.bias.prompt_features import Groups, Values, Verdicts, mean_or_none

Answers = Sequence[Sequence[str | None]]


def answer_entropy(groups: Groups, *, answers: Answers) -> Values:
    """Entropy of the final answers with Miller and Madow's correction (m - 1) / 2K, divided by log K; None below 2 answers."""
    return [_entropy([a for a in given if a is not None]) for given in answers]


def _entropy(given: Sequence[str]) -> float | None:
    k = len(given)
    if k < 2:
        return None
    shares = [n / k for n in Counter(given).values()]
    return (-math.fsum(p * math.log(p) for p in shares) + (len(shares) - 1) / (2 * k)) / math.log(k)


def answer_collision(groups: Groups, *, answers: Answers) -> Values:
    """Chance that two samples agree: sum n_a (n_a - 1) / (K (K - 1)), unbiased; None below 2 answers."""
    return [_collision([a for a in given if a is not None]) for given in answers]


def _collision(given: Sequence[str]) -> float | None:
    k = len(given)
    return sum(n * (n - 1) for n in Counter(given).values()) / (k * (k - 1)) if k > 1 else None


def coverage_gap(groups: Groups, *, verdicts: Verdicts) -> Values:
    """pass@K - pass@1 over the K judged samples: the gain from more samples. It shrinks as a policy narrows."""
    known = [[is_right(v) for v in values if v is not None] for values in verdicts]
    return [float(any(right)) - sum(right) / len(right) if len(right) > 1 else None for right in known]


def vote_overconfidence(groups: Groups, *, verdicts: Verdicts, answers: Answers) -> Values:
    """Calibration of the policy's own vote: share of the commonest answer, minus whether that answer is right."""
    return [_vote(a, v, lambda share, right: share - right) for a, v in zip(answers, verdicts, strict=True)]


def vote_brier(groups: Groups, *, verdicts: Verdicts, answers: Answers) -> Values:
    """(share of the commonest answer - whether it is right) squared: the Brier score of the vote."""
    return [_vote(a, v, lambda share, right: (share - right) ** 2) for a, v in zip(answers, verdicts, strict=True)]


def _vote(
    answers: Sequence[str | None], verdicts: Sequence[float | None], score: Callable[[float, float], float]
) -> float | None:
    both = [(a, v) for a, v in zip(answers, verdicts, strict=True) if a is not None and v is not None]
    if len(both) < 2:
        return None
    top, n = Counter(answer for answer, _ in both).most_common(1)[0]
    right = next(float(is_right(v)) for answer, v in both if answer == top)
    return score(n / len(both), right)


def overconfidence(groups: Groups, *, verdicts: Verdicts) -> Values:
    """Mean confidence index of the wrong samples minus that of the right ones; None unless the prompt has both."""
    wrong = [[None if v is None else float(is_wrong(v)) for v in values] for values in verdicts]
    return _contrast([confidence(samples) for samples in groups], wrong)


def reflection_effect(groups: Groups, *, verdicts: Verdicts) -> Values:
    """Accuracy of the samples with a reflection keyword minus that of those without; None unless the prompt has both."""
    right = [[None if v is None else float(is_right(v)) for v in values] for values in verdicts]
    return _contrast(right, [reflects(samples) for samples in groups])


def _contrast(values: Sequence[Values], on: Sequence[Values]) -> Values:
    """Per prompt, mean value where `on` is 1 minus mean where it is 0."""
    out: Values = []
    for value, which in zip(values, on, strict=True):
        known = [(v, w) for v, w in zip(value, which, strict=True) if v is not None and w is not None]
        with_, without = mean_or_none([v for v, w in known if w]), mean_or_none([v for v, w in known if not w])
        out.append(None if with_ is None or without is None else with_ - without)
    return out
