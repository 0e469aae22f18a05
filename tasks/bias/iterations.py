"""The ledger of given outputs as successive iterations, each against the first and the one before; and an A/A check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.alarm import Alarm, by_gravity
from tasks.bias.alarm_rule import judge
from tasks.bias.effects import Array, Kind
from tasks.bias.ledger import Entry, Sample, compare
from tasks.bias.one_answer import accuracy_rise, one_answer
from tasks.bias.overoptimisation import Gap, proxy_gap

OUTCOMES: dict[str, Kind] = {"gold": "rate", "judge": "real"}  # training should change these: shown, never an alarm


@dataclass(frozen=True)
class Step:
    """One iteration against the first: entries, alarms, and how far the judge outran gold if both are known."""

    entries: list[Entry]
    alarms: list[Alarm]
    outcomes: list[Entry]
    proxy_gap: Gap | None


def ledger_of(
    samples: Sequence[Sample],
    kinds: Mapping[str, Kind],
    strata: Sequence[str | None] | None = None,
    first: str = "the first",
) -> list[Step]:
    """A Step for every sample after the first. All samples are of the same prompts, in one order.

    Args:
        first: what alarms call the first sample.
    """
    steps: list[Step] = []
    base, earlier = samples[0], list[Entry]()
    for number, now in enumerate(samples[1:], 1):
        previous = samples[number - 1] if number > 1 else None
        earlier, alarms = judge(compare(now, base, previous, kinds=kinds, strata=strata), earlier, round=number)
        outcomes = [e for e in compare(now, base, previous, kinds=OUTCOMES) if e.group is None]
        same = one_answer(now.marks, base.marks, accuracy_rise(now, base), first)
        steps.append(Step(earlier, by_gravity(same + alarms), outcomes, _gap(now, base)))
    return steps


def _gap(now: Sample, base: Sample) -> Gap | None:
    columns = [sample.values.get(name) for sample in (now, base) for name in ("judge", "gold")]
    judged, gold, judged_0, gold_0 = columns
    if judged is None or gold is None or judged_0 is None or gold_0 is None:
        return None
    return proxy_gap(judged, gold, judged_0, gold_0)


def halves(sample: Sample, seed: int = 0) -> tuple[Sample, Sample]:
    """Two halves of one checkpoint's samples: of the samples of each prompt, or of the prompts if each has one sample.

    Halves of the prompts are paired at random, so the paired test becomes one of two independent groups.
    """
    prompts, columns = max((v.shape for v in sample.values.values()), key=lambda shape: shape[1])
    if columns > 1:
        own = {name: v for name, v in sample.values.items() if v.shape[1] == columns}  # without features of whole prompts
        first, second = slice(0, columns // 2), slice(columns // 2, 2 * (columns // 2))
        return _cut(sample, own, (slice(None), first)), _cut(sample, own, (slice(None), second))
    order = np.random.default_rng(seed).permutation(prompts)
    half = prompts // 2
    return _cut(sample, sample.values, (order[:half],)), _cut(sample, sample.values, (order[half : 2 * half],))


def _cut(sample: Sample, values: Mapping[str, Array], part: tuple[slice | Array, ...]) -> Sample:
    return Sample({name: v[part] for name, v in values.items()}, None if sample.right is None else sample.right[part])


def null_test(sample: Sample, kinds: Mapping[str, Kind]) -> Step:
    """Two halves of one sample compared. There should be no alarms, else the alarm rule does not fit these data."""
    one, other = halves(sample)
    entries, alarms = judge(compare(one, other, None, kinds=kinds), round=1)
    return Step(entries, alarms, [], None)
