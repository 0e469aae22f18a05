"""Mitigations that change the reward before anything is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from data.rows.completions import Row, Values, finished, verifier
from tasks.bias.features.repetition import loop
from tasks.choose.mitigations import feature_values, lengths

USES_GOLD = ("residualised",)
VERSIONS = {"residualised": 2, "length_penalty": 2}  # 2: residuals are rounded; all lengths in one unit


def length_penalty(
    reward: Values, completions: Sequence[Row], scores: Mapping[str, Values], *, per_token: float | None = None
) -> Values:
    """Reward minus `per_token` x tokens; by default the value that makes reward and length uncorrelated within prompts.

    RLHFlow's max_min_p subtracts a fixed price per token, https://arxiv.org/abs/2405.07863. ArmoRM chooses the price that
    removes the correlation, https://arxiv.org/abs/2406.12845.
    """
    length = np.array(lengths(completions), dtype=float)[:, None]
    known, y = _known(reward, completions)
    price = per_token
    if price is None:
        x, r = (_within(v[known], _groups(completions, known)) for v in (length, y[:, None]))
        price = float((x * r).sum() / (x * x).sum()) if (x * x).sum() > 0 else 0.0
    return _with(reward, completions, known, y - price * length[:, 0])


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

    The result is rounded to 1e-4 of the reward's SD: best_vs_worst uses only the order, and would follow the smallest residual.
    """
    known, y = _known(reward, completions)
    f = feature_values(completions, features)
    groups = _groups(completions, known, verifier(scores))
    x, r = _within(f[known], groups), _within(y[known][:, None], groups)
    scale = np.where(x.std(0) > 0, x.std(0), 1.0)
    x = x / scale
    weights = np.linalg.solve(x.T @ x + ridge * max(1, len(x)) * np.eye(x.shape[1]), x.T @ r)[:, 0] / scale
    residual, step = y - f @ weights, 1e-4 * float(y[known].std()) if known.any() else 0.0
    return _with(reward, completions, known, np.round(residual / step) * step if step else residual)


def reject_overlong(
    reward: Values, completions: Sequence[Row], scores: Mapping[str, Values], *, tokens: Annotated[int, Ge(1)]
) -> Values:
    """No reward for a truncated completion or one of more than `tokens` tokens: it is neither chosen nor rejected."""
    return {
        row["completion_id"]: None
        if not finished(row) or len(row["token_ids"] or row["text"].split()) > tokens
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


def _with(reward: Values, completions: Sequence[Row], known: np.ndarray, values: np.ndarray) -> Values:
    changed = {row["completion_id"]: float(v) for row, k, v in zip(completions, known, values, strict=True) if k}
    return {**reward, **changed}
