"""Verifiers of the built-in puzzles. They check the answer itself, so any solution counts, not only the stored one."""

from __future__ import annotations

from collections.abc import Sequence

from data.worlds.countdown import PUZZLE, in_signs, solves
from data.worlds.knights_knaves import assignment
from tasks.score.scorers import Row, Score, answer_part, gold_answer, printable

VERIFIERS = ("countdown", "knights_knaves")
# knights_knaves 2: equal solutions have equal details, 3: more forms are read, and what is only supposed or denied is not said;
# countdown 2: × and ÷ are read
VERSIONS = {"countdown": 2, "knights_knaves": 3}


def countdown(prompts: Sequence[Row], completions: Sequence[Row], *, use_all: bool = False) -> list[Score]:
    """1.0 if the expression reaches the target with only + - * / and each given number at most once.

    The gold answer has the form `24 from 3, 5, 9`. `= 24` after the expression is allowed. Powers such as `2**3` are not. × and
    ÷ are read. With `use_all` each number must be used exactly once, which is the rule of TinyZero's verifier
    (https://github.com/Jiayi-Pan/TinyZero, verl/utils/reward_score/countdown.py).
    """
    return [_countdown(gold_answer(p), c, use_all) for p, c in zip(prompts, completions, strict=True)]


def _countdown(gold: str | None, completion: Row, use_all: bool) -> Score:
    if gold is None:
        return Score(None, "no_answer")
    puzzle = PUZZLE.fullmatch(gold)
    if puzzle is None:
        return Score(None, "gold_parse_failure")
    target, numbers = int(puzzle[1]), [int(number) for number in puzzle[2].split(", ")]
    expression, equals, rest = in_signs(answer_part(completion["text"])).partition("=")
    if completion["finish_reason"] == "length":
        return Score(0.0, "truncated", printable(expression))
    solved = solves(expression.strip(), target, numbers, use_all)
    if solved is None or (equals and rest.strip() != str(target)):
        return Score(0.0, "no_answer_found", printable(expression))
    return Score(float(solved), "ok", printable(expression))


def knights_knaves(prompts: Sequence[Row], completions: Sequence[Row]) -> list[Score]:
    """1.0 if everybody in the gold answer, and nobody else, is named correctly. "a knight or a knave" is no answer.

    `Zoey is a knave`, `Zoey: knave` and `**Zoey** is a **knave**` are read. "It is false that Zoey is a knave" and "if Zoey is
    a knave" do not say that she is one.
    """
    return [_knights(gold_answer(p), c) for p, c in zip(prompts, completions, strict=True)]


def _written(is_knight: dict[str, bool]) -> str:
    """A text that is equal for equal solutions: +name for a knight, -name for a knave."""
    return " ".join(f"{'+' if knight else '-'}{name}" for name, knight in sorted(is_knight.items()))


def _knights(gold: str | None, completion: Row) -> Score:
    if gold is None:
        return Score(None, "no_answer")
    truth, text = assignment(gold), answer_part(completion["text"])
    if truth is None:
        return Score(None, "gold_parse_failure")
    if completion["finish_reason"] == "length":
        return Score(0.0, "truncated", printable(text))
    answer = assignment(text)
    if answer is None:
        return Score(0.0, "no_answer_found")
    return Score(float(answer == truth), "ok", printable(_written(answer)))
