"""What the training data favour and how training responds: selection pressure, contrast, gain, and shortcuts in pairs.

Values are arrays, prompts x samples, NaN where a feature does not apply. `chosen` and `rejected` have the same shape and count
how often each completion is trained on (a completion in three pairs counts three times).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.statistics import mean_interval, ratio_interval, share_interval
from tasks.bias.effects import Array, prompt_means, scaled
from tasks.bias.ledger import CONDITIONED, Entry, Sample


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval; NaN = unknown. The interval of a ratio may be infinite."""

    value: float
    low: float
    high: float


UNKNOWN = Estimate(math.nan, math.nan, math.nan)
DIFFERENCE = (-1.0, 1.0)  # bounds of a difference of two shares
ROUNDING = 1e-12  # a pressure up to this is 0


@dataclass(frozen=True)
class Selection:
    """The data a round trained on: prompts x samples of its training pool, which is not the probe."""

    values: Mapping[str, Array]  # per feature
    chosen: Array
    rejected: Array | None  # of pairs
    reward: Array
    strata: Sequence[str | None]  # per prompt of the pool


def with_selection(
    entries: Sequence[Entry], chosen: Selection, now: Sample, previous: Sample | None, strata: Sequence[str | None]
) -> list[Entry]:
    """The entries with pressure, contrast, gain, predicted pressure and amplification, over all prompts and per stratum.

    Args:
        now: the checkpoint that the round trained, on the probe.
        previous: the checkpoint that its training pool was sampled from, on the probe. None if training started from another
            one: then the gain is unknown.
        strata: per prompt of the probe.
    """
    return [_selected(e, chosen, now, previous, strata) if e.feature in chosen.values else e for e in entries]


def _selected(entry: Entry, chosen: Selection, now: Sample, previous: Sample | None, strata: Sequence[str | None]) -> Entry:
    if entry.group in CONDITIONED:
        return entry
    name, all_of_it = entry.feature, entry.group is None
    pool = np.array([all_of_it or s == entry.group for s in chosen.strata])
    probe = np.array([all_of_it or s == entry.group for s in strata])
    values, weights = scaled(chosen.values[name][pool], entry.kind), chosen.chosen[pool]
    s = pressure(values, weights)
    size, ratio = estimate(s, DIFFERENCE if entry.kind == "rate" else None), UNKNOWN
    if previous is not None:
        here, there = (prompt_means(scaled(sample.values[name][probe], entry.kind)) for sample in (now, previous))
        ratio = gain(here - there, s)
    q = estimate(contrast(values, weights, chosen.rejected[pool])).value if chosen.rejected is not None else math.nan
    more = {
        "pressure": size.value, "pressure_low": size.low, "pressure_high": size.high, "contrast": q,
        "predicted": predicted_pressure(values, chosen.reward[pool]),
        "gain": ratio.value, "gain_low": ratio.low, "gain_high": ratio.high,
        "amplification": _amplified(entry, chosen, now, strata),
    }  # fmt: skip
    return replace(entry, **{k: v if math.isfinite(v) else None for k, v in more.items()})  # type: ignore[arg-type]


def _amplified(entry: Entry, chosen: Selection, now: Sample, strata: Sequence[str | None]) -> float:
    """Directional amplification of a 0/1 style in a stratum, or its mean over strata."""
    names = sorted({s for s in chosen.strata if s is not None})
    if entry.kind != "rate" or len(names) < 2:
        return math.nan
    trained = np.where(chosen.chosen > 0, chosen.values[entry.feature], np.nan)
    outputs = now.values[entry.feature]
    of_pool, of_probe = np.array(chosen.strata, dtype=object), np.array(strata, dtype=object)
    by_stratum = amplification({t: trained[of_pool == t] for t in names}, {t: outputs[of_probe == t] for t in names})
    if entry.group is not None:
        return by_stratum.get(entry.group, math.nan)
    return float(np.mean(list(by_stratum.values()))) if by_stratum else math.nan


def weighted_means(values: Array, weights: Array) -> Array:
    """Weighted mean over the samples of each prompt; NaN for a prompt without weight."""
    weight = np.where(np.isnan(values), 0.0, weights)
    total = weight.sum(-1)
    means: Array = np.divide(
        (np.where(weight > 0, values, 0.0) * weight).sum(-1), total, out=np.full(total.shape, np.nan), where=total > 0
    )
    return means


def estimate(per_prompt: Array, bounds: tuple[float, float] | None = None) -> Estimate:
    """Mean over prompts with its interval; NaN prompts are left out. `bounds` are the least and largest possible value."""
    known = per_prompt[~np.isnan(per_prompt)]
    if known.size < 2:
        return UNKNOWN
    return Estimate(float(known.mean()), *(share_interval(known, *bounds) if bounds else mean_interval(known)))


