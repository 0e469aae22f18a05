"""Measure a checkpoint on a split: accuracy and pass@k with 95% intervals, and paired differences from other checkpoints."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data.rows import tables
from data.rows.completions import is_right
from data.statistics import LEVEL, t_interval
from tasks.evaluate.paired_shares import Right, all_answers, differences, shares_interval, sign_flip_p
from tasks.run.work import StageSettings, Work

VERSION = 3  # 3: the champion is compared by all answers too, and intervals of paired shares hold where few prompts differ
LIBRARIES = ("numpy", "scipy")

Row = dict[str, Any]
OF_CHAMPION = ("greedy_score/champion", "sampled_score/champion")


class Settings(StageSettings):
    split: str
    against: list[str]  # names of the inputs `greedy_score/<name>` to compare with


def measure(work: Work) -> None:
    """METRICS (`metrics.parquet`) from greedy completions, and sampled ones if there are any, with their verifier scores.

    A completion that was truncated or timed out counts as wrong. A prompt without a gold answer is left out. The champion is
    also compared by all answers, the greedy and the sampled ones: the gate decides on that difference.
    """
    s: Settings = work.settings
    greedy = _completions(work.inputs["greedy"])
    right = right_by_prompt(work.inputs["greedy_score"])
    rows = [_accuracy(s.split, right), *_lengths(s.split, greedy)]
    if "sampled" in work.inputs:
        rows += pass_at_k(s.split, right_by_prompt(work.inputs["sampled_score"]))
        if "again" in work.inputs:  # A/A check: two sets of samples of one checkpoint should not differ
            sampled, again = (right_by_prompt(work.inputs[n]) for n in ("sampled_score", "again"))
            rows.append(paired_shares(s.split, "aa_difference", sampled, again))
    for name in s.against:
        theirs = right_by_prompt(work.inputs[f"greedy_score/{name}"])
        rows.append(paired_shares(s.split, f"accuracy_vs_{name}", right, theirs))
    if "champion" in s.against:
        rows += versus_champion(s.split, _answers(work, "greedy_score", "sampled_score"), _answers(work, *OF_CHAMPION))
    tables.write(tables.from_rows(rows, tables.METRICS), tables.METRICS, work.out / "metrics.parquet")


def right_by_prompt(folder: Path) -> dict[str, list[float]]:
    """Per prompt, 1.0 or 0.0 per sample (right: a verifier value of at least 1). Prompts without a verdict are left out."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in tables.read(folder / "scores.parquet", tables.SCORES).to_pylist():
        if row["value"] is not None or row["status"] in ("timeout", "crashed"):
            values[row["prompt_id"]].append(float(is_right(row["value"])))
    return dict(values)


def _answers(work: Work, greedy: str, sampled: str) -> Right:
    """All answers of a checkpoint, from its inputs with greedy and, if there is one, sampled SCORES."""
    return all_answers(*(right_by_prompt(work.inputs[name]) for name in (greedy, sampled) if name in work.inputs))


def _completions(folder: Path) -> list[Row]:
    table = tables.read(folder / "completions.parquet", tables.COMPLETIONS)
    rows: list[Row] = table.select(["token_ids", "finish_reason"]).to_pylist()
    return rows


def _metric(metric: str, split: str, value: float | None, n: int, low: float | None = None, high: float | None = None) -> Row:
    return {"metric": metric, "group": None, "split": split, "value": value, "n": n, "low": low, "high": high}


def _accuracy(split: str, right: dict[str, list[float]]) -> Row:
    """Share of prompts whose greedy answer is right, with Wilson's interval."""
    from scipy.stats import binomtest

    if not right:
        return _metric("accuracy", split, None, 0)
    hits, n = int(sum(values[0] for values in right.values())), len(right)
    interval = binomtest(hits, n).proportion_ci(LEVEL, method="wilson")
    return _metric("accuracy", split, hits / n, n, float(interval.low), float(interval.high))


def _lengths(split: str, rows: list[Row]) -> list[Row]:
    if not rows:
        return []
    lengths = np.array([len(row["token_ids"]) for row in rows if row["token_ids"] is not None], dtype=float)
    finished = np.array([row["finish_reason"] == "stop" for row in rows if row["finish_reason"] is not None], dtype=float)
    return [_mean(name, split, values) for name, values in (("mean_tokens", lengths), ("finished", finished)) if len(values)]


def _mean(metric: str, split: str, values: np.ndarray) -> Row:
    low, high = t_interval(values)
    return _metric(metric, split, float(values.mean()), len(values), low, high)


def pass_at_k(split: str, right: dict[str, list[float]]) -> list[Row]:
    """pass@1 and pass@k by the unbiased estimator 1 - C(n-c, k) / C(n, k) (Chen et al., arXiv 2107.03374), prompt-averaged.

    n is the number of judged samples of a prompt, c how many of them are right. k is `usual_count`. The estimator needs n >= k,
    so a prompt with fewer judged samples is left out of pass@k; the row's n says how many prompts it rests on.
    """
    rows = []
    for k in sorted({1, usual_count(map(len, right.values()))}) if right else ():
        counts = [(len(values), int(sum(values))) for values in right.values() if len(values) >= k]
        each = [1.0 - math.comb(n - c, k) / math.comb(n, k) for n, c in counts]
        rows.append(_mean(f"pass@{k}", split, np.array(each)))
    return rows


def usual_count(samples: Iterable[int]) -> int:
    """The number of samples that at least half of the prompts have (the lower median). One failed request renames no metric."""
    return statistics.median_low(samples)


def paired(split: str, metric: str, ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> Row:
    """Mean difference of numbers on the same prompts (ours minus theirs, first sample each) with a paired t interval."""
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return _metric(metric, split, None, 0)
    difference = np.array([ours[p][0] - theirs[p][0] for p in shared])
    low, high = t_interval(difference)
    return _metric(metric, split, float(difference.mean()), len(shared), low, high)


def paired_shares(split: str, metric: str, ours: Right, theirs: Right) -> Row:
    """Mean difference in the share of right answers on the same prompts, ours minus theirs, with `shares_interval`."""
    return _of_differences(split, metric, differences(ours, theirs))


def _of_differences(split: str, metric: str, each: np.ndarray) -> Row:
    if not len(each):
        return _metric(metric, split, None, 0)
    low, high = shares_interval(each)
    return _metric(metric, split, float(each.mean()), len(each), low, high)


def versus_champion(split: str, ours: Right, theirs: Right) -> list[Row]:
    """`mean_accuracy_vs_champion`, which the gate decides on, its exact one-sided p value, and its SD over prompts.

    Args:
        ours, theirs: all answers of the checkpoint and of the champion, the greedy and the sampled ones.
    """
    each = differences(ours, theirs)
    p = sign_flip_p(each, usual_count(map(len, ours.values()))) if len(each) else None
    spread = float(each.std()) if len(each) else None
    return [
        _of_differences(split, "mean_accuracy_vs_champion", each),
        _metric("p_vs_champion", split, p, len(each)),
        _metric("spread_vs_champion", split, spread, len(each)),
    ]
