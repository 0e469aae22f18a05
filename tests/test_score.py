from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import PartError, TableError
from data.rows import tables
from data.store.campaign import Campaign
from flows.commands.part_rules import check_parts
from flows.round.artifacts import load
from tasks.run.parts import needs
from tasks.score import score
from tasks.score.scorers import Score
from tests.micro import micro

Row = dict[str, Any]
ECHO = 'score=[{scorer="tests.micro:ends_even"}, {scorer="tests.test_score:Echo", weight=0.0}]'


class Echo:
    """Gives back what the verifier said, and how many samples of its prompt it saw at once."""

    def __call__(self, prompts: Sequence[Row], completions: Sequence[Row], *, verdicts: Sequence[float | None]) -> list[Score]:
        seen = [row["prompt_id"] for row in completions]
        return [Score(value, detail=str(seen.count(p))) for p, value in zip(seen, verdicts, strict=True)]


@given(st.lists(st.integers(1, 20), max_size=8))
def test_shards_are_whole_prompts(sizes: list[int]) -> None:
    # Shards cover all rows in order, none is empty or cuts a prompt in two, and no two would fit into one.
    ids = [f"p{number}" for number, size in enumerate(sizes) for _ in range(size)]
    shards = list(score.shards(ids, 10))
    assert [row for rows in shards for row in rows] == list(range(len(ids)))
    assert all(len(rows) >= 10 for rows in shards[:-1])
    assert all(ids[rows.stop - 1] != ids[rows.stop] for rows in shards[:-1])


def test_a_prompt_in_two_places_is_refused() -> None:
    # A scorer that compares the samples of a prompt would see only some of them.
    with pytest.raises(TableError, match="samples of a prompt to be consecutive"):
        list(score.shards(["a", "b", "a"], 1))


def test_a_scorer_that_asks_gets_the_verdicts(run_micro: Callable[..., Campaign], monkeypatch: pytest.MonkeyPatch) -> None:
    # Row for row, over several shards, with all samples of a prompt together; others' keys do not see them.
    monkeypatch.setattr(score, "SHARD", 10)
    campaign = run_micro("tiny_raft", ECHO, "rounds=1")
    made = campaign.rounds()[1].artifacts
    first, echo = (made[f"score/{name}"] for name in ("tests.micro:ends_even", "tests.test_score:Echo"))
    rows = [tables.read(load(campaign.store, ref).file("scores.parquet"), tables.SCORES) for ref in (first, echo)]
    assert rows[0]["value"].to_pylist() == rows[1]["value"].to_pylist()
    assert set(rows[1]["detail"].to_pylist()) == {"4"}
    inputs = [campaign.store.manifest(ref.key)["job"]["inputs"] for ref in (first, echo)]
    assert [sorted(names) for names in inputs] == [["completions", "prompts"], ["completions", "prompts", "verdicts"]]


def test_the_verifier_stands_on_no_verdicts() -> None:
    # A recipe whose first scorer asks for verdicts is refused before anything runs.
    assert needs("scorers", "tests.test_score:Echo") == {"prompts", "verdicts"}
    assert needs("scorers", "math_equivalence") == {"prompts", "workers"}
    with pytest.raises(PartError, match="put the verifier first"):
        check_parts(micro("tiny_raft", 'score=[{scorer="tests.test_score:Echo"}]'))