def pressure(values: Array, chosen: Array) -> Array:
    """S per prompt: mean of the chosen minus mean of all samples; NaN if nothing was chosen."""
    differences: Array = weighted_means(values, chosen) - prompt_means(values)
    return differences


def contrast(values: Array, chosen: Array, rejected: Array) -> Array:
    """Q per prompt: mean of the chosen minus mean of the rejected."""
    differences: Array = weighted_means(values, chosen) - weighted_means(values, rejected)
    return differences


def gain(response: Array, selected: Array) -> Estimate:
    """Response divided by selection pressure: 1 = the policy moved as far as its data, above 1 = training amplified.

    The breeder's equation solved for the gain (response = gain x selection differential), with Fieller's interval of a ratio.
    It is told however small the pressure is, since the ratio to a pressure that is large by chance is too small: told only
    beyond two standard errors, a gain of 1 was .40 on average where the pressure is one. Then its interval is infinite.

    Args:
        response: change of the feature per prompt of the probe.
        selected: selection pressure per prompt of the training pool.
    """
    response, selected = response[~np.isnan(response)], selected[~np.isnan(selected)]
    if len(response) < 2 or len(selected) < 2:
        return UNKNOWN
    if abs(float(selected.mean())) <= ROUNDING:
        return UNKNOWN
    return Estimate(float(response.mean() / selected.mean()), *ratio_interval(response, selected))


def expected_maximum(k: int) -> float:
    """Expected maximum of k standard normals (1.029 for 4, 1.424 for 8)."""
    from scipy.integrate import quad
    from scipy.stats import norm

    return float(quad(lambda x: x * k * norm.pdf(x) * norm.cdf(x) ** (k - 1), -10, 10)[0])


def predicted_pressure(values: Array, reward: Array) -> float:
    """S if the best of K by reward were chosen: within-prompt correlation x expected maximum x within-prompt SD."""
    both = ~np.isnan(values) & ~np.isnan(reward)
    f, r = np.where(both, values, np.nan), np.where(both, reward, np.nan)
    f, r = (x - prompt_means(x)[:, None] for x in (f, r))
    counts = both.sum(-1)
    freedom = int((counts[counts > 0] - 1).sum())
    squares_f, squares_r = float(np.nansum(f * f)), float(np.nansum(r * r))
    if freedom < 1 or squares_f == 0 or squares_r == 0:
        return math.nan
    correlation = float(np.nansum(f * r)) / math.sqrt(squares_f * squares_r)
    return correlation * expected_maximum(round(float(counts[counts > 0].mean()))) * math.sqrt(squares_f / freedom)


def surface_auc(differences: Array, prompts: Sequence[object]) -> float | None:
    """How well surface features tell chosen from rejected: cross-validated AUC of a logistic regression, 0.5 = chance.

    Args:
        differences: pairs x features, chosen minus rejected; NaN counts as no difference.
        prompts: the prompt of each pair; folds never share one.

    Returns:
        None below 20 pairs or 5 prompts.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = np.nan_to_num(np.asarray(differences, dtype=float))
    if len(x) < 20 or len(set(prompts)) < 5:
        return None
    if not x.any():
        return 0.5
    both, labels = np.concatenate([x, -x]), np.repeat([1, 0], len(x))  # either side may come first, so there is no intercept
    groups = np.unique(np.array([str(p) for p in prompts]), return_inverse=True)[1]
    model = make_pipeline(StandardScaler(with_mean=False), LogisticRegression(fit_intercept=False))
    decisions = np.zeros(len(both))
    for train, test in GroupKFold(5).split(both, labels, np.tile(groups, 2)):
        decisions[test] = model.fit(both[train], labels[train]).decision_function(both[test])
    return float(roc_auc_score(labels, decisions))


def amplification(trained: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, float]:
    """Directional bias amplification of a 0/1 feature per stratum: y * (share in outputs - share in training data).

    y = sign(P(a, t) - P(a) P(t)) on the training data: +1 if the stratum has more of the style than the rest. So a positive
    value means that the model exaggerates a difference of its data. Wang & Russakovsky, arXiv 2102.12594.

    Args:
        trained: stratum -> the feature's values in the chosen data.
        outputs: stratum -> its values in the outputs of the checkpoint trained on these data.
    """
    known = {t: v[~np.isnan(v)] for t, v in trained.items()}
    everything = np.concatenate([v for v in known.values() if v.size] or [np.zeros(0)])
    by_stratum: dict[str, float] = {}
    for t, values in known.items():
        produced = outputs.get(t, np.zeros(0))
        produced = produced[~np.isnan(produced)]
        if values.size == 0 or produced.size == 0:
            continue
        by_stratum[t] = float(np.sign(values.mean() - everything.mean()) * (produced.mean() - values.mean()))
    return by_stratum
