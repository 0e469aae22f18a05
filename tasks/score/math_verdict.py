"""The verdict of math-verify on one answer, and a shortcut that gives the same verdict for the most common answers.

An item is a pair (gold answer, completion text). Its verdict is the (value, status, detail) of a Score. The gold answer is the
verified correct answer of the prompt. math-verify reads and compares; each guard around it says which error of it it prevents.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tasks.score import claims
from tasks.score.scorers import printable

ANCHORS = ("$", "\\boxed", "\\(", "\\[")  # where math-verify expects LaTeX
DECIMALS, SIGNIFICANT = 6, 4  # numbers are equal if they agree to 6 decimals (math-verify's default) and to 4 digits
PROSE = re.compile(r"(-?[\d.,/]+%?|[A-Za-z]+)(\s+[A-Za-z]{2,}\.?)+")  # "72 dollars", "forty two"

Item = tuple[str, str]
Verdict = tuple[float | None, str, str | None]

# Whole numbers in their usual forms, at the three places where one can end a text.
_WHOLE = "0|-?[1-9][0-9]{0,11}|[1-9][0-9]{0,2}(?:,[0-9]{3}){1,3}"
_GOLD = re.compile(_WHOLE)
_LAST = re.compile(rf"(?:^|[A-Za-z:#>][ \n])\$?({_WHOLE})\.?\s*\Z")
_AFTER_ANSWER = re.compile(rf"(?i:answer)(?: is)?:? \$?({_WHOLE})\.?\s*\Z")
_BOXED = re.compile(r"\\boxed\{(0|-?[1-9][0-9]{0,11})\}(?:\s|\\\)|\\\]|\$|\.)*\Z")
_CHOICE = re.compile(r"(?:\\text(?:bf)?\{)?\(?([A-J])\)?\}?")
_TAIL = 60  # characters: enough for a number, the word before it and some space after it
_ANSWER, _FINAL = re.compile("(?i:answer)"), re.compile("(?i:final answer)")


def shortcut(gold: str, text: str) -> Verdict | None:
    """The verdict that `verdict` would give, if a whole number plainly ends the text; otherwise None.

    math-verify looks for an answer first after "final answer" and in boxes, then after "answer", then as the last number or
    formula. So a number at the very end is the answer, unless one of the earlier places exists. No formula can extend over a
    letter and a space into the number. The time of each pattern is linear in the text, as this runs in the stage's own process.
    """
    if not _GOLD.fullmatch(gold):
        return None
    boxes, answers = text.count("\\boxed") + text.count("\\fbox"), len(_ANSWER.findall(text))
    if boxes == 1 and not _FINAL.search(text):
        match = _BOXED.search(text, text.rfind("\\boxed"))
    elif not boxes and answers < 2:
        match = (_AFTER_ANSWER if answers else _LAST).search(text, max(0, len(text) - _TAIL))
    else:
        return None
    if match is None or claims.denied(text, *match.span(1)) or claims.alternative(text, *match.span(1)):
        return None
    number = match[1].replace(",", "")
    return float(int(number) == int(gold.replace(",", ""))), "ok", number


def verdict(gold: str, text: str) -> Verdict:
    """The verdict on one item. It may need any time and memory, so call it in a worker process."""
    from math_verify import parse
    from sympy.core import random

    random.seed(0)  # sympy tests equality at random points; equal items must get equal verdicts
    golds = _parse_gold(gold)
    if not golds:
        return None, "gold_parse_failure", None
    text = claims.only_last_boxes(text)  # math-verify reads "\boxed{10}, but no: \boxed{12}" as the list 10, 12
    answers = parse(text, parsing_timeout=0)  # 0: math-verify sets no signal.alarm
    correct = bool(answers) and _equal(golds, answers)
    if not correct and (letter := _letter(gold, text)):
        return letter
    read = answers[-1] if answers else None  # usually the string that was parsed
    if not answers or (isinstance(read, str) and not _commits(text, read, answers)):
        return 0.0, "no_answer_found", None
    # an expression is not printed, as that could take forever
    return float(correct), "ok", printable(read) if isinstance(read, str) else None


def _equal(golds: Sequence[Any], answers: Sequence[Any]) -> bool:
    """Whether math-verify finds a gold reading equal to a reading of the answer, at a precision that fits small numbers.

    It rounds to 6 decimals and drops differences below 1e-15, so it calls 2^-99 and 2^-98 equal, and 0.0000001 and 0.0000002.
    Its documentation says to ask for more digits where numbers are small.
    """
    from math_verify import verify

    golds, answers = _beside_percentages(golds, answers)
    if not verify(golds, answers, timeout_seconds=0):
        return False
    if any(type(gold) is type(answer) and gold == answer for gold in golds for answer in answers):
        return True  # the same expression, which may be too large to evaluate
    decimals = SIGNIFICANT - 1 - min(_exponents([*golds, *answers]), default=0)
    return decimals <= DECIMALS or verify(
        golds, answers, float_rounding=decimals, numeric_precision=15 + decimals, timeout_seconds=0
    )


def _exponents(expressions: Sequence[Any]) -> Iterator[int]:
    """The power of ten of every number other than 0 in the expressions: -3 for 0.00123."""
    import sympy

    for expression in expressions:
        walk = sympy.preorder_traversal(expression)
        for part in () if isinstance(expression, str) else walk:
            if not getattr(part, "is_number", False):
                continue
            walk.skip()  # in 1 + 10^-99 only the sum counts
            with contextlib.suppress(Exception):  # a number that sympy cannot evaluate asks for no more digits
                size = abs(part.evalf(5))
                if size.is_Float and size != 0 and size._prec > 1:  # a precision of 1: all its digits cancelled
                    yield int(sympy.floor(sympy.log(size, 10)))


def _beside_percentages(golds: Sequence[Any], answers: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Both readings, with the plain number beside a percentage if only one side has one.

    math-verify takes 35% for 35 as well as for 0.35, but only of whole numbers: 35.0% and 35.5% are not 35 and 35.5.
    """
    plain = [_without_percent(side) for side in (golds, answers)]
    more = plain if bool(plain[0]) != bool(plain[1]) else ([], [])
    return [*golds, *more[0]], [*answers, *more[1]]


