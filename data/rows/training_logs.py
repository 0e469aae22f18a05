"""Training logs of other programs, as rows of TRAINING under TRL's names.

Read are TRL's `trainer_state.json`, JSONL and CSV files (of TRL, verl's file logger, OpenRLHF, or exported from W&B), and the
lines that TRL and verl print to a terminal (.log, .txt).
"""

from __future__ import annotations

import ast
import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import LogError, did_you_mean

Row = dict[str, Any]
Located = tuple[str, Mapping[str, Any]]

# What is read -> its names, TRL's first: the metric of TRAINING. Then verl's and OpenRLHF's, and TRL's of before version 0.16.
# A leading "train/", which OpenRLHF and W&B add, is left out.
COLUMNS: dict[str, tuple[str, ...]] = {
    "step": ("step", "global_step", "training/global_step", "_step"),
    "reward": ("reward", "critic/score/mean", "critic/rewards/mean"),
    "reward_std": ("reward_std",),
    "equal": ("frac_reward_zero_std",),
    "entropy": ("entropy", "actor/entropy", "actor/entropy_loss", "entropy_loss"),
    "kl": ("kl", "actor/kl_loss", "actor/reward_kl_penalty"),
    "length": ("completions/mean_length", "completion_length", "response_length/mean", "response_length"),
    "truncated": ("completions/clipped_ratio", "response_length/clip_ratio", "response_clip_ratio"),
    "loss": ("loss",),
    "margin": ("rewards/margins",),
    "chosen": ("logps/chosen",),
    "accuracy": ("rewards/accuracies",),
}
TELLING = ("reward", "margin", "kl", "entropy", "length", "truncated")  # without any of them there is nothing to say


@dataclass(frozen=True)
class TrainingLog:
    rows: list[Row]  # of TRAINING, under TRL's names
    columns: dict[str, str]  # what was read -> the file's name for it

    @property
    def steps(self) -> tuple[int, int]:
        steps = [row["step"] for row in self.rows]
        return min(steps), max(steps)


def read(path: Path, names: Mapping[str, str]) -> TrainingLog:
    """A training log. `names`: what is read (a key of COLUMNS) -> the file's column, where it is not one of the usual names.

    Raises:
        LogError: the file cannot be read, has a bad row (which is named), or has none of the columns.
    """
    if unknown := sorted(set(names) - set(COLUMNS)):
        raise LogError(f"--map: expected {', '.join(COLUMNS)}, found '{unknown[0]}'{did_you_mean(unknown[0], COLUMNS)}")
    records = [(where, flat(record)) for where, record in _records(path)]
    found = _columns(path, names, list(dict.fromkeys(name for _, record in records for name in record)))
    by_step: dict[int, dict[str, float]] = {}
    for where, record in records:
        values = {what: _number(where, column, record.get(column)) for what, column in found.items()}
        step = values.pop("step", None)
        known = {what: value for what, value in values.items() if value is not None}
        if known:  # a step that is logged again, as after a resume, counts as logged last
            number = len(by_step) + 1 if step is None else _whole(where, found["step"], step)
            by_step.setdefault(number, {}).update(known)
    rows = [
        {"step": step, "metric": COLUMNS[what][0], "value": value}
        for step in sorted(by_step)
        for what, value in by_step[step].items()
    ]
    if not rows:
        raise LogError(f"{path}: expected numbers in {', '.join(found.values())}, found none")
    return TrainingLog(rows, found)


def flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """verl's file logger puts the values of a step in a table of their own, `data`."""
    inner = record.get("data")
    merged = {**record, **inner} if isinstance(inner, dict) else record
    return {str(name).removeprefix("train/"): value for name, value in merged.items()}


