r"""What a completion says about its answer: which boxes count, whether it commits to one answer, which letter it chooses.

Verifiers read an answer from a text by its place. These guards keep them from paying for an answer that the text takes back
("72 is not the answer"), offers as one of several ("either 3 or 4"), or replaces later ("\boxed{10}, but no: \boxed{12}").
"""

from __future__ import annotations

from dataclasses import dataclass

import regex

_BRACES = regex.compile(r"\\(?:boxed|fbox)\s{0,3}\{|\\.|[{}]", regex.DOTALL)
_SEPARATORS = regex.compile(
    r"(?:[\s$,;&]|\\[,;:!() \[\]\\]|\\q?quad|\\text\{[^{}]{0,30}\b(?:and|or)\s*\}|\band\b|\bor\b|\b[a-zA-Z]\s?=)*"
)
_LONGEST_SEPARATOR = 40  # characters between two boxes
_NEARBY = 100  # characters before and after an answer that may deny it, or name another one

_NUMBER = r"-?(?:\\[dt]?frac\{-?\d{1,20}\}\{\d{1,20}\}|\d[\d,]{0,30}(?:\.\d{1,30})?(?:/\d{1,20})?)"
_OPENING = r"(?:\w\s?=\s?)?(?:[*$({\[€£\s]|\\\(|\\boxed\{)*"
_CLOSING = r"(?:[*$)}\]%\s]|\\[)%])*"
_FILLER = r"(?:(?:even|maybe|perhaps|possibly|probably|about|else|it\sis|it's)\s+)?"
_OTHER_BEFORE = regex.compile(  # "3 or", "3 apples or", "between 3 and"; the answer follows
    rf"(?:(?P<between>\bbetween\s+{_OPENING})|(?<![\w.,/]))(?P<other>{_NUMBER}){_CLOSING}(?P<word>[a-zA-Z]*)\s*,?\s*"
    rf"(?:\bor|(?(between)\band|\bor))\s+{_FILLER}{_OPENING}\Z"
)
_OTHER_AFTER = regex.compile(rf"\A{_CLOSING}(?P<word>[a-zA-Z]*)\s*,?\s*\bor\s+{_FILLER}{_OPENING}(?P<other>{_NUMBER})(?!\w)")
_NEXT_WORD = regex.compile(rf"\A{_CLOSING}(?P<word>[a-zA-Z]*)")

_NOT = r"(?:\b(?:can)?not|\bnever|n['’]t|≠|!=|\\neq?)"
_DENIED_BEFORE = regex.compile(
    rf"{_NOT}\s*(?:(?:be|equal(?:\s+to)?|equals|exactly|simply|just)\s+)?{_OPENING}\Z", regex.IGNORECASE
)
_DENIED_AFTER = regex.compile(
    rf"\A{_CLOSING}(?:[a-z]+\s+){{0,2}}?(?:(?:is|was|are|were|can|could|would|does|may|must)\s*(?:[a-z]+ly\s+)?{_NOT}\s+"
    r"(?:be\s+)?(?:the\s+|a\s+|an\s+|my\s+|our\s+)?(?:[a-z]+\s+)?(?:answer|solution|result|correct|right|true|valid)\b"
    r"|(?:is|was|are|were|must\s+be)\s+(?:[a-z]+ly\s+)?(?:wrong|incorrect|false|a\s+mistake)\b)",
    regex.IGNORECASE,
)


# -- boxes ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Box:
    start: int  # of its backslash
    inside: int
    end: int  # after its closing brace


def boxes(text: str) -> list[Box]:
    """The boxes of a text in order, without those inside another box. The time is linear in the text."""
    found: list[Box] = []
    opened: list[regex.Match[str]] = []
    around = 0  # boxes that are open
    for token in _BRACES.finditer(text):
        if token[0] == "{" or token[0].startswith(("\\boxed", "\\fbox")):
            opened.append(token)
            around += len(token[0]) > 1
        elif token[0] == "}" and opened and len((first := opened.pop())[0]) > 1:
            around -= 1
            found += [] if around else [Box(first.start(), first.end(), token.start() + 1)]
    return found


def only_last_boxes(text: str) -> str:
    """The text with earlier boxes taken off. Boxes joined by separators only, such as "and", count as one answer."""
    found = boxes(text)
    first = len(found) - 1
    while first > 0 and _joined(text, found[first - 1], found[first]):
        first -= 1
    parts, at = [], 0
    for box in found[: max(first, 0)]:
        parts += [text[at : box.start], text[box.inside : box.end - 1]]
        at = box.end
    return "".join([*parts, text[at:]])


