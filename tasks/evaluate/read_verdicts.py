"""Read verdicts on pairs of texts from a file, whatever its columns are called."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.errors import PromptsError
from data.rows import sources
from tasks.evaluate.judge_audit import Text, Verdict

Record = Mapping[str, Any]

# role -> its usual columns. Those after the first are of AlpacaEval's annotations and of MT-Bench's judgements.
ROLES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "prompt_id", "instruction", "question_id"),
    "first": ("first", "output_1"),
    "second": ("second", "output_2"),
    "first_length": ("first_length",),
    "second_length": ("second_length",),
    "first_by": ("first_by", "generator_1", "model_1", "model_a"),
    "second_by": ("second_by", "generator_2", "model_2", "model_b"),
    "verdict": ("verdict", "preference", "winner", "g1_winner"),
    "swapped": ("swapped", "g2_winner"),
    "gold": ("gold",),
    "first_gold": ("first_gold",),
    "second_gold": ("second_gold",),
    "judge": ("judge", "annotator"),
}
FIRST = ("first", "a", "[[a]]", "model_1", "model_a", "output_1")
SECOND = ("second", "b", "[[b]]", "model_2", "model_b", "output_2")
TIE = ("tie", "c", "[[c]]", "equal", "tie (bothbad)")
UNREADABLE = ("", "error", "none", "null", "nan")


def read_verdicts(file: Path, columns: str = "", judge: str = "") -> tuple[list[Verdict], bool]:
    """The verdicts of a .jsonl, .jsonl.gz, .parquet or .csv file, and whether it names prompts.

    Args:
        columns: role=column,role=column for columns that do not have their usual names.
        judge: who gave the verdicts; empty = the file's column.

    Raises:
        PromptsError: the file, a column or a row cannot be read.
    """
    rows = list(_records(file))
    column_of = _columns(columns, [record for _, record in rows], file)
    return _read(rows, column_of, judge), "prompt" in column_of


def _records(file: Path) -> Iterator[tuple[str, Record]]:
    if file.suffix != ".csv":
        yield from sources.read(file)
        return
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            for number, record in enumerate(csv.DictReader(lines), 1):
                yield f"{file.name}: row {number}", record
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PromptsError(f"{file}: expected a readable .csv file with a header: {error}") from error


def _columns(given: str, records: Sequence[Record], file: Path) -> dict[str, str]:
    """The column of each role that the file has.

    Raises:
        PromptsError: an unknown role, a column that is not there, or too little to know verdicts and texts.
    """
    present = {name for record in records[:100] for name in record}
    column_of = {role: next((name for name in usual if name in present), "") for role, usual in ROLES.items()}
    for item in filter(None, given.split(",")):
        role, _, column = (part.strip() for part in item.partition("="))
        if role not in ROLES or column not in present:
            raise PromptsError(
                f"--map {item}: expected ROLE=COLUMN with a role of {', '.join(ROLES)} and a column of {file.name}, which has "
                f"{', '.join(sorted(present))}"
            )
        column_of[role] = column
    found = {role: column for role, column in column_of.items() if column}
    texts = any({f"first{what}", f"second{what}"} <= found.keys() for what in ("", "_length", "_by"))
    if "verdict" not in found or not texts:
        raise PromptsError(
            f"{file}: expected a column with the verdict, and two with the texts, their lengths or who wrote them; found "
            f"{', '.join(sorted(present))}. Name them with --map, e.g. --map verdict=winner,first=answer_a,second=answer_b"
        )
    return found


def _read(rows: Sequence[tuple[str, Record]], column_of: Mapping[str, str], judge: str) -> list[Verdict]:
    """The verdicts of a file's rows; a row with `swapped` has two.

    Raises:
        PromptsError: a verdict that cannot be understood; its row is named.
    """
    codes = {role: _codes(rows, column_of.get(role)) for role in ("verdict", "swapped", "gold")}
    verdicts = []
    for number, (place, record) in enumerate(rows):
        row = {role: record.get(column) for role, column in column_of.items()}
        first, second = (_text(row, side, f"{number}") for side in ("first", "second"))
        won, swapped, gold = (
            _wins(row.get(role), first, second, codes[role], f"{place}: {column_of.get(role)}")
            for role in ("verdict", "swapped", "gold")
        )
        gold = _better(row, place) if gold is None else gold
        who, prompt = judge or _said(row.get("judge")) or "judge", _said(row.get("prompt")) or f"row {number}"
        one = Verdict(who, prompt, first, second, won, gold)
        verdicts.append(one)
        if "swapped" in column_of:
            verdicts.append(replace(_turned(one), first_wins=None if swapped is None else 1 - swapped))
    return verdicts


def _turned(one: Verdict) -> Verdict:
    return replace(one, first=one.second, second=one.first, gold=None if one.gold is None else 1 - one.gold)


def _text(row: Record, side: str, number: str) -> Text:
    text, writer, given = (row.get(role) for role in (side, f"{side}_by", f"{side}_length"))
    length = _number(given) if given is not None else float(len(text)) if isinstance(text, str) else None
    key = "\0".join(_said(part) for part in (text, writer))
    return Text(key if key != "\0" else f"{number} {side}", length, _said(writer) or None)


def _codes(rows: Sequence[tuple[str, Record]], column: str | None) -> bool:
    """Whether the numbers of a column are 1 = the first and 2 = the second, instead of a share from 0 to 1.

    Raises:
        PromptsError: they are neither.
    """
    numbers = [(place, x) for place, r in rows if column and (x := _number(r.get(column))) is not None]
    place, largest = max(numbers, key=lambda pair: pair[1], default=("", 0.0))
    least = min((x for _, x in numbers), default=0.0)
    if least < 0 or largest > 2 or (largest > 1 and least < 1):
        raise PromptsError(
            f"{place}: {column}: expected how far the first text wins (0 to 1), or 1 = the first to 2 = the second; found "
            f"{least:g} to {largest:g}. Write first, second or tie instead"
        )
    return largest > 1


def _wins(value: Any, first: Text, second: Text, codes: bool, place: str) -> float | None:
    number, said = _number(value), _said(value).lower()
    if number is not None:
        return 2 - number if codes else number
    if value is None or said in UNREADABLE:
        return None
    for won, names, writer in ((1.0, FIRST, first.writer), (0.0, SECOND, second.writer), (0.5, TIE, None)):
        if said in names or (writer and first.writer != second.writer and said == writer.lower()):
            return won
    raise PromptsError(
        f"{place}: expected first, second, tie, a number or the name of a writer, found {_said(value)[:40]!r}; leave it "
        "empty if the verdict could not be read"
    )


def _better(row: Record, place: str) -> float | None:
    """Whether gold gives the first text the higher number."""
    one, other = (_number(row.get(f"{side}_gold")) for side in ("first", "second"))
    return None if one is None or other is None else 0.5 + 0.5 * math.copysign(1.0, one - other) * (one != other)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _said(value: Any) -> str:
    return "" if value is None else str(value).strip()
