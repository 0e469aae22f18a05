"""Combine scores into one reward per completion. As a stage of its own it lets weights change without scoring again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from data.rows import tables
from tasks.run.work import StageSettings, Work
from tasks.score.scales import filled, shares, standardised
from tasks.score.scorers.ensemble import aggregate

VERSION = 4  # 4: ensembles standardise, a score that does not apply counts as its prompt's mean, normalise. 3: more UNKNOWN
LIBRARIES = ()
# Statuses without a value although the scorer applies: it failed to give one, or the completion gave it nothing to read.
UNKNOWN = (
    *("timeout", "crashed", "parse_failure", "not_fitted", "refused", "too_long", "no_verdict"),
    *("low_label_mass", "no_answer_found"),  # a verifier's no_answer_found has the value 0.0, which is no unknown value
)

Row = dict[str, Any]


class Settings(StageSettings):
    weights: dict[str, float]  # scorer -> weight
    how: str  # sum, or as an ensemble: mean, median, min, pessimistic
    penalty: float
    normalise: Literal["none", "prompt", "round"]  # of each score, before a sum


def reward(work: Work) -> None:
    """SCORES: per completion, the weighted scores combined by `how`. Input `score/<scorer>` per weight.

    "sum" adds the scores, after `normalise`. A score that does not apply counts as the mean of its prompt, so that it neither
    helps nor hurts. The other ways standardise each score within its prompt, and need all of them. A completion without a
    reward (null) is neither chosen nor rejected. If a scorer failed (a status in UNKNOWN), there is no reward: a sum without
    that score would rank a judge's failure as a bad answer.

    A sum of several scores has `facts.json`: `reward_share`, the share of each in the variance of the reward within prompts.
    """
    s: Settings = work.settings
    scored = [tables.read(work.inputs[f"score/{n}"] / "scores.parquet", tables.SCORES).to_pylist() for n in s.weights]
    rows = list(zip(*scored, strict=True))
    if any(len({row["completion_id"] for row in scores}) != 1 for scores in rows):
        raise ValueError("expected score tables with the same completions in the same order, found other rows")
    prompts = [scores[0]["prompt_id"] for scores in rows]
    weighted = {name: _weighted([row["value"] for row in scores], prompts, name, s)
                for name, scores in zip(s.weights, scored, strict=True)}  # fmt: skip
    rewards = [_reward_row(scores, [v[i] for v in weighted.values()], s) for i, scores in enumerate(rows)]
    tables.write(tables.from_rows(rewards, tables.SCORES), tables.SCORES, work.out / "scores.parquet")
    if s.how == "sum" and len(weighted) > 1:
        facts = {"reward_share": _shares_of_rewarded(weighted, prompts, rewards)}
        (work.out / "facts.json").write_text(json.dumps(facts, indent=1))


def _weighted(values: Sequence[float | None], prompts: Sequence[str], name: str, s: Settings) -> list[float | None]:
    """One scorer's weighted values, on the scale that `how` and `normalise` ask for."""
    scale = s.normalise if s.how == "sum" else "prompt"
    if scale != "none":
        values = standardised(values, prompts if scale == "prompt" else ["round"] * len(values))
    if s.how == "sum":
        values = filled(values, prompts)
    return [None if value is None else s.weights[name] * value for value in values]


def _reward_row(scores: Sequence[Row], weighted: Sequence[float | None], s: Settings) -> Row:
    unknown = next((row["status"] for row in scores if row["value"] is None and row["status"] in UNKNOWN), None)
    apply = sum(row["value"] is not None for row in scores)
    enough = apply == len(scores) or (apply and s.how == "sum")
    known = [value for value in weighted if value is not None]
    return {
        "completion_id": scores[0]["completion_id"],
        "prompt_id": scores[0]["prompt_id"],
        "value": _combined(known, s) if enough and not unknown else None,
        "status": unknown or ("ok" if apply == len(scores) else "partial" if apply else "none"),
        "detail": None,
    }


def _combined(values: Sequence[float], s: Settings) -> float:
    return sum(values) if s.how == "sum" else aggregate(values, s.how, s.penalty)


def _shares_of_rewarded(
    weighted: Mapping[str, Sequence[float | None]], prompts: Sequence[str], rewards: Sequence[Row]
) -> dict[str, float] | None:
    rewarded = [i for i, row in enumerate(rewards) if row["value"] is not None]
    parts = {name: [values[i] or 0.0 for i in rewarded] for name, values in weighted.items()}
    found = shares(parts, [prompts[i] for i in rewarded])
    return found and {name: round(share, 4) for name, share in found.items()}
