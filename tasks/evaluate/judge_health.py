"""Judge health: whether a judge's scores are good enough to train on, by the verifier and by its scores of earlier rounds.

A judge can rank prompts well and the completions of one prompt not at all. The overall AUROC then looks good, but training on
the judge makes the policy worse. So read `within_prompt_auroc`. A metric that does not apply is null.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.rows import tables
from data.rows.completions import is_right
from data.statistics import finite, mean_interval, share_interval
from tasks.evaluate import judge_bias
from tasks.evaluate.measure import per_prompt
from tasks.run.work import StageSettings, Work
from tasks.score.scorers.judge import comparisons

VERSION = 3  # 3: length bias, self-preference and position bias. 2: intervals are over prompts, and of shares
LIBRARIES = ("numpy", "scipy", "scikit-learn")
BINS = 10

Row = dict[str, Any]
Pairs = Mapping[str, Sequence[tuple[float, float]]]  # per prompt, (judge's value, verifier's 1.0 or 0.0) of each sample


class Settings(StageSettings):
    split: str
    edits: list[str]  # names of the edits in the anchors, in order
    compares: bool  # whether the scorer compares pairs, so that the details are its verdicts on two texts
    own: str  # the origin of texts that the judge's model wrote; empty = none


def judge_health(work: Work) -> None:
    """METRICS from `inputs["judged"]` and `inputs["verified"]`, SCORES of `inputs["completions"]`, which may have ORIGINS.

    With anchors, also from `anchors_now`, and `anchors_first` and `anchors_previous` if given: SCORES of the same texts by the
    judge of this round, of the first round and of the round before.
    """
    s: Settings = work.settings
    judged = _scores(work.inputs["judged"])
    texts = tables.read(work.inputs["completions"] / "completions.parquet", tables.COMPLETIONS)["text"].to_pylist()
    rows = agreement(_paired(judged, _scores(work.inputs["verified"])))
    games = comparisons(judged) if s.compares else []
    rows += [*spread(judged, texts), *orders(games)]
    verified = _scores(work.inputs["verified"])
    rows += [*length_bias(judged, verified, texts, games), *self_preference(judged, verified, _origins(work), s.own)]
    if "anchors_now" in work.inputs:
        now = _scores(work.inputs["anchors_now"])
        rows += probes(now, s.edits)
        for name in ("first", "previous"):
            if f"anchors_{name}" in work.inputs:
                rows += drift(now, _scores(work.inputs[f"anchors_{name}"]), name)
    metrics = [{"group": None, "split": s.split, **row} for row in rows]
    tables.write(tables.from_rows(metrics, tables.METRICS), tables.METRICS, work.out / "metrics.parquet")


def _scores(folder: Path) -> list[Row]:
    rows: list[Row] = tables.read(folder / "scores.parquet", tables.SCORES).to_pylist()
    return rows


def _origins(work: Work) -> dict[str, str]:
    file = work.inputs["completions"] / "origins.parquet"
    if not file.exists():
        return {}
    table = tables.read(file, tables.ORIGINS)
    return dict(zip(table["completion_id"].to_pylist(), table["origin"].to_pylist(), strict=True))


def _paired(judged: Sequence[Row], verified: Sequence[Row]) -> Pairs:
    pairs: dict[str, list[tuple[float, float]]] = {}
    for j, v in zip(judged, verified, strict=True):
        if j["value"] is not None and v["value"] is not None:
            pairs.setdefault(j["prompt_id"], []).append((j["value"], float(is_right(v["value"]))))
    return pairs


# -- against the verifier -------------------------------------------------------------------------------------------------
def agreement(pairs: Pairs) -> list[Row]:
    """AUROC overall and within a prompt, calibration, and the gain from selecting by the judge.

    `selection_gain` is the accuracy of the judge's best sample minus that of a random one (the generation-verification gap,
    https://arxiv.org/abs/2412.02674). If it is not above 0, self-rewarding cannot improve the policy.
    """
    from sklearn.metrics import roc_auc_score

    flat = np.array([pair for samples in pairs.values() for pair in samples]).reshape(-1, 2)
    values, right = flat[:, 0], flat[:, 1]
    mixed = len(set(right)) == 2
    within = [roc_auc_score([r for _, r in s], [v for v, _ in s]) for s in pairs.values() if len({r for _, r in s}) == 2]
    return [
        _row("auroc", float(roc_auc_score(right, values)) if mixed else None, len(right)),
        _share("within_prompt_auroc", within),
        *(calibration(pairs, values, right) if len(values) and values.min() >= 0 and values.max() <= 1 else ()),
        _average("mean_score", [float(np.mean([v for v, _ in samples])) for samples in pairs.values()]),
        _share("selection_gain", [_gain(samples) for samples in pairs.values()], low=-1.0),
    ]


def calibration(pairs: Pairs, values: np.ndarray, right: np.ndarray) -> list[Row]:
    """Brier score, and expected calibration error over bins of equal mass, of the values as probabilities of being right."""
    order = np.argsort(values, kind="stable")
    bins = [part for part in np.array_split(order, BINS) if len(part)]
    error = sum(len(part) * abs(values[part].mean() - right[part].mean()) for part in bins) / len(values)
    brier = [float(np.mean([(v - r) ** 2 for v, r in samples])) for samples in pairs.values()]
    return [_share("brier", brier), _row("ece", float(error), len(values))]


def _gain(samples: Sequence[tuple[float, float]]) -> float:
    best = max(value for value, _ in samples)
    return float(np.mean([r for value, r in samples if value == best]) - np.mean([r for _, r in samples]))


# -- by itself ------------------------------------------------------------------------------------------------------------
def spread(judged: Sequence[Row], texts: Sequence[str]) -> list[Row]:
    """Shares of unreadable replies, of prompts whose texts all have one score, and of completions at the highest score."""
    highest = max((row["value"] for row in judged if row["value"] is not None), default=None)
    failed = per_prompt(judged, lambda row: float(row["status"] == "parse_failure"))
    groups: dict[str, dict[str, float]] = {}
    for row, text in zip(judged, texts, strict=True):
        if row["value"] is not None:
            groups.setdefault(row["prompt_id"], {})[text] = row["value"]
    tied = [float(len(set(group.values())) == 1) for group in groups.values() if len(group) > 1]
    top = per_prompt(judged, lambda row: None if row["value"] is None else float(row["value"] == highest))
    return [_share("parse_failures", failed), _share("tied_prompts", tied), _share("saturated", top)]


def orders(games: Sequence[Row]) -> list[Row]:
    """Share of pairs with the same winner in both orders; no row for a judge that does not compare pairs."""
    known = {(g["first_id"], g["second_id"]): g for g in games if g["first_wins"] is not None}
    both = [(a, known[j, i]) for (i, j), a in known.items() if i < j and (j, i) in known]
    same = [
        {"prompt_id": a["prompt_id"], "same": float(np.sign(a["first_wins"] - 0.5) == np.sign(0.5 - b["first_wins"]))}
        for a, b in both
    ]
    return [_share("order_consistency", per_prompt(same, lambda row: float(row["same"])))] if games else []


def length_bias(judged: Sequence[Row], verified: Sequence[Row], texts: Sequence[str], games: Sequence[Row]) -> list[Row]:
    """P(the longer wins | it is wrong, the shorter right) minus P(the shorter wins | it is wrong, the longer right).

    By characters. A judge that compares has verdicts on the pairs. Of other judges the higher score wins.
    """
    right = [None if row["value"] is None else float(is_right(row["value"])) for row in verified]
    if games:
        ids = [row["completion_id"] for row in judged]
        lengths = dict(zip(ids, map(float, map(len, texts)), strict=True))
        *_, found = judge_bias.verbosity_bias(games, lengths, dict(zip(ids, right, strict=True)))
    else:
        of_prompt: dict[str, list[tuple[float, float, float]]] = {}
        for row, verdict, text in zip(judged, right, texts, strict=True):
            if row["value"] is not None and verdict is not None:
                of_prompt.setdefault(row["prompt_id"], []).append((row["value"], verdict, float(len(text))))
        rated = (judge_bias.Rated(*np.array(rows).T) for rows in of_prompt.values())
        *_, found = judge_bias.verbosity_bias_of_scores(rated)
    return [_found("length_bias", found), *([_found("position_bias", judge_bias.position_bias(games))] if games else [])]


def self_preference(judged: Sequence[Row], verified: Sequence[Row], origins: Mapping[str, str], own: str) -> list[Row]:
    """Mean score of the judge's own texts minus that of texts of other models or people, at equal verdict, in SD of scores.

    No row unless [pool] adds such texts to the judge's own.
    """
    if not own or own not in origins.values():
        return []
    compared = [row for row in judged if origins[row["completion_id"]] != "contrast"]  # these answer another prompt
    scores = {row["completion_id"]: row["value"] for row in compared}
    gold = {row["completion_id"]: None if row["value"] is None else float(is_right(row["value"])) for row in verified}
    mine = {name for name in scores if origins[name] == own}
    found = judge_bias.self_preference(scores, gold, mine, {row["completion_id"]: row["prompt_id"] for row in compared})
    return [_found("self_preference", found)]


def probes(anchors: Sequence[Row], edits: Sequence[str]) -> list[Row]:
    """Per edit, how often the judge prefers the edited text to its original, minus one half; ties count half.

    The rows of a prompt are its samples, then their edited copies, edit by edit.
    """
    rows = []
    for edit_number, edit in enumerate(edits, start=1):
        won: list[Row] = []
        for group in _scores_of_each_prompt(anchors):
            n = len(group) // (1 + len(edits))
            for before, after in zip(group[:n], group[edit_number * n : (edit_number + 1) * n], strict=True):
                if before["value"] is not None and after["value"] is not None:
                    won.append(before | {"won": 0.5 * float(np.sign(after["value"] - before["value"]))})
        rows.append(_share(f"prefers_{edit}", per_prompt(won, lambda row: float(row["won"])), low=-0.5, high=0.5))
    return rows


def drift(now: Sequence[Row], then: Sequence[Row], name: str) -> list[Row]:
    """Mean change of a judge's scores of fixed texts, and CREAM's consistency (tau + 1) / 2 of its rankings within prompts.

    Kendall's tau-b, https://arxiv.org/abs/2410.12735. Prompts that either judge ties throughout are left out.
    """
    from scipy.stats import kendalltau

    shifts, consistency = [], []
    for ours, theirs in zip(_scores_of_each_prompt(now), _scores_of_each_prompt(then), strict=True):
        both = [(a["value"], b["value"]) for a, b in zip(ours, theirs, strict=True) if None not in (a["value"], b["value"])]
        shifts += [float(np.mean([a - b for a, b in both]))] if both else []
        if len({a for a, _ in both}) > 1 and len({b for _, b in both}) > 1:
            consistency.append((float(kendalltau(*zip(*both, strict=True)).statistic) + 1) / 2)
    return [_average(f"shift_from_{name}", shifts), _share(f"consistency_with_{name}", consistency)]


# -- rows -----------------------------------------------------------------------------------------------------------------
def _scores_of_each_prompt(rows: Sequence[Row]) -> list[list[Row]]:
    return [list(group) for _, group in itertools.groupby(rows, key=lambda row: row["prompt_id"])]


def _average(metric: str, values: Sequence[float]) -> Row:
    """A mean over prompts with its 95% interval."""
    known = np.array(values, dtype=float)
    return _row(metric, float(known.mean()) if len(known) else None, len(known), *mean_interval(known))


def _share(metric: str, values: Sequence[float], low: float = 0.0, high: float = 1.0) -> Row:
    """A mean over prompts of values between `low` and `high`, with its 95% interval."""
    known = np.array(values, dtype=float)
    return _row(metric, float(known.mean()) if len(known) else None, len(known), *share_interval(known, low, high))


def _found(metric: str, found: judge_bias.Measured) -> Row:
    return _row(metric, finite(found.value), found.n, found.low, found.high)


def _row(metric: str, value: float | None, n: int, low: float | None = None, high: float | None = None) -> Row:
    return {"metric": metric, "value": value, "n": n, "low": finite(low), "high": finite(high)}
