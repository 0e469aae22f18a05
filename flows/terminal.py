"""What a person reads in the terminal. Text from outside is shown as it is: it styles nothing and controls no terminal.

Descriptions, names of columns and files, completions and the replies of servers may hold anything. So square brackets are no
markup, and control characters are written out, as `\\x1b`. Everything printed goes through `Terminal` and `line`.
"""

from __future__ import annotations

import re
from typing import Any

from rich.console import Console
from rich.text import Text

Piece = str | Text | tuple[str, str]  # plain text, finished text, or text with a style

# C0 and C1 control characters but newline and tab, marks that change the direction of what follows, and surrogates: half a
# character is no text, and Python reads a byte of a file's name that is no UTF-8 as one
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """The text with its control characters written out."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def line(*pieces: Piece) -> Text:
    """A line of plain and styled pieces, e.g. `line(("ok", "green"), f"  {description}")`."""
    return Text.assemble(
        *((plain(p[0]), p[1]) if isinstance(p, tuple) else plain(p) if isinstance(p, str) else p for p in pieces)
    )


class Terminal(Console):
    """A console for text from outside. Tables, trees and captions go through `render_str` too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(plain(text), **options)


out = Terminal()
err = Terminal(stderr=True)
