from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import RecipeError, StageFailed
from data.rows import tables
from data.store.campaign import Campaign
from flows.round.artifacts import load
from tasks.prompts.curators import difficulty, texts, word_runs
from tests.micro import micro

RATES = st.dictionaries(st.sampled_from([f"p{n}" for n in range(12)]), st.sampled_from((0.0, 0.25, 0.5, 1.0)))


def prompts(*contents: str, answer: str = "7") -> list[dict[str, Any]]:
    return [
        {"prompt_id": f"p{n}", "messages": [{"role": "user", "content": content}], "answer": answer}
        for n, content in enumerate(contents)
    ]


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["prompt_id"] for row in rows]


TWELVE = prompts(*[f"question {n}" for n in range(12)])


@given(st.lists(RATES, max_size=3), st.sampled_from((0.0, 0.25)), st.sampled_from((0.5, 1.0)))
def test_pass_rate_band(history: list[dict[str, float]], low: float, high: float) -> None:
    # The newest rate decides; a prompt never sampled stays; the order does too.
    newest = {prompt: rate for rates in history for prompt, rate in rates.items()}
    want = [p for p in ids(TWELVE) if p not in newest or low <= newest[p] <= high]
    assert ids(difficulty.pass_rate_band(TWELVE, history, low=low, high=high)) == want


def test_hard_prompts_come_more_often() -> None:
    # Over many rounds a prompt is chosen first in proportion to 1 - its pass rate; one that is always solved never is.
    three, rates = TWELVE[:3], {"p0": 0.0, "p1": 0.5, "p2": 1.0}
    drawn = Counter(ids(difficulty.hard_first(three, [{}] * k + [rates], share=0.3))[0] for k in range(1500))
    assert drawn["p2"] == 0
    assert drawn["p0"] / drawn["p1"] == pytest.approx(2.0, abs=0.35)
    assert ids(difficulty.hard_first(three, [rates], share=1.0)) == ["p0", "p1"]


def test_learnable() -> None:
    # LIMR by hand: mean rates 0.25 and 0.75; who follows them scores 1, who never learns 1 - (0.0625 + 0.5625) / 0.625 = 0.
    history = [{"p0": 0.25, "p1": 0.0, "p2": 0.5}, {"p0": 0.75, "p1": 0.5, "p2": 1.0}, {}]
    kept = difficulty.learnable(TWELVE[:4], history, minimum=0.85)
    assert ids(kept) == ["p0", "p3"]  # p1 and p2: 1 - 0.125 / 0.625 = 0.8; p3 was never sampled
    never = [{"p0": 0.0, "p1": 0.5}, {"p0": 0.0, "p1": 1.5}]
    assert ids(difficulty.learnable(TWELVE[:1], never)) == []


def test_guessable_prompts() -> None:
    # Prompts with a letter, yes or no, or a proof as answer are dropped; others stay.
    kept = [
        answer
        for answer in ("B", "(c)", "True", "no", "7", "Bob", "-1")
        if texts.not_guessable(prompts("q", answer=answer), [])
    ]
    assert kept == ["7", "Bob", "-1"]
    assert texts.not_guessable(prompts("Prove that 2 is even."), []) == []


WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=6).map(" ".join)


@settings(deadline=None)
@given(st.lists(WORDS, max_size=8), st.sampled_from((0.3, 0.6, 1.0)))
def test_no_near_duplicates(contents: list[str], likeness: float) -> None:
    # No two kept prompts are that alike, and each dropped prompt is that alike to a kept one before it.
    rows = prompts(*contents)
    kept = texts.no_near_duplicates(rows, [], likeness=likeness, n=2)
    stay = {row["prompt_id"]: word_runs(row["messages"][0]["content"], 2) for row in kept}

    def alike(a: set[Any], b: set[Any]) -> bool:
        return len(a & b) / len(a | b) >= likeness

    assert not any(alike(a, b) for p, a in stay.items() for q, b in stay.items() if p < q)
    for number, row in enumerate(rows):
        if row["prompt_id"] not in stay:
            runs = word_runs(row["messages"][0]["content"], 2)
            assert any(alike(runs, other) for p, other in stay.items() if int(p[1:]) < number)


def test_a_sign_makes_another_problem() -> None:
    # Two prompts that differ only in + and - are not duplicates; two that differ only in commas are.
    rows = prompts("What is 7 - 3 ?", "What is 7 + 3 ?", "What, is 7 + 3")
    assert ids(texts.no_near_duplicates(rows, [], likeness=1.0)) == ["p0", "p1"]


def test_decontamination() -> None:
    # Eight words in a row of a held-out prompt, whatever the case and punctuation; a template they all share does not count.
    template = "Please solve the following problem and give the final answer: "
    held_out = prompts(*[template + text for text in ("Tom has 3 apples and buys 4 more apples today.", "A", "B", "C")])
    rows = prompts(
        template + "tom HAS 3 apples, and buys 4 more pears.",
        template + "Ann has 5 pears and sells 2 of them to Bob.",
        "short",
        "a",
    )
    assert ids(texts.decontaminated(rows, [], against=held_out)) == ["p1", "p2", "p3"]
    assert ids(texts.decontaminated(prompts("A"), [], against=prompts("a", "what is this"))) == []


def test_a_campaign_curates(run_micro: Callable[..., Campaign]) -> None:
    # From round 2 on only prompts that round 1 solved sometimes are sampled; a recipe without [[curate]] has no such stage.
    band = 'curate=[{curator="pass_rate_band", settings={low=0.25, high=0.75}}, {curator="decontaminated"}]'
    campaign = run_micro("tiny_raft", band, "prompts.per_round=0", "gate.rule=always_promote")
    first, second = (campaign.rounds()[n].artifacts for n in (1, 2))
    assert json.loads(load(campaign.store, first["curate"]).file("curated.json").read_text()) == {
        "given": 64,
        "pass_rate_band": 64,
        "decontaminated": 64,
    }
    scores = tables.read(load(campaign.store, first["score/tests.micro:ends_even"]).file("scores.parquet"), tables.SCORES)
    right: dict[str, list[float]] = {}
    for row in scores.to_pylist():
        right.setdefault(row["prompt_id"], []).append(row["value"])
    want = {prompt for prompt, values in right.items() if 0 < sum(values) < len(values)}
    drawn = tables.read(load(campaign.store, second["draw"]).file("rounds.parquet"), tables.PROMPTS)
    assert set(drawn["prompt_id"].to_pylist()) == want


def test_nothing_left_is_said(run_micro: Callable[..., Campaign]) -> None:
    # An empty pool stops with counts; curating given prompts is refused.
    with pytest.raises(StageFailed, match=r"no prompt is left .*'hard_first'"):
        run_micro(
            "tiny_raft",
            'curate=[{curator="pass_rate_band", settings={low=0.9, high=0.1}}, {curator="hard_first", settings={share=0.5}}]',
        )
    with pytest.raises(RecipeError, match="not both"):
        micro("tiny_dpo", "pool.given=true", 'curate=[{curator="decontaminated"}]')
