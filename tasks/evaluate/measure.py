"""Measure a checkpoint on a split: accuracy and pass@k with 95% intervals, and paired differences from other checkpoints."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.rows import tables
from data.rows.completions import is_right
from data.statistics import finite, mean_interval, share_interval, t_interval
from tasks.evaluate.paired_shares import Right, all_answers, differences, shares_interval, sign_flip_p
from tasks.run.work import StageSettings, Work

VERSION = 3  # 3: the champion is compared by all answers too; intervals of shares, paired shares and skewed lengths hold
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
    rows: list[Row] = table.select(["prompt_id", "token_ids", "finish_reason"]).to_pylist()
    return rows


def _metric(metric: str, split: str, value: float | None, n: int, low: float | None = None, high: float | None = None) -> Row:
    return {"metric": metric, "group": None, "split": split, "value": value, "n": n, "low": finite(low), "high": finite(high)}


def _accuracy(split: str, right: dict[str, list[float]]) -> Row:
    """Share of prompts whose greedy answer is right, with its exact interval."""
    if not right:
        return _metric("accuracy", split, None, 0)
    return share("accuracy", split, [values[0] for values in right.values()])


def _lengths(split: str, rows: list[Row]) -> list[Row]:
    if not rows:
        return []
    lengths = per_prompt(rows, lambda row: None if row["token_ids"] is None else float(len(row["token_ids"])))
    finished = per_prompt(rows, lambda row: None if row["finish_reason"] is None else float(row["finish_reason"] == "stop"))
    return [
        *([mean("mean_tokens", split, lengths)] if lengths else ()),
        *([share("finished", split, finished)] if finished else ()),
    ]


def per_prompt(rows: Iterable[Row], value: Callable[[Row], float | None]) -> list[float]:
    """The mean over the completions of each prompt: the unit of intervals, since completions of one prompt are alike."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if (known := value(row)) is not None:
            values[row["prompt_id"]].append(known)
    return [statistics.fmean(of_prompt) for of_prompt in values.values()]


def mean(metric: str, split: str, values: Sequence[float]) -> Row:
    """A mean over prompts of values without bounds."""
    return _metric(metric, split, statistics.fmean(values), len(values), *mean_interval(np.array(values)))


def share(metric: str, split: str, values: Sequence[float]) -> Row:
    """A mean over prompts of values from 0 to 1."""
    return _metric(metric, split, statistics.fmean(values), len(values), *share_interval(np.array(values)))


def pass_at_k(split: str, right: dict[str, list[float]]) -> list[Row]:
    """pass@1 and pass@k by the unbiased estimator 1 - C(n-c, k) / C(n, k) (Chen et al., arXiv 2107.03374), prompt-averaged.

    n is the number of judged samples of a prompt, c how many of them are right. k is `usual_count`. The estimator needs n >= k,
    so a prompt with fewer judged samples is left out of pass@k; the row's n says how many prompts it rests on.
    """
    rows = []
    for k in sorted({1, usual_count(map(len, right.values()))}) if right else ():
        counts = [(len(values), int(sum(values))) for values in right.values() if len(values) >= k]
        each = [1.0 - math.comb(n - c, k) / math.comb(n, k) for n, c in counts]
        rows.append(share(f"pass@{k}", split, each))
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
