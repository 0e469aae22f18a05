"""The bias ledger of a round: one Entry per feature and group, with its drift from round 0 and its step in this round.

Groups: None is all completions. "right" and "wrong" are by the verifier. "equal accuracy" is for features of whole prompts: the
value minus the mean, at round 0, of prompts with as many right samples. A feature that changed only because more answers are
right did not change in these three. Any other name is a stratum of the prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tasks.bias.effects import SMALLEST, Array, Kind, changes, prompt_means, spread
from tasks.bias.marks import Marks

CONDITIONED = ("right", "wrong", "equal accuracy")
ACROSS = frozenset(("shared_answer", "answer_similarity"))  # jackknife values of all prompts, meaningless for a part of them


@dataclass(frozen=True)
class Sample:
    """The features of one checkpoint on the probe: per feature an array of prompts x samples, NaN = does not apply.

    Samples that are compared have the same prompts in the same order. A feature of a whole prompt (self-BLEU, answer entropy)
    has one column per set of samples.
    """

    values: Mapping[str, Array]
    right: Array | None = None  # the verifier's 1.0 or 0.0; None without a verifier
    marks: Marks | None = None  # what is kept of the answers to compare prompts; None if no feature does


@dataclass(frozen=True)
class Entry:
    """A row of the LEDGER table; None = unknown. For lengths, drift and step are log ratios (0.1: about 10% longer)."""

    feature: str
    group: str | None
    kind: Kind
    n: int  # prompts compared with round 0
    mean: float | None  # for lengths the geometric mean
    base: float | None  # the mean at round 0, of the same prompts
    drift: float | None  # from round 0, with its 95% interval
    drift_low: float | None
    drift_high: float | None
    effect: float | None  # d0: the drift in standard deviations of round 0; Cohen's h for rates
    effect_low: float | None
    effect_high: float | None
    p: float | None
    step: float | None  # change since the checkpoint that training started from
    step_low: float | None
    step_high: float | None
    step_effect: float | None
    step_p: float | None
    p_by: float | None = None  # p and step_p after Benjamini-Yekutieli over all tests of the round
    step_p_by: float | None = None
    level: str = ""  # "", "watch", "ALARM" or "STOP"
    since: int | None = None  # the first round of the unbroken drift from round 0
    pressure: float | None = None  # S: mean of the chosen completions minus mean of all samples
    pressure_low: float | None = None
    pressure_high: float | None = None
    contrast: float | None = None  # Q: chosen minus rejected
    predicted: float | None = None  # S as predicted from the correlation of reward and feature
    gain: float | None = None  # step / pressure; above 1: the policy moved further than its data
    gain_low: float | None = None  # None beside a known gain: the interval is unbounded, since the pressure may be 0
    gain_high: float | None = None
    amplification: float | None = None  # directional, of the checkpoint compared with the chosen data
    mean_low: float | None = None  # of a feature that round 0 does not have, such as the KL from it: its mean has an interval
    mean_high: float | None = None

    @property
    def key(self) -> tuple[str, str | None]:
        return self.feature, self.group


def compare(
    now: Sample,
    base: Sample,
    previous: Sample | None,
    *,
    kinds: Mapping[str, Kind],
    strata: Sequence[str | None] | None = None,
) -> list[Entry]:
    """Entries for every feature in all its groups.

    Args:
        base: of round 0.
        previous: of the checkpoint that training started from; None compares with round 0 alone.
        strata: per prompt, its stratum; groups of fewer than SMALLEST prompts are left out.
    """
    entries: list[Entry] = []
    names = [name for name in kinds if name in now.values and name in base.values]
    yards = {name: spread(base.values[name], kinds[name]) for name in names}
    for name in names:  # a feature that was constant at round 0: its standard deviation now is the unit, else that of both
        if not yards[name] > 0:
            yards[name] = spread(now.values[name], kinds[name])
        if not yards[name] > 0:
            yards[name] = spread(np.concatenate([now.values[name], base.values[name]], axis=1), kinds[name])
    for group, (ours, first, last) in _groups(now, base, previous, strata):
        common = [n for n in names if n in ours and n in first and (n not in ACROSS or group in (None, "equal accuracy"))]
        drift = _table(common, ours, first, kinds, yards)
        step = _table([n for n in common if n in last and drift[n]["n"]], ours, last, kinds, yards)
        entries += [
            _entry(name, group, kinds[name], drift[name], step.get(name))
            for name in common
            if group is None or drift[name]["n"] >= SMALLEST
        ]
    return entries


Values = Mapping[str, Array]


def _groups(
    now: Sample, base: Sample, previous: Sample | None, strata: Sequence[str | None] | None
) -> Iterator[tuple[str | None, tuple[Values, Values, Values]]]:
    samples = [now, base, *([previous] if previous else [])]

    def trio(values: list[Values]) -> tuple[Values, Values, Values]:
        return values[0], values[1], values[2] if previous else {}

    yield None, trio([s.values for s in samples])
    if all(s.right is not None for s in samples):
        for group, verdict in (("right", 1.0), ("wrong", 0.0)):
            yield group, trio([_where(s, verdict) for s in samples])
        expected = _by_accuracy(base)
        yield "equal accuracy", trio([_minus_expected(s, expected) for s in samples])
    names = sorted({s for s in strata or () if s is not None})
    if len(names) > 1 or names == ["benign"]:  # "benign" has a hard limit, also as the only stratum
        for name in names:
            inside = np.array([s == name for s in strata or ()])
            if inside.sum() >= SMALLEST:
                yield name, trio([{f: np.where(inside[:, None], v, np.nan) for f, v in s.values.items()} for s in samples])


def _where(sample: Sample, verdict: float) -> Values:
    """The features of completions with this verdict, without features of whole prompts."""
    assert sample.right is not None
    mask = sample.right == verdict
    return {f: np.where(mask, v, np.nan) for f, v in sample.values.items() if v.shape == mask.shape}


def _shares(sample: Sample, columns: int) -> Array:
    """Share of right samples of each column of a feature of whole prompts: prompts x columns."""
    assert sample.right is not None
    shares: Array = prompt_means(sample.right.reshape(len(sample.right), columns, -1)).round(6)
    return shares


def _of_prompts(sample: Sample) -> Values:
    """The features of whole prompts: they have one column per set of samples, while `right` has one per completion."""
    assert sample.right is not None
    samples = sample.right.shape[1]
    return {f: v for f, v in sample.values.items() if v.shape[1] < samples and samples % v.shape[1] == 0}


def _by_accuracy(base: Sample) -> dict[str, dict[float, float]]:
    """Feature of whole prompts -> share of right samples -> its mean at round 0."""
    means: dict[str, dict[float, float]] = {}
    for name, values in _of_prompts(base).items():
        shares = _shares(base, values.shape[1])
        means[name] = {float(s): _mean(values[shares == s]) for s in np.unique(shares[~np.isnan(shares)])}
    return means


def _minus_expected(sample: Sample, expected: Mapping[str, Mapping[float, float]]) -> Values:
    """Features of whole prompts minus their mean at round 0 for the same accuracy."""
    differences = {}
    for name, values in _of_prompts(sample).items():
        shares = _shares(sample, values.shape[1])
        means = np.full(values.shape, np.nan)
        for share, mean in expected.get(name, {}).items():
            means[shares == share] = mean
        differences[name] = values - means
    return differences


def _table(
    names: Sequence[str], ours: Values, theirs: Values, kinds: Mapping[str, Kind], yards: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    if not names:
        return {}
    change = changes([ours[n] for n in names], [theirs[n] for n in names], [kinds[n] for n in names], [yards[n] for n in names])
    rows = {name: {field: float(array[i]) for field, array in vars(change).items()} for i, name in enumerate(names)}
    return {name: row | {"level": _mean(ours[name])} for name, row in rows.items()}


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _entry(name: str, group: str | None, kind: Kind, drift: Mapping[str, float], step: Mapping[str, float] | None) -> Entry:
    step = step or dict.fromkeys(("difference", "low", "high", "effect", "p"), float("nan"))
    fields: dict[str, Any] = {
        "mean": drift["now"], "base": drift["then"], "drift": drift["difference"],
        "drift_low": drift["low"], "drift_high": drift["high"], "effect": drift["effect"],
        "effect_low": drift["effect_low"], "effect_high": drift["effect_high"], "p": drift["p"],
        "step": step["difference"], "step_low": step["low"], "step_high": step["high"],
        "step_effect": step["effect"], "step_p": step["p"],
    }  # fmt: skip
    if drift["n"] == 0 and group is None:  # unknown at round 0 (a distance to round 0): the ledger shows its mean
        fields["mean"] = drift["level"]
    finite: dict[str, Any] = {k: v if np.isfinite(v) else None for k, v in fields.items()}
    return Entry(name, group, kind, int(drift["n"]), **finite)


def with_corrected(entries: Sequence[Entry]) -> list[Entry]:
    """Fill p_by and step_p_by: Benjamini-Yekutieli over all tests of the round, since features depend on each other.

    A feature with the same value in both samples of every prompt (an unused style) is not tested and does not count.
    """
    from scipy.stats import false_discovery_control

    all_tests = [
        (i, *test) for i, e in enumerate(entries) for test in (("p_by", e.p, e.drift), ("step_p_by", e.step_p, e.step))
    ]
    tests = [(i, field, p) for i, field, p, difference in all_tests if p is not None and not (p == 1.0 and difference == 0.0)]
    corrected_of: dict[int, dict[str, Any]] = {}
    if tests:
        corrected = false_discovery_control([p for _, _, p in tests], method="by")
        for (i, field, _), value in zip(tests, corrected, strict=True):
            corrected_of.setdefault(i, {})[field] = float(value)
    return [replace(entry, **corrected_of.get(i, {})) for i, entry in enumerate(entries)]
