"""Prompts, answers and completions in the records of a user's file, found by the recipe's column map.

A column is a name or a dotted path into nested records (`gpt.solution`). Where the map names no column, usual names are tried.
Puzzles of two data sets are known by their columns, and are taken as they are:

- TinyZero's Countdown (https://github.com/Jiayi-Pan/TinyZero, examples/data_preprocess/countdown.py): `target` and `nums`, and
  in its prepared files `target` and `numbers` in `reward_model.ground_truth`. The data set has no prompt, so one is written.
- Logic-RL's Knights and Knaves (https://github.com/Unakar/Logic-RL, data/kk): `quiz` and `solution_text_format`, with `names`
  and `solution` (true for a knight). Its column `prompt` holds a chat template already, so `quiz` is the prompt.

A `location` names file and row, for messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.errors import PromptsError
from data.recipe.settings import Prompts
from data.rows.sources import Record
from data.worlds import countdown

USUAL = {
    "prompt": ("prompt", "question", "problem", "instruction", "query", "input", "messages"),
    "answer": ("answer", "gold", "solution", "final_answer", "target", "response", "output"),
    "completion": ("completion", "completions"),
    "finish_reason": ("finish_reason",),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
}

Message = dict[str, str]


@dataclass(frozen=True)
class Recorded:
    """A completion that was sampled elsewhere. `given` holds the other columns of its record."""

    text: str
    finish_reason: str | None
    given: dict[str, Any]


def column_of(settings: Prompts, role: str, record: Record, location: str) -> str:
    """The column for a role in this record: the mapped one, else the first usual name that the record has, else "".

    Raises:
        PromptsError: the mapped column is missing.
    """
    mapped: str = getattr(settings.map, role)
    if not mapped:
        # A column has one role. Chosen and rejected are excepted: their conversations may hold the prompt as well.
        used = set() if role in ("chosen", "rejected") else set(settings.map.model_dump().values())
        return next((name for name in USUAL.get(role, ()) if name in record and name not in used), "")
    if not has(record, mapped):
        raise PromptsError(
            f"{location}: expected column '{mapped}', found {', '.join(record) or 'none'}; set prompts.map.{role}"
        )
    return mapped


def has(record: Record, column: str) -> bool:
    try:
        value_of(record, column)
    except KeyError:
        return False
    return True


def value_of(record: Record, column: str) -> Any:
    """The value of a column or dotted path.

    Raises:
        KeyError: the record has no such column.
    """
    if column in record:
        return record[column]
    outer, _, inner = column.partition(".")
    if not inner or not isinstance(record.get(outer), Mapping):
        raise KeyError(column)
    return value_of(record[outer], inner)


# -- prompts ------------------------------------------------------------------------------------------------------------
def messages_of(settings: Prompts, record: Record, location: str) -> list[Message]:
    """The prompt as chat messages, with a system message where one is mapped. A last turn of the assistant is left out.

    Raises:
        PromptsError: the record has no prompt, or one that is neither text nor a list of messages.
    """
    if not (countdown_prompt := _countdown_prompt(settings, record)):
        column = _prompt_column(settings, record, location)
        messages = _as_messages(settings, value_of(record, column), f"{location}: column '{column}'")
    else:
        column, messages = "target", _as_messages(settings, countdown_prompt, location)
    system_column = column_of(settings, "system", record, location)
    system = value_of(record, system_column) if system_column else None
    if system and messages[0]["role"] == "system":
        raise PromptsError(
            f"{location}: expected one system message, found one in '{column}' and one in '{system_column}'; map one of them"
        )
    return [{"role": "system", "content": str(system)}, *messages] if system else messages


def _prompt_column(settings: Prompts, record: Record, location: str) -> str:
    """The column of the prompt. Preference data may have none: there the prompt is how the chosen conversation begins."""
    if not settings.map.prompt and _is_knights(record):
        return "quiz"
    if column := column_of(settings, "prompt", record, location):
        return column
    chosen = column_of(settings, "chosen", record, location)
    if chosen and _is_conversation(value_of(record, chosen)):
        return chosen
    names, columns = ", ".join(USUAL["prompt"]), ", ".join(record) or "none"
    raise PromptsError(f"{location}: expected one of the columns {names}, found {columns}; set prompts.map.prompt")


def _as_messages(settings: Prompts, value: Any, location: str) -> list[Message]:
    if settings.map.prompt and type(value) is int:
        value = str(value)  # a mapped column may hold numbers, for prompts that are only numbered
    if isinstance(value, str) and value.strip():
        return [{"role": "user", "content": settings.template.replace("{prompt}", value)}]
    if not _is_conversation(value) or (value[-1]["role"] == "assistant" and len(value) == 1):
        raise PromptsError(f"{location}: expected text or a list of {{role, content}} messages, found {value!r:.80}")
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in value]
    return turns[:-1] if turns[-1]["role"] == "assistant" else turns


def _is_conversation(value: Any) -> bool:
    """Whether the value is a list of chat messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value)
    )


def answer_of(settings: Prompts, record: Record, location: str) -> str | None:
    """The gold answer (the verified correct one): the text after the last `answer_after`, or all of it; None without one."""
    if not settings.map.answer and (known := _puzzle_answer(record)):
        return known
    column = column_of(settings, "answer", record, location)
    value = value_of(record, column) if column else None
    if value is None:
        return None
    text = (_puzzle_answer(value) if isinstance(value, Mapping) else None) or str(value)
    if settings.answer_after and settings.answer_after in text:
        text = text.rsplit(settings.answer_after, 1)[1]
    return text.strip()


