"""Verifiers of the built-in puzzles. They check the answer itself, so that every solution counts, not only the stored one."""

from __future__ import annotations

from collections.abc import Sequence

from data.worlds.countdown import PUZZLE, solves
from data.worlds.knights_knaves import assignment
from tasks.score.scorers import Row, Score, answer_part, gold_answer, printable

VERSIONS = {"knights_knaves": 2}  # 2: equal solutions are told alike


def countdown(prompts: Sequence[Row], completions: Sequence[Row]) -> list[Score]:
    """1.0 where the expression reaches the target with + - * / and each given number at most once, and nothing else.

    The gold answer reads `24 from 3, 5, 9`; `= 24` after the expression is allowed. No power, so `2**3` is no answer.
    """
    return [_countdown(gold_answer(p), c) for p, c in zip(prompts, completions, strict=True)]


def _countdown(gold: str | None, completion: Row) -> Score:
    if gold is None:
        return Score(None, "no_answer")
    puzzle = PUZZLE.fullmatch(gold)
    if puzzle is None:
        return Score(None, "gold_parse_failure")
    target, numbers = int(puzzle[1]), [int(number) for number in puzzle[2].split(", ")]
    expression, equals, rest = answer_part(completion["text"]).partition("=")
    if completion["finish_reason"] == "length":
        return Score(0.0, "truncated", printable(expression))
    solved = solves(expression.strip(), target, numbers)
    if solved is None or (equals and rest.strip() != str(target)):
        return Score(0.0, "no_answer_found", printable(expression))
    return Score(float(solved), "ok", printable(expression))


def knights_knaves(prompts: Sequence[Row], completions: Sequence[Row]) -> list[Score]:
    """1.0 where everybody of the gold answer, and nobody else, is called what they are; "a knight or a knave" is no answer."""
    return [_knights(gold_answer(p), c) for p, c in zip(prompts, completions, strict=True)]


def _told(said: dict[str, bool]) -> str:
    """The same text for the same solution: +knight -knave."""
    return " ".join(f"{'+' if knight else '-'}{name}" for name, knight in sorted(said.items()))


def _knights(gold: str | None, completion: Row) -> Score:
    if gold is None:
        return Score(None, "no_answer")
    truth, text = assignment(gold), answer_part(completion["text"])
    if truth is None:
        return Score(None, "gold_parse_failure")
    if completion["finish_reason"] == "length":
        return Score(0.0, "truncated", printable(text))
    said = assignment(text)
    return Score(0.0, "no_answer_found") if said is None else Score(float(said == truth), "ok", printable(_told(said)))
