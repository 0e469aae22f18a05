"""Text from outside in the terminal: descriptions, names, paths and errors may hold anything, and are shown as they are."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.tree import Tree

from data.store.campaign import Campaign
from flows.terminal import Terminal, line, plain

ROOT = Path(__file__).parent.parent
HOSTILE = "[/x][red]\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt :boom: \\x"
SHOWN = "[/x][red]\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202etxt :boom: \\x"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printed(*things: object, **options: Any) -> str:
    file = io.StringIO()
    console = Terminal(file=file, **options)
    for thing in things:
        console.print(thing, soft_wrap=True)
    return file.getvalue()


@given(st.text())
def test_no_text_controls_the_terminal(text: str) -> None:
    # Claim: whatever the text, no control character reaches the terminal, and what is printable stays as it is.
    shown = printed(text, line(text, (text, "bold")))
    assert not CONTROL.search(shown)
    assert plain("".join(re.findall(r"[a-zA-Z \[\]/]", text))) == "".join(re.findall(r"[a-zA-Z \[\]/]", text))


def test_wherever_it_stands_it_is_shown_as_it_is() -> None:
    # Claim: in lines, styled pieces, cells, headers, captions and trees: no markup, no emoji, control characters written out.
    table = Table(HOSTILE, caption=HOSTILE, title=HOSTILE, width=200)
    table.add_row(HOSTILE)
    tree = Tree(HOSTILE)
    tree.add(line((HOSTILE, "dim")))
    shown = printed(HOSTILE, line(HOSTILE, (HOSTILE, "red")), table, tree)
    assert shown.count(SHOWN) == 9
    assert not CONTROL.search(shown)


def test_our_own_styles_reach_a_terminal_and_nothing_else_does() -> None:
    # Claim: on a terminal the only sequences are those of our styles.
    shown = printed(line(("ok", "green"), f" {HOSTILE}"), force_terminal=True, color_system="standard")
    assert SHOWN in shown
    assert set(re.findall(r"\x1b[^m]*m", shown)) == {"\x1b[32m", "\x1b[0m"}


def test_a_hostile_description_breaks_no_command(
    ratchet: Callable[..., int], run_micro: Callable[..., Campaign], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Claim: check, runs, show, an error and a path with brackets work; one hostile campaign hides no other.
    recipe = tmp_path / "[red]recipe.toml"
    recipe.write_text('description = "[/x][red]\\u001b]0;owned\\u0007"\n[model]\nsteps = 3\n')
    assert ratchet("check", recipe) in (0, 2)
    home = run_micro("tiny_control", "rounds=1", 'description="[/x][red]\\u001b[2J"').home
    assert ratchet("runs", "--home", home) == 0
    assert ratchet("show", "micro", "--home", home) == 0
    assert ratchet("show", "[/x]", "--home", home) == 2
    assert ratchet("run", tmp_path / "[/absent].toml", "--home", home) == 2
    said = capsys.readouterr()
    assert "[/x][red]\\x1b[2J" in said.out
    assert "[/absent].toml" in said.err
    assert not CONTROL.search(said.out + said.err)


def test_nothing_prints_past_the_terminal() -> None:
    # Claim: no other console, no markup, and no bare print but of JSON (ASCII) and of words of ours.
    for path in (ROOT / "flows").rglob("*.py"):
        if path.name != "terminal.py":
            assert not re.search(r"rich\.markup|rich\.console|Text\.from_markup|\bConsole\(", path.read_text()), path
            assert not re.search(r"(?<![\w.])print\((?!json\.dumps|f\"ratchet |\"Interrupted)", path.read_text()), path
