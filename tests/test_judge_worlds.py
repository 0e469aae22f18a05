from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.score.scorers.puzzles import countdown
from tests import judge_worlds


def test_every_tiny_countdown_solution_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The project's verifier accepts each, no prompt comes twice, and every character has a token.
    monkeypatch.setattr(judge_worlds, "PUZZLES", 200)
    judge_worlds.write_puzzles(tmp_path / "puzzles.jsonl", seed=3)
    rows = [json.loads(line) for line in (tmp_path / "puzzles.jsonl").read_text().splitlines()]
    scores = countdown(rows, [{"text": row["completion"], "finish_reason": "stop"} for row in rows])
    assert [score.value for score in scores] == [1.0] * 200
    assert len({row["prompt"] for row in rows}) == 200
    assert {*"".join(row["prompt"] + row["completion"].replace("</think>", "") for row in rows)} <= {*judge_worlds.ALPHABET}


def test_steps_are_written_one_way() -> None:
    # The larger side of a sum or a product first; fractions, negative numbers and large ones are no steps.
    assert judge_worlds.worked("3 + (2 * 7)") == "7*2=14;14+3=17</think>(7*2)+3"
    assert judge_worlds.worked("(7 * 2) + 3") == "7*2=14;14+3=17</think>(7*2)+3"
    assert [judge_worlds.worked(text) for text in ("(3 - 5) + 9", "(3 / 5) * 5", "(15 * 15) / 15")] == [None] * 3
