"""Records of a user's file, and what the recipe's column map finds in them: prompts, answers and completions.

A column is a name or a dotted path into nested records (`gpt.solution`). Where the map is silent the usual names are tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.errors import PromptsError
from data.recipe.settings import Prompts
from data.rows.sources import Record

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
    """A completion that somebody else produced, with whatever else its record says of it (`given`)."""

    text: str
    finish_reason: str | None
    given: dict[str, Any]


def column_of(settings: Prompts, role: str, record: Record, place: str) -> str:
    """The column that plays a role in this record: the mapped one, else the first of the usual names, else "".

    Raises:
        PromptsError: a mapped column that is not there.
    """
    mapped: str = getattr(settings.map, role)
    if not mapped:
        # a column plays one role, but a preferred conversation may hold the prompt as well
        taken = set() if role in ("chosen", "rejected") else set(settings.map.model_dump().values())
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
        if not column or not _is_talk(value_of(record, column)):
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
    if given and messages[0]["role"] == "system":
        raise PromptsError(
            f"{place}: expected one system message, found one in '{column}' and one in '{system}'; map one of them"
        )
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

    Beside a list of n, every other list of n holds one value per completion; anything else belongs to all of them. A completion
    may stand at the end of a conversation, which must be the prompt's.
    """
    prompt = messages_of(settings, record, place)
    asked = column_of(settings, "prompt", record, place)
    column = column_of(settings, "completion", record, place)
    sides = [column_of(settings, side, record, place) for side in ("chosen", "rejected")]
    if not column and all(sides):
        rest = {name: value for name, value in record.items() if name not in (asked, *sides)}
        texts = [_text(settings, value_of(record, side), prompt, place, side) for side in sides]
        return [Recorded(text, None, {**rest, "preferred": i == 0}) for i, text in enumerate(texts)]
    column = column or (asked if asked and _is_talk(value_of(record, asked)) else "")
    if not column:
        raise PromptsError(
            f"{place}: expected completions in a column 'completion' (or 'chosen' and 'rejected', or messages that end with "
            f"the assistant's), found {', '.join(record) or 'none'}; set prompts.map.completion"
        )
    value = value_of(record, column)
    rest = {name: value for name, value in record.items() if name not in (asked, column)}
    if not isinstance(value, list) or _is_talk(value):
        return [_recorded(settings, value, rest, prompt, place, column)]
    owned = [{name: _own(other, i, len(value)) for name, other in rest.items()} for i in range(len(value))]
    return [_recorded(settings, text, own, prompt, place, column) for text, own in zip(value, owned, strict=True)]


def given_of(settings: Prompts, record: Record, place: str) -> str:
    """The solution a record gives for its prompt: its first completion (of two, the chosen one), else the whole answer.

    Raises:
        PromptsError: it gives none.
    """
    if any(column_of(settings, role, record, place) for role in ("completion", "chosen")):
        return completions_of(settings, record, place)[0].text
    column = column_of(settings, "answer", record, place)
    if not column or not (text := str(value_of(record, column) or "").strip()):
        raise PromptsError(f"{place}: expected a given solution, since prompts.seed asks for some; set prompts.map.completion")
    return text


def _own(value: Any, index: int, count: int) -> Any:
    return value[index] if isinstance(value, list) and len(value) == count else value


def _recorded(settings: Prompts, value: Any, rest: dict[str, Any], prompt: list[Message], place: str, column: str) -> Recorded:
    name = column_of(settings, "finish_reason", rest, place)
    reason = value_of(rest, name) if name else None
    if reason is not None and not isinstance(reason, str):
        raise PromptsError(f"{place}: column '{name}': expected a finish reason as text, found {reason!r:.80}")
    return Recorded(_text(settings, value, prompt, place, column), reason, rest)


def _text(settings: Prompts, value: Any, prompt: list[Message], place: str, column: str) -> str:
    if isinstance(value, str):
        return value
    if not _is_talk(value) or value[-1]["role"] != "assistant":
        raise PromptsError(f"{place}: column '{column}': expected a completion as text, found {value!r:.80}")
    asked, before = _turns(prompt), _turns(value[:-1])
    if before and asked not in (before, _turns(value[:-1], settings.template)):
        raise PromptsError(
            f"{place}: column '{column}': expected the last turn to answer the prompt, found a conversation that begins "
            f"otherwise ({before[-1][1]!r:.40}); set prompts.map.prompt to the column of the whole conversation"
        )
    return str(value[-1]["content"])


def _turns(messages: list[Message], template: str = "{prompt}") -> list[tuple[str, str]]:
    """Roles and contents without the system's; the template is what the recipe puts around a prompt's text."""
    return [(m["role"], template.replace("{prompt}", m["content"])) for m in messages if m["role"] != "system"]
