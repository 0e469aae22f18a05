"""A watch if a rewarded scorer surely favours longer, shorter or its own texts, in two rounds in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data.alarm import Alarm
from data.recipe.settings import Score
from data.store.campaign import Metric

# Metric of judge health -> the smallest bias that counts. A fair judge is surely beyond it in two rounds in a row in at most 1%
# of campaigns of 20 rounds (tests/test_judge_health.py).
SMALLEST = {"length_bias": 0.05, "self_preference": 0.1}
TOLD = {
    ("length_bias", 1): "errs more often in favour of the longer text",
    ("length_bias", -1): "errs more often in favour of the shorter text",
    ("self_preference", 1): "gives its own texts higher scores at the same verdict",
    ("self_preference", -1): "gives its own texts lower scores at the same verdict",
}
REMEDY = {
    "length_bias": "To counter it: length_penalty, length_matched, residualised (see [[mitigate]]), or another judge.",
    "self_preference": "To counter it: another judge, or set score.checkpoint to a model that wrote none of the texts.",
}


def biased_judges(now: Mapping[str, Metric], before: Mapping[str, Metric], scores: Sequence[Score]) -> list[Alarm]:
    """One watch per rewarded scorer and bias.

    Args:
        now, before: the metrics of this round and of the round before, with `judge/<label>/...`.
        scores: of the recipe, the verifier first.
    """
    alarms = []
    for score in (score for score in scores[1:] if score.weight):
        for bias in SMALLEST:
            name = f"judge/{score.label}/{bias}"
            direction = _direction(now.get(name), SMALLEST[bias])
            if direction and direction == _direction(before.get(name), SMALLEST[bias]):
                size = f"{_size(bias, now[name])}, as in the round before"
                sentence = f"{score.label} {TOLD[bias, direction]}: {size}. {REMEDY[bias]}"
                alarms.append(Alarm("watch", "judge", f"{score.label} {bias.replace('_', ' ')}", sentence))
    return alarms


def _direction(metric: Metric | None, smallest: float) -> int:
    """The sign of a bias whose interval lies beyond the smallest one that counts; 0 for any other."""
    if metric is None or metric.low is None or metric.high is None:
        return 0
    return (metric.low > smallest) - (metric.high < -smallest)


def _size(bias: str, metric: Metric) -> str:
    scale, unit = (100, "points") if bias == "length_bias" else (1, "SD")
    value, low, high = (scale * (x or 0.0) for x in (metric.value, metric.low, metric.high))
    form = "+.1f" if scale > 1 else "+.2f"
    return f"{value:{form}} {unit} [{low:{form}}, {high:{form}}] over {metric.n} prompts"
