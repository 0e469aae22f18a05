"""The scorer that reads its values from a file of recorded completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data.rows.records import value_of
from tasks.score.scorers import Row, Score


def imported(prompts: Sequence[Row], completions: Sequence[Row], *, column: str, answer: str = "") -> list[Score]:
    """The number in a column of the recorded file. true is 1.0, false is 0.0, and null means "does not apply".

    A list of one number counts as that number. `answer` names the column with the completion's answer. It becomes the score's
    detail, which majority@k votes on.

    Raises:
        ValueError: the completion was not recorded, the column is missing, or a value is not a number.
    """
    return [_score(completion, column, answer) for _, completion in zip(prompts, completions, strict=True)]


def _score(completion: Row, column: str, answer: str) -> Score:
    value = _unpacked(_value(completion, column))
    read = None if not answer else _value(completion, answer)
    detail = None if read is None else str(read)
    if value is None:
        return Score(None, "no_value", detail)
    if not isinstance(value, (bool, int, float)):
        raise ValueError(f"column '{column}': expected a number, true, false or null, found {value!r:.80}")
    return Score(float(value), "ok", detail)


def _value(completion: Row, column: str) -> Any:
    if "record" not in completion:
        raise ValueError("expected recorded completions, found sampled ones; set generate.engine = 'recorded'")
    try:
        return value_of(completion["record"], column)
    except KeyError:
        columns = ", ".join(completion["record"]) or "none"
        raise ValueError(f"expected column '{column}' in the completion's record, found {columns}") from None


def _unpacked(value: Any) -> Any:
    return _unpacked(value[0]) if isinstance(value, list) and len(value) == 1 else value
