"""Defects found in predecessors by running them, each as a test that would fail on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from data.errors import ScorerFailed
from data.rows import tables
from data.store.campaign import Campaign
from flows.round.artifacts import load
from tasks.choose.chosen_facts import pair_facts
from tasks.choose.pairers import rewards
from tasks.score import score
from tasks.score.scorers import Score
from tests.micro import ends_even
from tests.test_pairers import judged

Row = dict[str, Any]
Run = Callable[..., Campaign]
calls: list[int] = []  # rows of each call of `fragile`
PAIRERS: dict[str, Callable[..., list[Row]]] = {
    "best_vs_worst": rewards.best_vs_worst,
    "right_vs_wrong": rewards.right_vs_wrong,
    "all_over_margin": lambda *given: rewards.all_over_margin(*given, minimum_margin=0.1),
    "most_vs_least_voted": rewards.most_vs_least_voted,
    "longest_shared_prefix": rewards.longest_shared_prefix,
}


def fragile(prompts: Sequence[Row], completions: Sequence[Row]) -> list[Score]:
    """Breaks down in its second shard of the rounds, once."""
    if completions[0]["sample"] == 0 and len(prompts) == 12:  # a shard of the rounds: 3 prompts x 4 samples
        calls.append(len(completions))
        if len(calls) == 2:
            raise OSError("the machine is gone")
    return ends_even(prompts, completions)


@pytest.mark.parametrize("name", PAIRERS)
def test_ties_give_no_pair(name: str) -> None:
    # OpenRLHF's iterative_dpo_processor emits chosen == rejected for equal rewards.
    tied = judged([[("a;x", "stop", 1.0, 0.5, 1), ("a;y", "stop", 1.0, 0.5, 1)], [("a;x", "stop", 0.0, 0.5, 1)] * 3])
    assert PAIRERS[name](*tied) == []


@pytest.mark.parametrize("name", [name for name in PAIRERS if name != "most_vs_least_voted"])
def test_a_wrong_answer_is_not_chosen_for_being_less_wrong(name: str) -> None:
    # Online-DPO-R1 rewards a boxed wrong answer above one without a box, and pairs them.
    wrong = judged([[("a;boxed", "stop", 0.0, -0.5, 1), ("a;none", "stop", 0.0, -1.0, 1)]])
    assert PAIRERS[name](*wrong) == []


def test_a_wrong_majority_is_counted() -> None:
    # Votes know no verifier, so they may choose a wrong answer: never silently.
    group = judged([[("a", "stop", 0.0, 0.75, 1), ("b", "stop", 1.0, 0.25, 1)]])
    assert pair_facts(rewards.most_vs_least_voted(*group), *group)["wrong_chosen"] == 1


@pytest.mark.parametrize("name", PAIRERS)
def test_a_failed_parse_is_not_rejected(name: str) -> None:
    # Oxen's -1 for an unparseable judgement becomes the rejected answer, DataDreamer's makes the other one chosen.
    unknown = judged([[("a;x", "stop", 1.0, 1.0, 1), ("a;y", "stop", None, None, 1), ("a;z", "stop", None, None, 1)]])
    assert PAIRERS[name](*unknown) == []


def test_no_prompt_is_lost_to_shards(run_micro: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # Online-RLHF's int(n / 8) drops up to 7 prompts a round and gives every shard the same seed.
    monkeypatch.setattr(score, "SHARD", 10)
    campaign = run_micro("tiny_raft", "rounds=1", "prompts.per_round=31", "generate.shard=20")  # 5 prompts a shard, 1 over
    made = campaign.rounds()[1].artifacts
    drawn, completions, scores = (
        tables.read(load(campaign.store, made[label]).file(file), schema).to_pylist()
        for label, file, schema in (
            ("draw", "rounds.parquet", tables.PROMPTS),
            ("generate", "completions.parquet", tables.COMPLETIONS),
            ("score/tests.micro:ends_even", "scores.parquet", tables.SCORES),
        )
    )
    assert Counter(row["prompt_id"] for row in completions) == {row["prompt_id"]: 4 for row in drawn}
    assert len(drawn) == 31
    assert [row["completion_id"] for row in scores] == [row["completion_id"] for row in completions]
    assert len({row["seed"] for row in completions}) >= 7


def test_a_crashed_shard_is_not_done(run_micro: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # DICE tests `$?` after a bare `wait`, which is always 0: the round goes on with what is there. Here it stops, and the same
    # command scores what is missing, and only that.
    monkeypatch.setattr(score, "SHARD", 10)
    calls.clear()
    sets = ("rounds=1", 'score=[{scorer="tests.test_defects:fragile"}]')
    with pytest.raises(ScorerFailed, match="the machine is gone"):
        run_micro("tiny_raft", *sets)
    before = len(calls)
    campaign = run_micro("tiny_raft", *sets)
    rows = tables.read(
        load(campaign.store, campaign.rounds()[1].artifacts["score/tests.test_defects:fragile"]).file("scores.parquet"),
        tables.SCORES,
    )
    assert rows.num_rows == 32 * 4
    assert before == 2
    assert len(calls) - before == 10 - 1  # ten full shards of three prompts (the eleventh has two), less the one that was kept