def _joined(text: str, a: Box, b: Box) -> bool:
    return b.start - a.end <= _LONGEST_SEPARATOR and _SEPARATORS.fullmatch(text, a.end, b.start) is not None


# -- does the text commit to the answer? -----------------------------------------------------------------------------------
def denied(text: str, start: int, end: int) -> bool:
    """Whether a text takes back the answer at text[start:end]: "it is not 72", "72 is not the answer", "72 is wrong"."""
    before, after = text[max(0, start - _NEARBY) : start], text[end : end + _NEARBY]
    return _DENIED_BEFORE.search(before) is not None or _DENIED_AFTER.search(after) is not None


def alternative(text: str, start: int, end: int) -> str | None:
    """The number that a text offers beside the answer at text[start:end], as in "either 3 or 4"; None without one.

    "90 minutes or 1.5 hours" has other words after its numbers, so it says one thing twice.
    """
    before, after = text[max(0, start - _NEARBY) : start], text[end : end + _NEARBY]
    if (found := _OTHER_BEFORE.search(before)) and _same_kind(found["word"], _word(after)):
        return str(found["other"])
    if (found := _OTHER_AFTER.search(after)) and _same_kind(found["word"], _word(after[found.end() :])):
        return str(found["other"])
    return None


def _same_kind(a: str, b: str) -> bool:
    """Whether the words after two numbers leave them comparable: "3 or 4 apples", but not "90 minutes or 1.5 hours"."""
    return not a or not b or a == b


def _word(after: str) -> str:
    found = _NEXT_WORD.match(after)
    word = found["word"] if found else ""
    return "" if word in ("or", "and") else word


def last_mention(text: str, answer: str) -> tuple[int, int] | None:
    """Where a text last has the answer, as a number of its own (12 is not in 412); 1234 is found as 1,234 too."""
    if not answer.strip() or len(answer) > _NEARBY:
        return None
    written = ",?".join(answer) if answer.isdigit() else regex.escape(answer)
    found = list(regex.finditer(rf"(?<![\w.]|\d,){written}(?![\w/]|[.,]\d)", text))
    return found[-1].span() if found else None


# -- letters -----------------------------------------------------------------------------------------------------------------
_LETTER = r"\(?([A-J])\b\)?"
_NOT_ALONE = r"(?!(?<=[AI])\s+[a-z])"  # "A dog"
_SEVERAL_LETTERS = regex.compile(rf"(?<!\w){_LETTER}(?:\s*(?:,|/|\bor\b|\band\b)\s*(?:or\s+|and\s+)?{_LETTER})+")
_BOXED = regex.compile(r"\\boxed\{(?:\\(?:text(?:bf)?|mathrm|mathbf)\{)?\s*" + _LETTER)
_STATED = regex.compile(r"(?i:\b(?:is|it's|est|answer|choice|option)\b)[\s:*(]{0,9}([A-J])\b" + _NOT_ALONE)
_FIRST = regex.compile(_LETTER + r"(?:[^\w\s]|\s+[A-Z]|\s*$)")
_ALONE = regex.compile(r"\b([A-J])\b" + _NOT_ALONE)


def choice(text: str) -> str | None:
    """The letter from A to J that a text chooses, if it chooses one.

    It is the first of these: in the last box, in the last "is B" or "answer: B", at the start, or the only letter. Several
    letters without any of these are no answer, so that naming all of them does not pay. Letters that are denied, or offered as
    in "A or B", do not count.
    """
    text = _SEVERAL_LETTERS.sub(" ", _without_denied(text))
    for pattern in (_BOXED, _STATED):
        if letters := pattern.findall(text):
            return str(letters[-1])
    if opening := _FIRST.match(text):
        return str(opening[1])
    alone = set(_ALONE.findall(text))
    return alone.pop() if len(alone) == 1 else None


def _without_denied(text: str) -> str:
    """Blank the letters that a text denies, in "it is not B" or "B is wrong"."""
    letters = [found.span(1) for found in regex.finditer(r"(?<!\w)\(?([A-J])\b\)?", text)]
    for start, end in letters:
        if denied(text, start, end):
            text = text[:start] + " " * (end - start) + text[end:]
    return text
