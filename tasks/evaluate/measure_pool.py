"""Measure a pool of completions of any origin: pass@k, majority@k, best-of-n, agreement of scorers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from data.rows import tables
from data.rows.completions import Row, Values, by_prompt, is_right, read_completions, read_values
from tasks.evaluate.measure import _lengths, mean, pass_at_k, per_prompt, share, usual_count
from tasks.run.work import StageSettings, Work

VERSION = 3  # 3: intervals are over prompts, and of shares
LIBRARIES = ("numpy", "scipy")


class Settings(StageSettings):
    split: str
    scorers: list[str]  # in recipe order; the first is the verifier


def measure_pool(work: Work) -> None:
    """METRICS (`metrics.parquet`) of `inputs["completions"]` by the verifier, prompt-averaged with 95% intervals.

    A completion that the verifier cannot judge counts as wrong, as in `measure`. A prompt without any verdict is left out. So
    is a prompt with fewer than n samples from the metrics of n samples; n is the number that at least half of the prompts have.
    """
    s: Settings = work.settings
    rows = read_completions(work.inputs["completions"]).to_pylist()
    verdicts, answers = _verdicts(work)
    for row in rows:
        row |= {"right": float(is_right(verdicts[row["completion_id"]])), "answer": answers[row["completion_id"]]}
    groups = [g for g in by_prompt(rows).values() if any(verdicts[row["completion_id"]] is not None for row in g)]
    characters = per_prompt(rows, lambda row: float(len(row["text"])))
    metrics = [mean("characters", s.split, characters) if characters else None, *_lengths(s.split, rows)]
    if groups:
        n = usual_count(map(len, groups))
        full = [g for g in groups if len(g) >= n]
        metrics += pass_at_k(s.split, {g[0]["prompt_id"]: [row["right"] for row in g] for g in groups})
        metrics.append(_metric(s.split, "mixed", [float(0 < sum(row["right"] for row in g) < len(g)) for g in groups]))
        metrics.append(_metric(s.split, f"majority@{n}", _majority(full, n)))
        for name in [*s.scorers[1:], *(["reward"] if len(s.scorers) > 1 else [])]:
            values = read_values(work.inputs["reward" if name == "reward" else f"score/{name}"])
            metrics.append(_metric(s.split, f"best@{n}/{name}", _best(full, n, values)))
            metrics.append(_metric(s.split, f"agreement/{name}", _agreement(rows, verdicts, values)))
    table = tables.from_rows([row for row in metrics if row], tables.METRICS)
    tables.write(table, tables.METRICS, work.out / "metrics.parquet")


def _verdicts(work: Work) -> tuple[Values, dict[str, str | None]]:
    """The verifier's values, and the answers that it extracted, by completion_id."""
    verifier = work.inputs[f"score/{work.settings.scorers[0]}"]
    rows = tables.read(verifier / "scores.parquet", tables.SCORES).to_pylist()
    return {row["completion_id"]: row["value"] for row in rows}, {row["completion_id"]: row["detail"] for row in rows}


def _metric(split: str, name: str, values: Sequence[float] | None) -> Row | None:
    return share(name, split, values) if values else None


def _majority(groups: Sequence[Sequence[Row]], n: int) -> list[float] | None:
    """Whether the most common answer of the first n samples is right. Answers are compared as strings; a tie goes to the first.

    None if the verifier records no answers. Self-consistency, https://arxiv.org/abs/2203.11171.
    """
    if not any(row["answer"] for group in groups for row in group):
        return None
    right = []
    for group in groups:
        votes = [row for row in group[:n] if row["answer"]]
        winner = Counter(row["answer"] for row in votes).most_common(1)  # Counter keeps the order of first appearance
        right.append(next(row["right"] for row in votes if row["answer"] == winner[0][0]) if winner else 0.0)
    return right


def _best(groups: Sequence[Sequence[Row]], n: int, values: Values) -> list[float] | None:
    """Whether the sample with the highest value among the first n is right; a tie goes to the first."""
    right = []
    for group in groups:
        known = [(value, row["right"]) for row in group[:n] if (value := values.get(row["completion_id"])) is not None]
        if known:
            right.append(max(known, key=lambda pair: pair[0])[1])
    return right or None


def _agreement(rows: Sequence[Row], verdicts: Values, values: Values) -> list[float] | None:
    """Per prompt, how often two scorers agree; None if either gives any value but 1.0 and 0.0."""
    known = [key for key, verdict in verdicts.items() if verdict is not None and values[key] is not None]
    if any(given[key] not in (0.0, 1.0) for key in known for given in (verdicts, values)):
        return None
    agreed = {key: float(verdicts[key] == values[key]) for key in known}
    return per_prompt(rows, lambda row: agreed.get(row["completion_id"]))