def _without_percent(expressions: Sequence[Any]) -> list[Any]:
    from math_verify.grader import get_pct_val
    from sympy import Number

    return [number for e in expressions if isinstance(number := get_pct_val(e), Number)]


def _letter(gold: str, text: str) -> Verdict | None:
    """The verdict where the gold answer is a letter that stands for a choice, and the text chooses a letter.

    math-verify finds no answer in "The answer is (B).", as it looks for numbers and formulas.
    """
    wanted = _CHOICE.fullmatch(gold.strip())
    if not wanted:
        return None
    in_boxes = claims.boxes(text)
    chosen = claims.choice(text[in_boxes[-1].start :] if in_boxes else text)
    return (float(chosen == wanted[1]), "ok", chosen) if chosen else None


def _commits(text: str, read: str, answers: Sequence[Any]) -> bool:
    """Whether the text stands by the answer that was read from it.

    math-verify reads 4 from "either 3 or 4", and 72 from "72 is not the answer".
    """
    from math_verify import parse

    where = claims.last_mention(text, read)
    if where is None:
        return True
    if claims.denied(text, *where):
        return False
    other = claims.alternative(text, *where)
    return other is None or _equal(answers, parse(f"${other}$", parsing_timeout=0))


@functools.lru_cache(maxsize=256)  # the samples of a prompt share their gold answer
def _parse_gold(gold: str) -> list[Any]:
    """Parse a bare gold answer ("72", "\\frac{3}{4}", "x+1") as LaTeX, or else as plain text.

    As plain text, "3\\sqrt{13}" would be 3. With LaTeX first, all 500 gold answers of MATH-500 verify against their solutions.
    Prose is parsed as plain text only, because as LaTeX "forty two" is a product of letters.
    """
    from math_verify import parse

    readings = [gold] if PROSE.fullmatch(gold.strip()) else [f"${gold}$", gold]
    if any(anchor in gold for anchor in ANCHORS):
        readings.reverse()
    return next((parsed for text in readings if (parsed := parse(text, parsing_timeout=0))), [])


def warm_up() -> None:
    """Load what math-verify imports on first use, so that it does not count as time of the first item."""
    import math_verify

    math_verify.verify(math_verify.parse("$x$", parsing_timeout=0), [], timeout_seconds=0)
