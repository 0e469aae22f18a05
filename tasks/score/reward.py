"""Combine scores into one reward per completion. As a stage of its own it lets weights change without scoring again."""

from __future__ import annotations

from data.rows import tables
from tasks.run.work import StageSettings, Work
from tasks.score.scorers.ensemble import aggregate

VERSION = 3  # 3: "refused" and "too_long" are UNKNOWN too
LIBRARIES = ()
# Statuses without a value although the scorer applies: it failed to give one.
UNKNOWN = ("timeout", "crashed", "parse_failure", "not_fitted", "refused", "too_long", "no_verdict")


class Settings(StageSettings):
    weights: dict[str, float]  # scorer -> weight
    how: str  # sum, or as an ensemble: mean, median, min, pessimistic
    penalty: float


def reward(work: Work) -> None:
    """SCORES: per completion, the weighted scores combined by `how`. Input `score/<scorer>` per weight.

    "sum" adds the scores that apply. The other ways need all of them. A completion without a reward (null) is neither chosen
    nor rejected. If a scorer failed (a status in UNKNOWN), there is no reward: a sum without that score would rank a judge's
    failure as a bad answer.
    """
    s: Settings = work.settings
    columns = {
        name: tables.read(work.inputs[f"score/{name}"] / "scores.parquet", tables.SCORES).to_pylist() for name in s.weights
    }
    rows = []
    for scores in zip(*columns.values(), strict=True):
        if len({row["completion_id"] for row in scores}) != 1:
            raise ValueError("expected score tables with the same completions in the same order, found other rows")
        unknown = next((row["status"] for row in scores if row["value"] is None and row["status"] in UNKNOWN), None)
        values = [s.weights[name] * row["value"] for name, row in zip(columns, scores, strict=True) if row["value"] is not None]
        enough = len(values) == len(scores) or (values and s.how == "sum")
        rows.append(
            {
                "completion_id": scores[0]["completion_id"],
                "prompt_id": scores[0]["prompt_id"],
                "value": _combined(values, s) if enough and not unknown else None,
                "status": unknown or ("ok" if len(values) == len(scores) else "partial" if values else "none"),
                "detail": None,
            }
        )
    tables.write(tables.from_rows(rows, tables.SCORES), tables.SCORES, work.out / "scores.parquet")


def _combined(values: list[float], s: Settings) -> float:
    return sum(values) if s.how == "sum" else aggregate(values, s.how, s.penalty)
