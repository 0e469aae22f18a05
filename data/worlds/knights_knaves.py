"""Knights and knaves: knights tell the truth, knaves lie. Who is who? Every puzzle has exactly one solution.

A statement is a nested tuple, as in Logic-RL's data (https://arxiv.org/abs/2502.14768, https://github.com/Unakar/Logic-RL):
("telling-truth", i) and ("lying", i) about person i, ("not", s), ("and", s, t), ("or", s, t), ("->", s, t), ("<=>", s, t).
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NAMES = (
    "Ada", "Ben", "Cleo", "Dora", "Egon", "Fred", "Gina", "Hugo", "Ida", "Jack", "Kate", "Leo", "Mia", "Noah", "Olga", "Paul",
    "Quinn", "Rosa", "Sam", "Tess", "Uma", "Vera", "Will", "Xena", "Yara", "Zoe",
)  # fmt: skip
TEXT = (
    "On an island everybody is either a knight, who always tells the truth, or a knave, who always lies. You meet {people}. "
    "{statements} Who is a knight and who is a knave? Put the answer between <answer> and </answer>, in the form: {example}"
)
JOINS = {"and": "and", "or": "or", "<=>": "if and only if"}

Statement = tuple[Any, ...]


@dataclass(frozen=True)
class Puzzle:
    names: tuple[str, ...]
    statements: tuple[Statement, ...]  # statement i is made by person i
    knights: tuple[bool, ...]  # the one solution

    @property
    def prompt(self) -> str:
        statements = " ".join(
            f'{name} says: "{in_words(s, self.names)}."' for name, s in zip(self.names, self.statements, strict=True)
        )
        example = ", ".join(f"{name} is a knight or a knave" for name in self.names)
        return TEXT.format(
            people=" and ".join([", ".join(self.names[:-1]), self.names[-1]]), statements=statements, example=example
        )

    @property
    def answer(self) -> str:
        return ", ".join(
            f"{n} is a {'knight' if knight else 'knave'}" for n, knight in zip(self.names, self.knights, strict=True)
        )

    @property
    def solution(self) -> str:
        return f"<answer>{self.answer}</answer>"

    @property
    def stratum(self) -> str:
        return f"{len(self.names)} people"


class World:
    """A seeded source of puzzles with one solution each. No two have the same statements."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(f"knights_knaves/{seed}")
        self.seen: set[tuple[Statement, ...]] = set()

    def puzzles(self, count: int, sizes: Sequence[int] = (3, 4)) -> list[Puzzle]:
        return [self._new(self.random.choice(sizes)) for _ in range(count)]

    def hard(self, count: int) -> list[Puzzle]:
        """Out-of-distribution puzzles, with one person more."""
        return self.puzzles(count, (5,))

    def _new(self, size: int) -> Puzzle:
        while True:
            names = tuple(self.random.sample(NAMES, size))
            statements = tuple(self._statement(size, speaker) for speaker in range(size))
            solved = solutions(statements)
            if len(solved) == 1 and statements not in self.seen:  # the same statements under other names are no new puzzle
                self.seen.add(statements)
                return Puzzle(names, statements, solved[0])

    def _statement(self, size: int, speaker: int) -> Statement:
        kind = self.random.choice(("atom", "not", "and", "or", "->", "<=>"))
        if kind == "atom":
            return self._about(self.random.choice([i for i in range(size) if i != speaker]))
        if kind == "not":
            return ("not", self._about(self.random.choice([i for i in range(size) if i != speaker])))
        return (kind, *(self._about(i) for i in self.random.sample(range(size), 2)))

    def _about(self, person: int) -> Statement:
        return (self.random.choice(("telling-truth", "lying")), person)


def holds(statement: Statement, knights: Sequence[bool]) -> bool:
    """Whether a statement is true, given who is a knight."""
    kind, *parts = statement
    if kind in ("telling-truth", "lying"):
        return bool(knights[parts[0]] == (kind == "telling-truth"))
    truths = [holds(part, knights) for part in parts]
    if kind == "not":
        return not truths[0]
    if kind in ("and", "or"):
        return all(truths) if kind == "and" else any(truths)
    return (truths[0] == truths[1]) if kind == "<=>" else (truths[1] or not truths[0])


def solutions(statements: Sequence[Statement]) -> list[tuple[bool, ...]]:
    """Every assignment of knights and knaves in which the knights' statements are true and all others are false."""
    everyone = itertools.product((True, False), repeat=len(statements))
    return [k for k in everyone if all(holds(s, k) == knight for s, knight in zip(statements, k, strict=True))]


def in_words(statement: Statement, names: Sequence[str]) -> str:
    kind, *parts = statement
    if kind in ("telling-truth", "lying"):
        return f"{names[parts[0]]} is a {'knight' if kind == 'telling-truth' else 'knave'}"
    words = [in_words(part, names) for part in parts]
    if kind == "not":
        return f"It is not the case that {words[0]}"
    return f"If {words[0]} then {words[1]}" if kind == "->" else f"{words[0]} {JOINS[kind]} {words[1]}"


_MARKS = str.maketrans("", "", "*`_")  # of Markdown, around names and roles
_CLAIM = re.compile(
    r"\b(?P<name>\w{1,40})\s*(?:\sis\s+|(?::|=|->|→|⇒|\||\s[-–—]\s)\s*)(?:an?\s+|the\s+)?(?P<role>knight|knave)"
    r"(?:(?:\s+or\s+|\s?/\s?)(?:an?\s+)?(?P<other>knight|knave))?\b",
    re.IGNORECASE,
)
_ONLY_SAID = re.compile(  # what follows in the sentence is denied, supposed, or somebody else's claim
    r"(?:\b(?:false|untrue|wrong|incorrect|impossible|unlikely|not|deny|denies|if|unless|whether|suppose|assume|assuming|supposing|"
    r"say|says|said|claims?|claimed)|n['’]t)\b(?!\s+(?:an?\s+)?(?:knight|knave))",
    re.IGNORECASE,
)


def assignment(text: str) -> dict[str, bool] | None:
    """Who is called a knight (True) or a knave (False) in a text; None where nobody is, or somebody is called both.

    A claim counts only if the text makes it: "it is false that Zoey is a knave" and "if Zoey is a knave" call nobody a knave.
    """
    roles: dict[str, set[bool]] = {}
    for sentence in re.split(r"[.;!?\n]", text.translate(_MARKS)):
        doubt = _ONLY_SAID.search(sentence)
        for claim in _CLAIM.finditer(sentence, 0, doubt.start() if doubt else len(sentence)):
            kinds = [claim["role"], claim["other"]]
            roles.setdefault(claim["name"].casefold(), set()).update(kind.lower() == "knight" for kind in kinds if kind)
    if not roles or any(len(role) > 1 for role in roles.values()):
        return None
    return {name: role.pop() for name, role in roles.items()}
