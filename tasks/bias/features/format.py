"""Markdown and other visible style, outside code fences: whether it is there, and how often per 100 words."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.bias.features import Batch, Row, Values, density, matches, opening, present

# Items and rows match to the end of their line: RE2 treats the position after a match as the beginning of a line.
BOLD = r"\*\*(.*?)\*\*"
LIST = r"(?m)^(?:\d+\.|[*+-])[ \t][^\n]*"
HEADER = r"(?m)^#{1,6}[ \t][^\n]*"
TABLE = r"(?m)^[ \t]*\|[^\n]*\|[ \t]*$"
LINK = r"http[^\)\s]*"
EMOJI = (
    "[\U0001f600-\U0001f64f\U0001f300-\U0001f5ff\U0001f680-\U0001f6ff\U0001f1e0-\U0001f1ff\u2700-\u27bf"
    "\U0001f900-\U0001f9ff\U0001fa70-\U0001faff\u2600-\u26ff]"
)
EXCLAMATION = "!"
AFFIRMATIVE = r"\A\s*(?:Sure|Certainly|Of course)\b"
KINDS = dict.fromkeys(("bold", "lists", "headers", "tables", "links", "emoji", "exclamations", "code", "affirmative"), "rate")


def bold(completions: Sequence[Row]) -> Values:
    """1.0 with, 0.0 without **bold** text."""
    return present(completions, BOLD)


def bold_density(completions: Sequence[Row]) -> Values:
    """Per 100 words: **bold** text."""
    return density(completions, BOLD)


def lists(completions: Sequence[Row]) -> Values:
    """1.0 with, 0.0 without list items (1. or *, +, -)."""
    return present(completions, LIST)


def lists_density(completions: Sequence[Row]) -> Values:
    """Per 100 words: list items (1. or *, +, -)."""
    return density(completions, LIST)


def headers(completions: Sequence[Row]) -> Values:
    """1.0 with, 0.0 without markdown headers."""
    return present(completions, HEADER)


def headers_density(completions: Sequence[Row]) -> Values:
    """Per 100 words: markdown headers."""
    return density(completions, HEADER)


def tables(completions: Sequence[Row]) -> Values:
    """1.0 with, 0.0 without markdown table rows."""
    return present(completions, TABLE)


def tables_density(completions: Sequence[Row]) -> Values:
    """Per 100 words: markdown table rows."""
    return density(completions, TABLE)


def links(completions: Sequence[Row]) -> Values:
    """1.0 with, 0.0 without links (http...)."""
    return present(completions, LINK)


def links_density(completions: Sequence[Row]) -> Values:
    """Per 100 words: links (http...)."""
    return density(completions, LINK)


def emoji(completions: Sequence[Row]) -> Values:
    """1.0 with, 0.0 without emoji; plain symbols such as check marks lie in the same Unicode blocks and count."""
    return present(completions, EMOJI)


def emoji_density(completions: Sequence[Row]) -> Values:
    """Per 100 words: emoji; plain symbols such as check marks lie in the same Unicode blocks and count."""
    return density(completions, EMOJI)


def exclamations(completions: Sequence[Row]) -> Values:
    """1.0 with, 0.0 without exclamation marks."""
    return present(completions, EXCLAMATION)


def exclamations_density(completions: Sequence[Row]) -> Values:
    """Per 100 words: exclamation marks."""
    return density(completions, EXCLAMATION)


def code(completions: Sequence[Row]) -> Values:
    """1.0 with, 0.0 without a code fence."""
    return matches(Batch.of(completions).texts, "```")


def affirmative(completions: Sequence[Row]) -> Values:
    """1.0 where the reply begins with Sure, Certainly or Of course."""
    return matches(opening(completions), AFFIRMATIVE)
