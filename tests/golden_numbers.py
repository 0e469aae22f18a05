"""An artifact as a few numbers, and how far they may be from the recorded ones where bytes cannot be expected to agree.

On another processor sums round differently. A sampled token may then be another one, and everything after it in that
completion. So the numbers are means over whole tables and norms of whole weights, which a few flipped tokens hardly move, and
the tolerances of what depends on samples are shares of a standard deviation. A fault such as a doubled loss moves them further.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Number = list[float]  # the value, and the standard deviation that it is measured by (0 where it has none)


@dataclass(frozen=True)
class Tolerance:
    """What a number may differ by: the sum of the three."""

    deviations: float  # share of the recorded standard deviation
    relative: float  # share of the recorded value
    absolute: float
    why: str


# Measured with torch's and MKL's plainest kernels in place of AVX-512: the bytes of 66 of 73 artifacts differed, and no number
# by more than a fifth of its tolerance (`test_other_kernels_agree_in_numbers`, in the slow tier, repeats it).
TOLERANCES = {
    "rows": Tolerance(0, 0, 0, "the settings fix how many rows a stage writes"),
    "rows chosen": Tolerance(0, 0.1, 2, "a few flipped completions are right or wrong in place of the recorded ones"),
    "share known": Tolerance(0, 0, 0.1, "null where a completion or a group of them has no such number; few change groups"),
    "mean": Tolerance(0.15, 0.01, 1e-6, "of 128 completions one in twenty replaced moves a mean by about 0.07 SD"),
    "measured": Tolerance(0.5, 0.02, 0.02, "one value of 40 prompts, by half its 95% interval: an answer or two more or less"),
    "step mean": Tolerance(0.1, 0.02, 1e-4, "a log's mean over the steps: the batches hold the same rows but for flipped ones"),
    "norm": Tolerance(0, 0.002, 1e-6, "a weight after 6 or 120 steps of Adam: rounding moves it by 1e-4, a flipped row less"),
    "count": Tolerance(0, 0.1, 2, "how many were chosen, as `rows chosen`"),
    "fact": Tolerance(0, 0.1, 0.1, "means and intervals of what was chosen or measured"),
}
CHOSEN = ("selected", "pairs")  # tables whose length depends on what was sampled
NAMES = {"metrics": "metric", "training": "metric"}  # tables with a row per name: a number each
LEFT_OUT = ("seed", "step", "since")  # numbers that say nothing as a mean


def numbers(payload: Path) -> dict[str, Number]:
    """By `<kind of tolerance>|<file>|<what>`. Of a checkpoint its weights and its log; other files are as they are."""
    found: dict[str, Number] = {}
    checkpoint = (payload / "model.safetensors").exists()
    for path in sorted(payload.glob("*.parquet")):
        found |= _of_table(path.stem, pq.read_table(path))
    for path in sorted(payload.glob("*.json")):
        if not checkpoint or path.name == "training.json":
            found |= _of_facts(path.stem, json.loads(path.read_text()))
    if checkpoint:
        found |= _of_weights(payload / "model.safetensors")
    return {name: [_short(value) for value in number] for name, number in found.items()}


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _of_table(file: str, table: pa.Table) -> dict[str, Number]:
    found = {f"{'rows chosen' if file in CHOSEN else 'rows'}|{file}|rows": [float(table.num_rows), 0.0]}
    if file in NAMES:
        return found | dict(_by_name(file, table))
    for column in table.column_names:
        values = _numeric(table[column])
        if values is not None and column not in LEFT_OUT:
            known = values[np.isfinite(values)]
            found[f"share known|{file}|{column}"] = [len(known) / max(len(values), 1), 0.0]
            if len(known):
                found[f"mean|{file}|{column}"] = [float(known.mean()), float(known.std())]
    return found


def _by_name(file: str, table: pa.Table) -> Iterator[tuple[str, Number]]:
    """A training's log: a mean over the steps. Metrics: the value, measured by half its interval."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        if row["value"] is not None:
            groups.setdefault(row["metric"], []).append(row)
    for name, rows in groups.items():
        values = np.array([row["value"] for row in rows])
        if file == "training":
            yield f"step mean|{file}|{name}", [float(values.mean()), float(values.std())]
        else:
            half = max((row["high"] - row["low"]) / 2 if row["low"] is not None else 0.0 for row in rows)
            yield f"measured|{file}|{name}", [float(values.mean()), half]


def _numeric(column: pa.ChunkedArray) -> np.ndarray | None:
    """A column as numbers; a list as its length where it holds ids, else as the mean of what it holds."""
    kind = column.type
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return np.array(column.to_pylist(), dtype=float)
    if not pa.types.is_list(kind) or not (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):
        return None
    of_list = len if pa.types.is_integer(kind.value_type) else np.mean
    return np.array([float(of_list(row)) if row else math.nan for row in column.to_pylist()])


def _of_facts(file: str, facts: Any) -> dict[str, Number]:
    flat = _flat(facts, "")
    return {f"{'count' if isinstance(value, int) else 'fact'}|{file}|{name}": [float(value), 0.0] for name, value in flat}


def _flat(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (int, float)) and math.isfinite(value):
        yield name, value


def _of_weights(path: Path) -> dict[str, Number]:
    from safetensors.numpy import load_file

    weights = {name: np.asarray(weight, dtype=np.float64) for name, weight in load_file(path).items()}
    return {f"norm|model|{name}": [float(np.linalg.norm(weight)), 0.0] for name, weight in sorted(weights.items())}


def allowed(name: str, recorded: Number) -> float:
    kind, (value, deviation) = TOLERANCES[name.partition("|")[0]], recorded
    return kind.deviations * deviation + kind.relative * abs(value) + kind.absolute


def differences(now: Mapping[str, Number], recorded: Mapping[str, Number]) -> list[str]:
    """A line per number that is not within its tolerance; one that is missing on either side is one too."""
    found = [f"{name}: only {'now' if name in now else 'recorded'}" for name in sorted(now.keys() ^ recorded.keys())]
    for name in sorted(now.keys() & recorded.keys()):
        value, known, most = now[name][0], recorded[name][0], allowed(name, recorded[name])
        if not abs(value - known) <= most:
            why = TOLERANCES[name.partition("|")[0]].why
            found.append(f"{name}: {value:g}, recorded {known:g} +- {most:.2g} ({why})")
    return found
