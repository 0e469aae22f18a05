"""The tiny built-in world: column addition of 2-4 digit numbers, with an exact answer and a worked solution.

`5366+3650?` is solved as `6+0+0=06;6+5+0=11;...;#9016`: per column, from the right, digit + digit + carry = two digits,
then `#` and the sum. It is small enough to learn on one CPU core and hard enough that a seed model gets a third to a half.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

ALPHABET = "0123456789+=;#?~ abcdefghijkl"  # 29 characters; with <pad>, <eos> and <unk> the vocabulary has 32

THREE_DIGITS, FOUR_DIGITS = 58 / 240, 32 / 240  # shares of the seed split


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


class World:
    """A seeded source of distinct problems: no two it gives are the same, mirrored ones included."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(f"addition/{seed}")
        self.seen: set[tuple[int, int]] = set()
        self.given: Counter[int] = Counter()  # problems by digits

    def problems(self, digits: Iterable[int]) -> list[Problem]:
        """One new problem per entry of `digits`."""
        return [self._new(length) for length in digits]

    def mixed(self, count: int) -> list[Problem]:
        """Problems of 2, 3 and 4 digits, equally likely."""
        return self.problems(self.draw.choice((2, 3, 4)) for _ in range(count))

    def seed_set(self, count: int) -> list[Problem]:
        """Mostly short problems: a base that knows two digits, part of three and little of four.

        With equal shares, and at a learning rate of 3e-3 without warm-up, the base was a lottery: 7 to 56% over a dozen seeds.
        """
        four, three = round(FOUR_DIGITS * count), round(THREE_DIGITS * count)
        return self.problems([2] * (count - three - four) + [3] * three + [4] * four)

    def _new(self, length: int) -> Problem:
        while self.given[length] > 0.9 * _room(
            length
        ):  # there are 4,095 of two digits; a large pool has to go on with longer ones
            length += 1
        self.given[length] += 1
        low, high = 10 ** (length - 1), 10**length - 1
        while True:
            problem = Problem(self.draw.randint(low, high), self.draw.randint(low, high))
            if problem.unordered not in self.seen:
                self.seen.add(problem.unordered)
                return problem


def _room(length: int) -> int:
    """How many unordered problems of this many digits exist."""
    numbers: int = 9 * 10 ** (length - 1)
    return numbers * (numbers + 1) // 2
