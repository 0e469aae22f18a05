"""Combine scores into one reward per completion: a cheap stage of its own, so that weights change without scoring again."""

from __future__ import annotations

from data.rows import tables
from tasks.run.work import StageSettings, Work
from tasks.score.scorers.ensemble import aggregate

VERSION = 3  # 3: a refusal to judge and a text too long to score are unknown too
LIBRARIES = ()
# The scorer applies, but nobody knows what it would have said.
UNKNOWN = ("timeout", "crashed", "parse_failure", "not_fitted", "refused", "too_long", "no_verdict")


class Settings(StageSettings):
    weights: dict[str, float]  # scorer -> weight
    how: str  # or an ensemble: mean, median, min, pessimistic
    penalty: float


def reward(work: Work) -> None:
    """SCORES: the weighted sum over the scorers that apply; null where none applies. Ensembles: null where one does not apply.

    A scorer that "does not apply" (null) leaves the sum; a completion without any value has no reward, and is neither chosen
    nor rejected. Nor is one of which a scorer's word is unknown: a sum without it would rank a judge's failure as a bad answer.
    Input `score/<scorer>` per weight.
    """
    s: Settings = work.settings
    columns = {
        name: tables.read(work.inputs[f"score/{name}"] / "scores.parquet", tables.SCORES).to_pylist() for name in s.weights
    }
    rows = []
    for together in zip(*columns.values(), strict=True):
        if len({row["completion_id"] for row in together}) != 1:
            raise ValueError("score tables are not row for row with their completions")
        unknown = next((row["status"] for row in together if row["value"] is None and row["status"] in UNKNOWN), None)
        known = [
            s.weights[name] * row["value"] for name, row in zip(columns, together, strict=True) if row["value"] is not None
        ]
        enough = len(known) == len(together) or (known and s.how == "sum")
        rows.append(
            {
                "completion_id": together[0]["completion_id"],
                "prompt_id": together[0]["prompt_id"],
                "value": _together(known, s) if enough and not unknown else None,
                "status": unknown or ("ok" if len(known) == len(together) else "partial" if known else "none"),
                "detail": None,
            }
        )
    tables.write(tables.from_rows(rows, tables.SCORES), tables.SCORES, work.out / "scores.parquet")


def _together(values: list[float], s: Settings) -> float:
    return sum(values) if s.how == "sum" else aggregate(values, s.how, s.penalty)
