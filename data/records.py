"""Records of a user's file, and what the recipe's column map finds in them: prompts, answers and completions.

A column is a name or a dotted path into nested records (`gpt.solution`). Where the map is silent the usual names are tried.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import PromptsError
from data.recipe import Prompts

USUAL = {
    "prompt": ("prompt", "question", "problem", "instruction", "query", "input", "messages"),
    "answer": ("answer", "gold", "solution", "final_answer", "target", "response", "output"),
    "completion": ("completion", "completions"),
    "finish_reason": ("finish_reason",),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
}

Record = Mapping[str, Any]
Message = dict[str, str]


@dataclass(frozen=True)
class Recorded:
    """A completion that somebody else produced, with whatever else its record says of it (`given`)."""

    text: str
    finish_reason: str | None
    given: dict[str, Any]


def read(path: Path) -> Iterator[tuple[str, Record]]:
    """(place, record) of a JSONL, gzipped JSONL or Parquet file; the place names file and row, as an editor counts lines.

    Raises:
        PromptsError: a file that cannot be read, or a bad row, named.
    """
    try:
        if path.suffix == ".parquet":
            for number, record in enumerate(pq.read_table(path).to_pylist(), 1):
                yield f"{path.name}: row {number}", record
            return
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    place = f"{path.name}: row {number}"
                    yield place, _parse(line, place)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise PromptsError(f"{path}: expected a readable .jsonl, .jsonl.gz or .parquet file: {error}") from error


def _parse(line: str, place: str) -> Record:
    try:
        record = json.loads(line)
        json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but not text
    except (ValueError, RecursionError) as error:
        raise PromptsError(f"{place}: expected one JSON object per line: {error}") from error
    if not isinstance(record, dict):
        raise PromptsError(f"{place}: expected a JSON object, found {type(record).__name__}")
    return record


def column_of(settings: Prompts, role: str, record: Record, place: str) -> str:
    """The column that plays a role in this record: the mapped one, else the first of the usual names, else "".

    Raises:
        PromptsError: a mapped column that is not there.
    """
    mapped: str = getattr(settings.map, role)
    if not mapped:
        taken = set(settings.map.model_dump().values())
        return next((name for name in USUAL.get(role, ()) if name in record and name not in taken), "")
    if not has(record, mapped):
        raise PromptsError(f"{place}: expected column '{mapped}', found {', '.join(record) or 'none'}; set prompts.map.{role}")
    return mapped


def has(record: Record, column: str) -> bool:
    try:
        value_of(record, column)
    except KeyError:
        return False
    return True


def value_of(record: Record, column: str) -> Any:
    """The value of a column or dotted path; KeyError where there is none."""
    if column in record:
        return record[column]
    head, _, rest = column.partition(".")
    if not rest or not isinstance(record.get(head), Mapping):
        raise KeyError(column)
    return value_of(record[head], rest)


# -- prompts ------------------------------------------------------------------------------------------------------------
def messages_of(settings: Prompts, record: Record, place: str) -> list[Message]:
    """The prompt as chat messages: a system message where one is mapped, and never the assistant's own last turn."""
    column = column_of(settings, "prompt", record, place)
    if not column:
        column = column_of(settings, "chosen", record, place)  # a preference file whose prompt is the shared beginning
        if not column or not _is_talk(record[column]):
            names = ", ".join(USUAL["prompt"])
            found = ", ".join(record) or "none"
            raise PromptsError(f"{place}: expected one of the columns {names}, found {found}; set prompts.map.prompt")
    value = value_of(record, column)
    if settings.map.prompt and type(value) is int:
        value = str(value)  # whoever names the column may know prompts by their number alone
    if isinstance(value, str) and value.strip():
        messages = [{"role": "user", "content": settings.template.replace("{prompt}", value)}]
    elif _is_talk(value) and (value[-1]["role"] != "assistant" or len(value) > 1):
        plain = [{"role": m["role"], "content": m["content"]} for m in value]
        messages = plain[:-1] if plain[-1]["role"] == "assistant" else plain
    else:
        raise PromptsError(
            f"{place}: column '{column}': expected text or a list of {{role, content}} messages, found {value!r:.80}"
        )
    system = column_of(settings, "system", record, place)
    given = value_of(record, system) if system else None
    return [{"role": "system", "content": str(given)}, *messages] if given else messages


def _is_talk(value: Any) -> bool:
    """Whether it is a list of chat messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value)
    )


def answer_of(settings: Prompts, record: Record, place: str) -> str | None:
    """The gold answer: what follows the last `answer_after`, or all of it; None where there is none."""
    column = column_of(settings, "answer", record, place)
    value = value_of(record, column) if column else None
    if value is None:
        return None
    text = str(value)
    if settings.answer_after and settings.answer_after in text:
        text = text.rsplit(settings.answer_after, 1)[1]
    return text.strip()


def stratum_of(settings: Prompts, record: Record, place: str) -> str | None:
    column = column_of(settings, "stratum", record, place)
    value = value_of(record, column) if column else None
    return None if value is None else str(value)


# -- completions --------------------------------------------------------------------------------------------------------
def completions_of(settings: Prompts, record: Record, place: str) -> list[Recorded]:
    """The completions of a record: one text, a list of n, a chosen and a rejected one, or the last turn of its messages.

    Beside a list of n, every other list of n holds one value per completion; anything else belongs to all of them.
    """
    asked = column_of(settings, "prompt", record, place)
    column = column_of(settings, "completion", record, place)
    sides = [column_of(settings, side, record, place) for side in ("chosen", "rejected")]
    if not column and all(sides):
        rest = {name: value for name, value in record.items() if name not in (asked, *sides)}
        texts = [_text(value_of(record, side), place, side) for side in sides]
        return [Recorded(text, None, {**rest, "preferred": i == 0}) for i, text in enumerate(texts)]
    column = column or (asked if asked and _is_talk(record.get(asked)) else "")
    if not column:
        raise PromptsError(
            f"{place}: expected completions in a column 'completion' (or 'chosen' and 'rejected', or messages that end with "
            f"the assistant's), found {', '.join(record) or 'none'}; set prompts.map.completion"
        )
    value = value_of(record, column)
    rest = {name: value for name, value in record.items() if name not in (asked, column)}
    if not isinstance(value, list) or _is_talk(value):
        return [_recorded(settings, value, rest, place, column)]
    owned = [{name: _own(other, i, len(value)) for name, other in rest.items()} for i in range(len(value))]
    return [_recorded(settings, text, own, place, column) for text, own in zip(value, owned, strict=True)]


def _own(value: Any, index: int, count: int) -> Any:
    return value[index] if isinstance(value, list) and len(value) == count else value


def _recorded(settings: Prompts, value: Any, rest: dict[str, Any], place: str, column: str) -> Recorded:
    name = column_of(settings, "finish_reason", rest, place)
    reason = value_of(rest, name) if name else None
    if reason is not None and not isinstance(reason, str):
        raise PromptsError(f"{place}: column '{name}': expected a finish reason as text, found {reason!r:.80}")
    return Recorded(_text(value, place, column), reason, rest)


def _text(value: Any, place: str, column: str) -> str:
    if isinstance(value, str):
        return value
    if _is_talk(value) and value[-1]["role"] == "assistant":
        return str(value[-1]["content"])
    raise PromptsError(f"{place}: column '{column}': expected a completion as text, found {value!r:.80}")
