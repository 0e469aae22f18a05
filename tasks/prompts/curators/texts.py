"""Curators that read the texts: guessable answers, near-duplicates, overlap with evaluation prompts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Annotated

import regex
from annotated_types import Ge, Gt, Le

from data.rows.completions import Row
from tasks.prompts.curators import History, is_sign, text_of, word_runs, words_of

NEEDS_GOLD = ("not_guessable",)  # it reads the gold answer
VERSIONS = {"no_near_duplicates": 2, "decontaminated": 2, "not_guessable": 2}

Run = tuple[str, ...]  # words in a row
_SHORTEST = 3  # words and signs that identify a prompt wherever they occur; fewer are in many texts

_OPEN, _CLOSE = r"[\s*_$\"'\[{(]*", r"[\s*_$\"'\]}).,!]*"  # what may stand around an answer
_TEX = r"(?:\\(?:boxed|text|textbf|mathrm)\{\s*)*"
_YES_OR_NO = regex.compile(rf"(?i){_OPEN}{_TEX}{_OPEN}(?:true|false|yes|no){_CLOSE}")
_LETTER = regex.compile(  # bare only in capitals, since e and i are numbers
    rf"{_OPEN}{_TEX}{_OPEN}(?i:(?:option|choice)\s*)?(?:[A-J]|\(?[a-j][).])(?:[).:]\s.*|{_CLOSE})", regex.DOTALL
)
_CHOICES = regex.compile(
    r"(?<!\w)\(A\).*(?<!\w)\(B\).*(?<!\w)\(C\)|^\s*A[.):]\s.*^\s*B[.):]\s.*^\s*C[.):]\s", regex.M | regex.S
)
_PROOF = regex.compile(r"(?im)\bprove that\b|(?:^|[.?!:;]\s*|\b(?:please|and|then|hence)\s+)(?:(?:dis)?prove\b|show that\b)")


def not_guessable(prompts: Sequence[Row], history: History) -> list[Row]:
    """Drops prompts whose answer can be guessed: choices, answers of a letter, yes or no, true or false, and proofs.

    Kimi k1.5, https://arxiv.org/abs/2501.12599. The paper also drops prompts that the policy solves without reasoning. That
    would need further samples, and is not done here.
    """
    return [prompt for prompt in prompts if not _guessable(text_of(prompt), (prompt["answer"] or "").strip())]


def _guessable(text: str, answer: str) -> bool:
    by_answer = any(pattern.fullmatch(answer) for pattern in (_YES_OR_NO, _LETTER))
    return by_answer or any(pattern.search(text) for pattern in (_CHOICES, _PROOF))


def no_near_duplicates(
    prompts: Sequence[Row], history: History, *, likeness: Annotated[float, Gt(0), Le(1)], n: Annotated[int, Ge(1)] = 3
) -> list[Row]:
    """Keeps the first of all prompts that share at least `likeness` of their runs of `n` words (exact Jaccard similarity)."""
    kept: list[Row] = []
    sizes: list[int] = []
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)  # run of words -> the positions in `kept` that have it
    for prompt in prompts:
        runs = word_runs(text_of(prompt), n, signs=True)
        shared = Counter(position for run in runs for position in holders[run])
        if any(count >= likeness * (sizes[position] + len(runs) - count) for position, count in shared.items()):
            continue
        for run in runs:
            holders[run].append(len(kept))
        kept.append(prompt)
        sizes.append(len(runs))
    return kept


def decontaminated(
    prompts: Sequence[Row], history: History, *, n: Annotated[int, Ge(1)] = 8, against: Sequence[Row]
) -> list[Row]:
    """Drops prompts that hold a held-out or test prompt, or share a run of `n` words with one.

    Words of a template do not count. They are in a run of `n` words that two different held-out or test prompts share, or a
    tenth of the prompts (and 10 of them). Numbers may differ in such a run, and are never the template's. A prompt holds a
    held-out or test prompt if it has its own words in one piece, or its whole text if these are in several pieces or fewer than
    3. Mathematical signs count as words there. Source of the run of 8 words: https://github.com/huggingface/open-r1
    (scripts/decontaminate.py), which looks for no shorter prompts and knows no template.
    """
    tests = [_Test.of(text, n) for text in dict.fromkeys(text_of(prompt) for prompt in against)]
    template = _template(tests, prompts, n)
    runs = {run for test in tests for run in test.own_runs(template)}
    holds = _finder(test.core(template) for test in tests)

    def clean(text: str) -> bool:
        return runs.isdisjoint(_runs(words_of(text), n)) and not holds(tuple(words_of(text, signs=True)))

    return [prompt for prompt in prompts if clean(text_of(prompt))]


@dataclass(frozen=True)
class _Test:
    """The words of a held-out or test prompt, and the mathematical signs between them."""

    n: int
    marks: Run  # words and signs
    at: list[int]  # the positions of the words among the marks

    @classmethod
    def of(cls, text: str, n: int) -> _Test:
        marks = tuple(words_of(text, signs=True))
        return cls(n, marks, [position for position, mark in enumerate(marks) if not is_sign(mark)])

    @property
    def words(self) -> list[str]:
        return [self.marks[position] for position in self.at]

    def own(self, template: Set[Run]) -> list[bool]:
        """For each word, whether it is a number or outside the template."""
        words = self.words
        own = [True] * len(words)
        for start, frame in enumerate(_frames(words, self.n)):
            if frame in template:
                own[start : start + self.n] = [False] * self.n
        return [outside or word.isdecimal() for outside, word in zip(own, words, strict=True)]

    def own_runs(self, template: Set[Run]) -> set[Run]:
        """The runs of `n` words without a word of the template."""
        own = self.own(template)
        return {run for start, run in enumerate(_runs(self.words, self.n)) if all(own[start : start + self.n])}

    def core(self, template: Set[Run]) -> Run:
        """The own words with their signs; all words if the own ones are in several pieces or fewer than 3."""
        own = [number for number, outside in enumerate(self.own(template)) if outside]
        if not own or own[-1] - own[0] + 1 > len(own):
            return self.marks
        core = self.marks[self._signs_before(self.at[own[0]]) : self.at[own[-1]] + 1]
        return core if len(core) >= _SHORTEST else self.marks

    def _signs_before(self, position: int) -> int:
        """Where the signs start that stand right before a word: -3 is not 3."""
        while position and is_sign(self.marks[position - 1]):
            position -= 1
        return position


def _template(tests: Sequence[_Test], prompts: Sequence[Row], n: int) -> set[Run]:
    """The runs of the tests, with every number as 0, that two of them share or a tenth of the prompts, and 10 of these."""
    counts = Counter(frame for test in tests for frame in set(_frames(test.words, n)))
    among_prompts = Counter(
        frame for prompt in prompts for frame in set(_frames(words_of(text_of(prompt)), n)) if frame in counts
    )
    least = max(10, len(prompts) / 10)
    return {frame for frame, count in counts.items() if count >= 2 or among_prompts[frame] >= least}


def _finder(pieces: Iterable[Run]) -> Callable[[Run], bool]:
    """Tells whether a text holds one of the pieces. It must be a piece itself if that has fewer than 3 words or signs."""
    by_start: dict[Run, set[Run]] = defaultdict(set)
    for piece in pieces:
        by_start[piece[:_SHORTEST]].add(piece)

    def holds(marks: Run) -> bool:
        starts = ((i, marks[i : i + _SHORTEST]) for i in range(len(marks) - _SHORTEST + 1))
        found = (marks[i : i + len(piece)] == piece for i, start in starts for piece in by_start.get(start, ()))
        return any(found) or (len(marks) < _SHORTEST and marks in by_start)

    return holds


def _runs(words: Sequence[str], n: int) -> list[Run]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _frames(words: Sequence[str], n: int) -> list[Run]:
    """The runs of `n` words with every number as 0."""
    return _runs(["0" if word.isdecimal() else word for word in words], n)
