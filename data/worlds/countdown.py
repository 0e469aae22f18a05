"""Countdown: reach a target with given numbers and + - * /. Every puzzle is built from a solution, so each can be solved.

TinyZero (https://github.com/Jiayi-Pan/TinyZero) also samples 3-4 numbers in 1..100 and targets in 1..1000, but does not ensure
that the target can be reached.
"""

from __future__ import annotations

import ast
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

LARGEST_NUMBER, LARGEST_TARGET = 100, 1000
LONGEST = 200  # characters of an expression
SPELLINGS = str.maketrans(
    {"×": "*", "⋅": "*", "·": "*", "∙": "*", "÷": "/", "∕": "/", "⁄": "/", "−": "-", "–": "-", "\u00a0": " "}
)
LATEX = {r"\times": "*", r"\cdot": "*", r"\div": "/", r"\left(": "(", r"\right)": ")"}
TEXT = (
    "Using the numbers {numbers}, write an expression that equals {target}. Use only + - * / and parentheses, and each number "
    "at most once. Put the expression between <answer> and </answer>."
)
TEXT_ALL = TEXT.replace("at most once", "exactly once")  # for puzzles of TinyZero, whose verifier asks for all numbers
PUZZLE = re.compile(r"([0-9]{1,6}) from ([0-9]{1,6}(?:, [0-9]{1,6}){0,9})")


def answer(target: int, numbers: Sequence[int]) -> str:
    """What a verifier needs: `24 from 3, 5, 9`."""
    return f"{target} from {', '.join(map(str, numbers))}"


@dataclass(frozen=True)
class Puzzle:
    numbers: tuple[int, ...]
    target: int
    expression: str  # one solution

    @property
    def prompt(self) -> str:
        return TEXT.format(numbers=", ".join(map(str, self.numbers)), target=self.target)

    @property
    def answer(self) -> str:
        return answer(self.target, self.numbers)

    @property
    def solution(self) -> str:
        return f"<answer>{self.expression}</answer>"

    @property
    def stratum(self) -> str:
        return f"{len(self.numbers)} numbers"


class World:
    """A seeded source of puzzles. No two have the same numbers and target."""

    def __init__(self, seed: int, largest_number: int = LARGEST_NUMBER, largest_target: int = LARGEST_TARGET) -> None:
        self.random = random.Random(f"countdown/{seed}")
        self.largest_number, self.largest_target = largest_number, largest_target
        self.seen: set[tuple[tuple[int, ...], int]] = set()

    def puzzles(self, count: int, sizes: Sequence[int] = (3, 4)) -> list[Puzzle]:
        return [self._new(self.random.choice(sizes)) for _ in range(count)]

    def hard(self, count: int) -> list[Puzzle]:
        """Out-of-distribution puzzles, with one number more."""
        return self.puzzles(count, (5,))

    def _new(self, size: int) -> Puzzle:
        while True:
            numbers = tuple(self.random.randint(1, self.largest_number) for _ in range(size))
            value, text = self._combine(numbers)
            key = tuple(sorted(numbers)), int(value)
            fits = value.denominator == 1 and 1 <= value <= self.largest_target and int(value) not in numbers
            if fits and key not in self.seen:
                self.seen.add(key)
                return Puzzle(numbers, int(value), text)

    def _combine(self, numbers: tuple[int, ...]) -> tuple[Fraction, str]:
        """Join all numbers, two at a time, by random operations; returns the value and the expression."""
        parts = [(Fraction(n), str(n)) for n in numbers]
        while len(parts) > 1:
            (a, left), (b, right) = (parts.pop(self.random.randrange(len(parts))) for _ in range(2))
            sign = self.random.choice("+-*/" if b else "+-*")
            parts.append((_apply(sign, a, b), f"({left} {sign} {right})"))
        value, text = parts[0]
        return value, text[1:-1]


def _apply(sign: str, a: Fraction, b: Fraction) -> Fraction:
    return a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else a / b


def in_signs(expression: str) -> str:
    """The expression with + - * / for the signs that models write: ×, ÷, −, an x between numbers, \\times of LaTeX."""
    for spelling, sign in LATEX.items():
        expression = expression.replace(spelling, sign)
    return re.sub(r"(?<=[0-9)])(\s?)[xX](?=\s?[0-9(])", r"\1*", expression.translate(SPELLINGS))


SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def evaluate(expression: str) -> tuple[Fraction, Counter[int]] | None:
    """The value of an expression and the numbers it uses; None for anything but whole numbers, + - * / and parentheses.

    Nothing is executed: the text is parsed, and only these nodes are evaluated. Powers, floor division, a sign before a number,
    division by zero and more than LONGEST characters are refused.
    """
    if len(expression) > LONGEST or not re.fullmatch(r"[0-9+\-*/() ]+", expression):
        return None
    try:
        return _walk(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, MemoryError, RecursionError, ZeroDivisionError):
        return None


def _walk(node: ast.expr) -> tuple[Fraction, Counter[int]]:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return Fraction(node.value), Counter([node.value])
    if not isinstance(node, ast.BinOp) or type(node.op) not in SIGNS:
        raise ValueError("expected numbers joined by + - * /")
    (a, used_left), (b, used_right) = _walk(node.left), _walk(node.right)
    return _apply(SIGNS[type(node.op)], a, b), used_left + used_right


def solves(expression: str, target: int, numbers: Sequence[int], use_all: bool = False) -> bool | None:
    """Whether the expression equals the target and uses each number at most once; None where it cannot be read.

    With `use_all` each number must be used exactly once.
    """
    evaluated = evaluate(expression)
    if evaluated is None:
        return None
    value, used = evaluated
    return value == target and (used == Counter(numbers) if use_all else used <= Counter(numbers))