def _columns(path: Path, names: Mapping[str, str], present: list[str]) -> dict[str, str]:
    named = {what: column.removeprefix("train/") for what, column in names.items()}
    if missing := [column for column in named.values() if column not in present]:
        raise LogError(f"{path}: expected the column '{missing[0]}' of --map, found {_listed(present)}")
    usual = {what: next((name for name in known if name in present), None) for what, known in COLUMNS.items()}
    found = {what: column for what, column in {**usual, **named}.items() if column is not None}
    if not set(found) & set(TELLING):
        raise LogError(
            f"{path}: expected a column with the reward, KL, entropy, length or margin, found {_listed(present)}. Name them, "
            "e.g. --map reward=COLUMN,kl=COLUMN"
        )
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") if names else "no columns"


def _number(where: str, column: str, value: Any) -> float | None:
    """A value as a float; None if it is missing, NaN or infinite."""
    if value is None or value == "":
        return None
    try:
        number = math.nan if isinstance(value, (bool, list, dict)) else float(value)
    except (ValueError, OverflowError, TypeError):
        number = None
    if number is None or isinstance(value, (bool, list, dict)):
        raise LogError(f"{where}: expected a number in '{column}', found {str(value)[:50]!r}")
    return number if math.isfinite(number) else None


def _whole(where: str, column: str, step: float) -> int:
    if step != int(step) or not 0 <= step < 2**31:
        raise LogError(f"{where}: expected a whole number of steps in '{column}', found {step:g}")
    return int(step)


# -- formats --------------------------------------------------------------------------------------------------------------
def _records(path: Path) -> Iterator[Located]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LogError(f"{path}: expected a readable training log (.json, .jsonl, .csv, .log or .txt): {error}") from error
    match path.suffix:
        case ".csv":
            yield from _csv(path, text)
        case ".json":
            yield from _json(path, text)
        case ".log" | ".txt":
            yield from _printed(path, text)
        case _:
            yield from _lines(path, text)


def _csv(path: Path, text: str) -> Iterator[Located]:
    try:
        for number, record in enumerate(csv.DictReader(text.splitlines()), 2):
            if None in record:
                raise LogError(f"{path.name}: row {number}: expected as many values as the header has names, found more")
            yield f"{path.name}: row {number}", record
    except csv.Error as error:
        raise LogError(f"{path}: expected a CSV file: {error}") from error


def _json(path: Path, text: str) -> Iterator[Located]:
    """`trainer_state.json`, or a list of records. A file with one record per line is read as that."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        yield from _lines(path, text)
        return
    records = content.get("log_history", [content]) if isinstance(content, dict) else content
    yield from _objects(path, enumerate(records if isinstance(records, list) else [records], 1))


def _lines(path: Path, text: str) -> Iterator[Located]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise LogError(f"{path.name}: row {number}: expected one JSON object per line: {error}") from error
            yield from _objects(path, [(number, record)])


def _objects(path: Path, records: Iterable[tuple[int, Any]]) -> Iterator[Located]:
    for number, record in records:
        if not isinstance(record, dict):
            raise LogError(f"{path.name}: row {number}: expected a JSON object, found {type(record).__name__}")
        yield f"{path.name}: row {number}", record


PRINTED = re.compile(r"\{'[^{}]*\}")  # TRL: {'loss': 0.1, 'reward': 0.5, ...}
PRINTED_BY_VERL = re.compile(r"\bstep:\d+ - .*")  # step:12 - actor/entropy:0.5 - critic/score/mean:0.3


def _printed(path: Path, text: str) -> Iterator[Located]:
    """The records among the lines of a terminal; what else was printed is left out."""
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{path.name}: line {number}"
        for found in PRINTED.findall(line):
            try:
                record = ast.literal_eval(found)  # literals only: nothing is run
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            if isinstance(record, dict):
                yield where, record
        for found in PRINTED_BY_VERL.findall(line):
            pairs = (part.rpartition(":") for part in found.split(" - "))
            yield where, {name.strip(): _verl(value) for name, _, value in pairs}


def _verl(value: str) -> str:
    """verl prints some numbers as np.float64(0.5)."""
    return re.sub(r"^np\.\w+\((.*)\)$", r"\1", value.strip())
