"""The shelf of mitigations: `(reward or rows, completions, scores, *, settings) -> the same kind`, against amplification.

Those in a module named rewards change the reward (by completion_id; None = unknown, which keeps a completion off both sides)
before anything is chosen; those in one named chosen drop rows of PAIRS or SELECTED after, or soften the labels of pairs.
`scores` is in recipe order, the verifier first. Fixing one style can feed another: look at the whole ledger again after each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.rows.completions import Row, Values

NOT_PARTS = ("apply", "dependencies", "feature_values", "lengths", "on_rewards")


def dependencies(wanted: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The parts that mitigations bind: themselves, and the features they are given by name."""
    parts = [("mitigations", entry["mitigation"]) for entry in wanted]
    for settings in (entry["settings"] for entry in wanted):
        named = [*settings.get("features", ()), *([settings["feature"]] if "feature" in settings else [])]
        parts += [("features", name) for name in named]
    return parts


def apply(
    kind: str, wanted: Sequence[Mapping[str, Any]], given: Any, completions: Sequence[Row], scores: Mapping[str, Values]
) -> Any:
    """Run those of the wanted mitigations ({mitigation, settings}) that act on `kind`, "rewards" or "chosen", in order."""
    from tasks.run import parts

    for entry in wanted:
        part = parts.find("mitigations", entry["mitigation"])
        if part.__module__.rpartition(".")[2] == kind:
            given = parts.configure("mitigations", entry["mitigation"], entry["settings"])(given, completions, scores)
    return given


def on_rewards(
    wanted: Sequence[Mapping[str, Any]], reward: Values, completions: Sequence[Row], scores: Mapping[str, Values]
) -> tuple[list[Row], dict[str, float | None]]:
    """Completions that may be chosen from, and their reward: what a mitigation left without one is on neither side, also where
    a part goes by verdicts alone."""
    after = dict(apply("rewards", wanted, reward, completions, scores))
    return [row for row in completions if after.get(i := row["completion_id"]) is not None or reward.get(i) is None], after


def feature_values(completions: Sequence[Row], features: Sequence[str]) -> np.ndarray:
    """Completions x features, by their names on the shelf of features; what does not apply counts as 0."""
    from tasks.run import parts

    columns = [parts.configure("features", name, {})(completions) for name in features]
    return np.array([[0.0 if value is None else float(value) for value in column] for column in columns]).T


def lengths(completions: Sequence[Row]) -> list[int]:
    """Tokens of each completion, or words of each where some came without tokens: two units are not to be compared."""
    tokens = all(row["token_ids"] for row in completions)
    return [len(row["token_ids"] if tokens else row["text"].split()) for row in completions]
