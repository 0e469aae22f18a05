"""The verdict of math-verify on one answer, and a shortcut to the same verdict for the commonest answers.

An item is a (gold, text) pair; its verdict is the (value, status, detail) of a Score.
"""

from __future__ import annotations

import functools
import re
import signal
from typing import Any

from tasks.score.scorers import printable

ANCHORS = ("$", "\\boxed", "\\(", "\\[")  # what math-verify takes LaTeX from
PROSE = re.compile(r"(-?[\d.,/]+%?|[A-Za-z]+)(\s+[A-Za-z]{2,}\.?)+")  # "72 dollars", "forty two"

Item = tuple[str, str]
Verdict = tuple[float | None, str, str | None]

# Whole numbers as everybody writes them, in the three places where they stand last.
_WHOLE = "0|-?[1-9][0-9]{0,11}|[1-9][0-9]{0,2}(?:,[0-9]{3}){1,3}"
_GOLD = re.compile(_WHOLE)
_LAST = re.compile(rf"(?:^|[A-Za-z:#>][ \n])\$?({_WHOLE})\.?\s*\Z")
_SAID = re.compile(rf"(?i:answer)(?: is)?:? \$?({_WHOLE})\.?\s*\Z")
_BOXED = re.compile(r"\\boxed\{(0|-?[1-9][0-9]{0,11})\}(?:\s|\\\)|\\\]|\$|\.)*\Z")
_TAIL = 60  # characters: a number, what stands before it and a little space after it
_ANSWER, _FINAL = re.compile("(?i:answer)"), re.compile("(?i:final answer)")


def shortcut(gold: str, text: str) -> Verdict | None:
    """The verdict that `judge` would reach, for a whole number that plainly ends the text; None where it takes more to tell.

    math-verify looks for answers in an order: after "final answer" and in boxes, after "answer", then the last of all numbers
    and formulas. So a number at the very end is the answer unless one of those stands before it. After a letter and a space no
    formula can reach into the number, and two whole numbers are equal or they are not. Every pattern takes time linear in the
    text, as this runs in the stage's own process.
    """
    if not _GOLD.fullmatch(gold):
        return None
    boxes, answers = text.count("\\boxed") + text.count("\\fbox"), len(_ANSWER.findall(text))
    if boxes == 1 and not _FINAL.search(text):
        found = _BOXED.search(text, text.rfind("\\boxed"))
    elif not boxes and answers < 2:
        found = (_SAID if answers else _LAST).search(text, max(0, len(text) - _TAIL))
    else:
        return None
    if found is None:
        return None
    number = found[1].replace(",", "")
    return float(int(number) == int(gold.replace(",", ""))), "ok", number


def judge(gold: str, text: str, timeout: float) -> Verdict:
    """The verdict, in a process of its own: the kernel ends it where it takes more than `timeout` CPU seconds."""
    signal.setitimer(signal.ITIMER_PROF, timeout)  # SIGPROF keeps its default action: the kernel ends the process
    try:
        return _verdict(gold, text)
    except MemoryError:
        return None, "crashed", "out of memory"
    except Exception as error:
        return None, "crashed", type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _verdict(gold: str, text: str) -> Verdict:
    from math_verify import parse, verify
    from sympy.core import random

    random.seed(0)  # sympy tests equality at random points: the same item must always get the same verdict
    golds = _parse_gold(gold)
    if not golds:
        return None, "gold_parse_failure", None
    found = parse(text, parsing_timeout=0)  # 0: no signal.alarm of its own
    if not found:
        return 0.0, "no_answer_found", None
    right = verify(golds, found, timeout_seconds=0)
    read = found[-1]  # the string it was read from, as a rule; printing an expression could take forever
    return float(right), "ok", printable(read) if isinstance(read, str) else None


@functools.lru_cache(maxsize=256)  # the samples of a prompt share their gold
def _parse_gold(gold: str) -> list[Any]:
    """Gold answers are bare ("72", "\\frac{3}{4}", "x+1"): read as LaTeX, else as plain text.

    Read plainly, "3\\sqrt{13}" is 3; LaTeX first lets all 500 golds of MATH-500 verify against their solutions. Prose is read
    plainly only, because LaTeX reads "forty two" as a product of letters.
    """
    from math_verify import parse

    readings = [gold] if PROSE.fullmatch(gold.strip()) else [f"${gold}$", gold]
    if any(anchor in gold for anchor in ANCHORS):
        readings.reverse()
    return next((found for text in readings if (found := parse(text, parsing_timeout=0))), [])


def warm_up() -> None:
    """What math-verify loads late is no item's time."""
    import math_verify

    math_verify.verify(math_verify.parse("$x$", parsing_timeout=0), [], timeout_seconds=0)
