"""The tiny built-in world: column addition of 2-4 digit numbers, with an exact answer and a worked solution.

`5366+3650?` is solved as `6+0+0=06;6+5+0=11;...;#9016`: per column, from the right, digit + digit + carry = two digits,
then `#` and the sum. It is small enough to learn on one CPU core and hard enough that a seed model gets a third to a half.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

ALPHABET = "0123456789+=;#?~ abcdefghijkl"  # 29 characters; with <pad>, <eos> and <unk> the vocabulary has 32


@dataclass(frozen=True)
class Problem:
    a: int
    b: int

    @property
    def prompt(self) -> str:
        return f"{self.a}+{self.b}?"

    @property
    def answer(self) -> str:
        return str(self.a + self.b)

    @property
    def solution(self) -> str:
        steps, carry = [], 0
        for x, y in zip(reversed(str(self.a)), reversed(str(self.b)), strict=True):
            total = int(x) + int(y) + carry
            steps.append(f"{x}+{y}+{carry}={total:02d};")
            carry = total // 10
        return "".join(steps) + f"#{self.answer}"

    @property
    def unordered(self) -> tuple[int, int]:
        """`a+b` and `b+a` count as one problem, so that no split holds the mirror of another's row."""
        return min(self.a, self.b), max(self.a, self.b)


def problems(seed: int, digits: tuple[int, ...] = (2, 3, 4)) -> Iterator[Problem]:
    """An endless stream of distinct problems, digit counts equally likely until the short ones run out."""
    draw = random.Random(f"addition/{seed}/{digits}")
    seen: set[tuple[int, int]] = set()
    while True:
        length = draw.choice(digits)
        low, high = 10 ** (length - 1), 10**length - 1
        problem = Problem(draw.randint(low, high), draw.randint(low, high))
        if problem.unordered not in seen:
            seen.add(problem.unordered)
            yield problem
