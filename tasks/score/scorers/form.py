"""Scorers of form, not of the answer: the demanded format, and the script of the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator

from tasks.score.scorers import Row, Score

_REGEX_SECONDS = 1.0


def _compiles(pattern: str) -> str:
    import regex

    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"expected a regular expression, found {pattern!r}: {error}") from error
    return pattern


def _is_script(name: str) -> str:
    import regex

    try:
        regex.compile(rf"\p{{Script={name}}}")
    except regex.error as error:
        raise ValueError(f"expected a Unicode script (Latin, Cyrillic, Han, ...), found {name!r}") from error
    return name


def format(
    prompts: Sequence[Row], completions: Sequence[Row], *, pattern: Annotated[str, AfterValidator(_compiles)]
) -> list[Score]:
    """1.0 if the whole stripped text matches the regular expression, e.g. `(?s)<think>.*</think>.*`, else 0.0.

    A match that needs more than a second has status timeout and no value.
    """
    import regex  # unlike re, it has a time limit

    compiled = regex.compile(pattern)
    return [_matches(compiled, completion["text"].strip()) for completion in completions]


def _matches(compiled: Any, text: str) -> Score:
    try:
        return Score(float(compiled.fullmatch(text, timeout=_REGEX_SECONDS) is not None))
    except TimeoutError:
        return Score(None, "timeout")


def language_share(
    prompts: Sequence[Row], completions: Sequence[Row], *, script: Annotated[str, AfterValidator(_is_script)] = "Latin"
) -> list[Score]:
    """The share of letters that belong to the Unicode `script` (Latin, Cyrillic, Han, ...). No letters: no value.

    DeepSeek-R1's language-consistency reward (https://arxiv.org/abs/2501.12948) is the share of words in the target language.
    A script can tell English from Chinese, but not from French.
    """
    import regex

    letters, of_script = regex.compile(r"\p{L}"), regex.compile(rf"[\p{{L}}&&\p{{Script={script}}}]", regex.VERSION1)
    return [_share(len(of_script.findall(c["text"])), len(letters.findall(c["text"]))) for c in completions]


def _share(of_script: int, letters: int) -> Score:
    return Score(of_script / letters) if letters else Score(None, "no_letters")