def _puzzle_answer(record: Record) -> str | None:
    """What the verifiers of puzzles need, from the columns of TinyZero or Logic-RL; None for any other record."""
    if numbers := _countdown_numbers(record):
        return countdown.answer(record["target"], numbers)
    return str(record["solution_text_format"]) if isinstance(record.get("solution_text_format"), str) else None


def _countdown_numbers(record: Record) -> list[int] | None:
    """The given numbers of a Countdown puzzle with whole numbers; None for any other record."""
    numbers = next((record[name] for name in ("nums", "numbers") if name in record), None)
    whole = type(record.get("target")) is int and isinstance(numbers, list) and all(type(n) is int for n in numbers)
    return numbers if whole and numbers else None


def _countdown_prompt(settings: Prompts, record: Record) -> str | None:
    """A prompt for a Countdown puzzle that has none, by the rule of its verifier; None for any other record."""
    numbers = _countdown_numbers(record)
    if not numbers or settings.map.prompt or any(name in record for name in USUAL["prompt"]):
        return None
    return countdown.TEXT_ALL.format(numbers=", ".join(map(str, numbers)), target=record["target"])


def _is_knights(record: Record) -> bool:
    return {"quiz", "solution_text_format"} <= record.keys()


def stratum_of(settings: Prompts, record: Record, location: str) -> str | None:
    column = column_of(settings, "stratum", record, location)
    value = value_of(record, column) if column else None
    return None if value is None else str(value)


# -- completions --------------------------------------------------------------------------------------------------------
def completions_of(settings: Prompts, record: Record, location: str) -> list[Recorded]:
    """The completions of a record: one text, a list of n, a chosen and a rejected one, or the last turn of its messages.

    With a list of n completions, every other list of length n holds one value per completion. Any other column belongs to all
    of them. A completion may be the last turn of a conversation; the turns before it must be the prompt.

    Raises:
        PromptsError: the record has no completion, or one that is not text.
    """
    prompt = messages_of(settings, record, location)
    prompt_column = column_of(settings, "prompt", record, location)
    column = column_of(settings, "completion", record, location)
    sides = [column_of(settings, side, record, location) for side in ("chosen", "rejected")]
    if not column and all(sides):
        rest = {name: value for name, value in record.items() if name not in (prompt_column, *sides)}
        texts = [_text(settings, value_of(record, side), prompt, location, side) for side in sides]
        return [Recorded(text, None, {**rest, "preferred": i == 0}) for i, text in enumerate(texts)]
    column = column or (prompt_column if prompt_column and _is_conversation(value_of(record, prompt_column)) else "")
    if not column:
        raise PromptsError(
            f"{location}: expected completions in a column 'completion' (or 'chosen' and 'rejected', or messages that end with "
            f"a turn of the assistant), found {', '.join(record) or 'none'}; set prompts.map.completion"
        )
    value = value_of(record, column)
    rest = {name: other for name, other in record.items() if name not in (prompt_column, column)}
    if not isinstance(value, list) or _is_conversation(value):
        return [_recorded(settings, value, rest, prompt, location, column)]
    rests = [{name: _own(other, i, len(value)) for name, other in rest.items()} for i in range(len(value))]
    return [_recorded(settings, text, own, prompt, location, column) for text, own in zip(value, rests, strict=True)]


def given_of(settings: Prompts, record: Record, location: str) -> str:
    """The given solution of a record: its first completion (the chosen one of a pair), else the whole answer.

    Raises:
        PromptsError: the record has neither.
    """
    if any(column_of(settings, role, record, location) for role in ("completion", "chosen")):
        return completions_of(settings, record, location)[0].text
    column = column_of(settings, "answer", record, location)
    is_solution = settings.map.answer or not _countdown_numbers(record)  # the numbers and the target of a puzzle are none
    if not settings.map.answer and _is_knights(record):
        column = "solution_text_format"
    if not column or not is_solution or not (text := str(value_of(record, column) or "").strip()):
        raise PromptsError(
            f"{location}: expected a given solution, since prompts.seed is above 0, found none; set prompts.map.completion"
        )
    return text


def _own(value: Any, index: int, count: int) -> Any:
    """The value of one of `count` completions: its entry in a list of that length, else the value they share."""
    return value[index] if isinstance(value, list) and len(value) == count else value


def _recorded(
    settings: Prompts, value: Any, rest: dict[str, Any], prompt: list[Message], location: str, column: str
) -> Recorded:
    reason_column = column_of(settings, "finish_reason", rest, location)
    reason = value_of(rest, reason_column) if reason_column else None
    if reason is not None and not isinstance(reason, str):
        raise PromptsError(f"{location}: column '{reason_column}': expected a finish reason as text, found {reason!r:.80}")
    return Recorded(_text(settings, value, prompt, location, column), reason, rest)


def _text(settings: Prompts, value: Any, prompt: list[Message], location: str, column: str) -> str:
    if isinstance(value, str):
        return value
    if not _is_conversation(value) or value[-1]["role"] != "assistant":
        raise PromptsError(f"{location}: column '{column}': expected a completion as text, found {value!r:.80}")
    turns_before = _turns(value[:-1])
    if turns_before and _turns(prompt) not in (turns_before, _turns(value[:-1], settings.template)):
        raise PromptsError(
            f"{location}: column '{column}': expected the last turn to answer the prompt, found a conversation with another "
            f"prompt ({turns_before[-1][1]!r:.40}); set prompts.map.prompt to the column of the whole conversation"
        )
    return str(value[-1]["content"])


def _turns(messages: list[Message], template: str = "{prompt}") -> list[tuple[str, str]]:
    """Role and content of each message except system messages, with the recipe's template around each content."""
    return [(m["role"], template.replace("{prompt}", m["content"])) for m in messages if m["role"] != "system"]
