"""Mitigations against drift of style and length: `(reward or rows, completions, scores, *, settings) -> the same kind`.

Mitigations in a module named `rewards` change the reward (by completion_id) before anything is chosen. A completion whose
reward is None is neither chosen nor rejected. Mitigations in a module named `chosen` drop rows of PAIRS or SELECTED afterwards,
or soften the labels of pairs. `scores` is in recipe order, the verifier first.

Where the recipe's `gold` keeps verdicts out of training, all verdicts in `scores` are None. USES_GOLD of a file lists those
that read them if they get them.

Reducing one style can increase another, so read the whole ledger after each change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.rows.completions import Row, Values

NOT_PARTS = ("apply", "dependencies", "feature_values", "lengths", "on_rewards")


def dependencies(wanted: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The parts that mitigations use: themselves, and the features that their settings name."""
    parts = [("mitigations", entry["mitigation"]) for entry in wanted]
    for settings in (entry["settings"] for entry in wanted):
        named = [*settings.get("features", ()), *([settings["feature"]] if "feature" in settings else [])]
        parts += [("features", name) for name in named]
    return parts


def apply(
    kind: str, wanted: Sequence[Mapping[str, Any]], data: Any, completions: Sequence[Row], scores: Mapping[str, Values]
) -> Any:
    """Run, in order, those mitigations ({mitigation, settings}) that change `kind`: "rewards" or "chosen".

    Args:
        data: the reward by completion_id, or the chosen rows.
    """
    from tasks.run import parts

    for entry in wanted:
        part = parts.find("mitigations", entry["mitigation"])
        if part.__module__.rpartition(".")[2] == kind:
            data = parts.configure("mitigations", entry["mitigation"], entry["settings"])(data, completions, scores)
    return data


def on_rewards(
    wanted: Sequence[Mapping[str, Any]], reward: Values, completions: Sequence[Row], scores: Mapping[str, Values]
) -> tuple[list[Row], dict[str, float | None]]:
    """The completions to choose from, and their reward after mitigations.

    A completion whose reward a mitigation removed is left out, so that parts which read only verdicts cannot choose it either.
    """
    after = dict(apply("rewards", wanted, reward, completions, scores))
    offered = [row for row in completions if after.get(i := row["completion_id"]) is not None or reward.get(i) is None]
    return offered, after


def feature_values(completions: Sequence[Row], features: Sequence[str]) -> np.ndarray:
    """Values of the named features, completions x features; a value that does not apply counts as 0."""
    from tasks.run import parts

    columns = [parts.configure("features", name, {})(completions) for name in features]
    return np.array([[0.0 if value is None else float(value) for value in column] for column in columns]).T


def lengths(completions: Sequence[Row]) -> list[int]:
    """Tokens of each completion; words if some have no token ids, because two units cannot be compared."""
    tokens = all(row["token_ids"] is not None for row in completions)  # an empty completion has 0 tokens, which are known
    return [len(row["token_ids"] if tokens else row["text"].split()) for row in completions]
