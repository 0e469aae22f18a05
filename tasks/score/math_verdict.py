"""The verdict of math-verify on one answer, and a shortcut that gives the same verdict for the most common answers.

An item is a pair (gold answer, completion text). Its verdict is the (value, status, detail) of a Score. The gold answer is the
verified correct answer of the prompt.
"""

from __future__ import annotations

import functools
import re
import signal
from typing import Any

from tasks.score.scorers import printable

ANCHORS = ("$", "\\boxed", "\\(", "\\[")  # where math-verify expects LaTeX
PROSE = re.compile(r"(-?[\d.,/]+%?|[A-Za-z]+)(\s+[A-Za-z]{2,}\.?)+")  # "72 dollars", "forty two"

Item = tuple[str, str]
Verdict = tuple[float | None, str, str | None]

# Whole numbers in their usual forms, at the three places where one can end a text.
_WHOLE = "0|-?[1-9][0-9]{0,11}|[1-9][0-9]{0,2}(?:,[0-9]{3}){1,3}"
_GOLD = re.compile(_WHOLE)
_LAST = re.compile(rf"(?:^|[A-Za-z:#>][ \n])\$?({_WHOLE})\.?\s*\Z")
_AFTER_ANSWER = re.compile(rf"(?i:answer)(?: is)?:? \$?({_WHOLE})\.?\s*\Z")
_BOXED = re.compile(r"\\boxed\{(0|-?[1-9][0-9]{0,11})\}(?:\s|\\\)|\\\]|\$|\.)*\Z")
_TAIL = 60  # characters: enough for a number, the word before it and some space after it
_ANSWER, _FINAL = re.compile("(?i:answer)"), re.compile("(?i:final answer)")


def shortcut(gold: str, text: str) -> Verdict | None:
    """The verdict that `judge` would give, if a whole number plainly ends the text; otherwise None.

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
    if match is None:
        return None
    number = match[1].replace(",", "")
    return float(int(number) == int(gold.replace(",", ""))), "ok", number


def judge(gold: str, text: str, timeout: float) -> Verdict:
    """The verdict on one item. Call it in a worker process: after `timeout` CPU seconds the kernel ends the process."""
    signal.setitimer(signal.ITIMER_PROF, timeout)  # the default action of SIGPROF ends the process
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

    random.seed(0)  # sympy tests equality at random points; equal items must get equal verdicts
    golds = _parse_gold(gold)
    if not golds:
        return None, "gold_parse_failure", None
    answers = parse(text, parsing_timeout=0)  # 0: math-verify sets no signal.alarm
    if not answers:
        return 0.0, "no_answer_found", None
    correct = verify(golds, answers, timeout_seconds=0)
    read = answers[-1]  # usually the string that was parsed; an expression is not printed, as that could take forever
    return float(correct), "ok", printable(read) if isinstance(read, str) else None


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
