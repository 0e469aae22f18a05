"""Mitigations that change the reward before anything is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from data.rows.completions import Row, Values, finished, verifier
from data.statistics import LEVEL
from tasks.bias.features.repetition import loop
from tasks.choose.mitigations import feature_values, lengths

USES_GOLD = ("residualised",)
VERSIONS = {"residualised": 3, "length_penalty": 3, "reject_overlong": 2}  # 3: ties stay; a weight that may be 0 is 0


def length_penalty(
    reward: Values, completions: Sequence[Row], scores: Mapping[str, Values], *, per_token: float | None = None
) -> Values:
    """Reward minus `per_token` x tokens; by default the value that makes reward and length uncorrelated within prompts.

    RLHFlow's max_min_p subtracts a fixed price per token, https://arxiv.org/abs/2405.07863. Such a price also decides ties: of
    a verifier's right answers the shortest wins. ArmoRM chooses the price that removes the correlation,
    https://arxiv.org/abs/2406.12845.

    A chosen price must not shorten what nobody made long. So it is 0 if its 95% interval over prompts holds 0. It is 0, too,
    if with it the best completions differ more in length from the worst, or from the others, than without it (in log tokens).
    Completions of a prompt with equal rewards stay equal: their mean length is charged.
    """
    length = np.array(lengths(completions), dtype=float)
    known, y = _known(reward, completions)
    if per_token is not None:
        return _with(reward, completions, known, y - per_token * length)
    prompts = _groups(completions, known)
    (price,) = _surely_not_zero(*_regression(length[known][:, None], y[known], prompts, prompts, ridge=0.0))
    charged = y.copy()
    charged[known] = _rounded(y[known] - price * _level_means(length[known][:, None], prompts, y[known])[:, 0], y[known])
    log_length = np.log(np.maximum(length[known], 1.0))
    before, after = (np.abs(_gaps(values, log_length, prompts)) for values in (y[known], charged[known]))
    return _with(reward, completions, known, charged) if price and (after <= before).all() else dict(reward)


def residualised(
    reward: Values,
    completions: Sequence[Row],
    scores: Mapping[str, Values],
    *,
    features: tuple[str, ...],
    ridge: Annotated[float, Gt(0)] = 1e-6,
) -> Values:
    """Reward minus the part that features explain among completions of one prompt with one verdict.

    The weights are of a ridge regression on differences within those groups. So a feature that only correlates with being right
    keeps its reward. Where `gold` keeps verdicts out of training the groups are prompts, and such a feature loses it. A linear
    form of reward disentangling (ODIN, https://arxiv.org/abs/2402.07319) without training.

    A weight is 0 if its interval over prompts holds 0, because best_vs_worst uses only the order: the smallest weight would
    decide every tie. The intervals hold together at 95% (Bonferroni). Completions of a prompt with equal rewards stay equal.
    For the same reason the result is rounded to 1e-4 of the reward's SD.
    """
    known, y = _known(reward, completions)
    f = feature_values(completions, features)[known]
    prompts, groups = _groups(completions, known), _groups(completions, known, verifier(scores))
    weights = _surely_not_zero(*_regression(f, y[known], groups, prompts, ridge))
    residual = y.copy()
    residual[known] = _rounded(y[known] - _level_means(f, prompts, y[known]) @ weights, y[known])
    return _with(reward, completions, known, residual) if weights.any() else dict(reward)


def reject_overlong(
    reward: Values, completions: Sequence[Row], scores: Mapping[str, Values], *, tokens: Annotated[int, Ge(1)]
) -> Values:
    """No reward for a truncated completion or one of more than `tokens` tokens: it is neither chosen nor rejected.

    A given text, whose tokens nobody counted, has its words counted instead.
    """
    return {
        row["completion_id"]: None
        if not finished(row) or len(row["text"].split() if row["token_ids"] is None else row["token_ids"]) > tokens
        else reward.get(row["completion_id"])
        for row in completions
    }


def reject_loops(reward: Values, completions: Sequence[Row], scores: Mapping[str, Values]) -> Values:
    """No reward for a completion that ends in a loop: it is neither chosen nor rejected."""
    return {
        row["completion_id"]: None if looped else reward.get(row["completion_id"])
        for row, looped in zip(completions, loop(completions), strict=True)
    }


def _known(reward: Values, completions: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    values = np.array([np.nan if (v := reward.get(row["completion_id"])) is None else v for row in completions], dtype=float)
    return ~np.isnan(values), values


def _groups(completions: Sequence[Row], known: np.ndarray, verdict: Values | None = None) -> np.ndarray:
    keys = [f"{row['prompt_id']}/{verdict.get(row['completion_id']) if verdict is not None else ''}" for row in completions]
    groups: np.ndarray = np.unique(np.array(keys)[known], return_inverse=True)[1]
    return groups


def _within(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Values (rows x columns) minus the mean of their group."""
    count = np.bincount(groups)[:, None] if len(groups) else np.ones((1, 1))
    sums = np.stack([np.bincount(groups, column) for column in values.T], axis=1) if len(groups) else values
    return values - (sums / count)[groups] if len(groups) else values


def _regression(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, prompts: np.ndarray, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a ridge regression of y on the columns of x within groups, and the half width of each one's interval.

    The intervals take prompts as the independent units: the sandwich of sums per prompt (Liang and Zeger, Biometrika 73, 1986),
    with Student's t. Together they hold at 95% (Bonferroni).
    """
    from scipy.stats import t

    x, r = _within(x, groups), _within(y[:, None], groups)[:, 0]
    scale = np.where(x.std(0) > 0, x.std(0), 1.0) if len(x) else np.ones(x.shape[1])
    x = x / scale
    informative = len(np.unique(prompts[(x != 0).any(1)]))
    if informative < 2:
        return np.zeros(x.shape[1]), np.zeros(x.shape[1])
    inverse = np.linalg.pinv(x.T @ x + ridge * len(x) * np.eye(x.shape[1]))
    weights = inverse @ x.T @ r
    per_prompt = np.stack([np.bincount(prompts, column) for column in (x * (r - x @ weights)[:, None]).T], axis=1)
    spread = np.sqrt(np.diag(inverse @ per_prompt.T @ per_prompt @ inverse) * informative / (informative - 1))
    quantile = float(t.ppf(1 - (1 - LEVEL) / 2 / x.shape[1], informative - 1))
    return weights / scale, quantile * spread / scale


def _surely_not_zero(weights: np.ndarray, half_widths: np.ndarray) -> np.ndarray:
    """The weights, 0 where the interval holds 0."""
    sure: np.ndarray = np.where(np.abs(weights) > half_widths, weights, 0.0)
    return sure


def _level_means(values: np.ndarray, prompts: np.ndarray, y: np.ndarray) -> np.ndarray:
    """For each row, the mean of its prompt's rows with its reward. What is subtracted alike from ties leaves them ties."""
    levels = np.unique(np.stack([prompts, y], axis=1), axis=0, return_inverse=True)[1].ravel()
    means: np.ndarray = values - _within(values, levels)
    return means


def _gaps(reward: np.ndarray, log_length: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """How much longer the best completions of a prompt are than the worst, and than all others: means over prompts."""
    best, worst = (_extreme(pick, reward, prompts) for pick in (np.maximum, np.minimum))
    differs = np.bincount(prompts, best & ~worst) > 0
    of_best, of_worst, of_others = (
        np.bincount(prompts, log_length * side)[differs] / np.bincount(prompts, side)[differs] for side in (best, worst, ~best)
    )
    gaps = np.array([of_best - of_worst, of_best - of_others])
    return gaps.mean(axis=1) if differs.any() else np.zeros(2)


def _extreme(pick: np.ufunc, reward: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Which rows have the highest (or lowest) reward of their prompt."""
    extreme = np.full(prompts.max(initial=-1) + 1, -np.inf if pick is np.maximum else np.inf)
    pick.at(extreme, prompts, reward)
    rows: np.ndarray = reward == extreme[prompts]
    return rows


def _rounded(values: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """To 1e-4 of the reward's SD, so that what is left of a perfect explanation is a tie and not the order of its rounding."""
    step = 1e-4 * float(reward.std()) if len(reward) else 0.0
    return np.round(values / step) * step if step else values


def _with(reward: Values, completions: Sequence[Row], known: np.ndarray, values: np.ndarray) -> Values:
    changed = {row["completion_id"]: float(v) for row, k, v in zip(completions, known, values, strict=True) if k}
    return {**reward, **changed}
