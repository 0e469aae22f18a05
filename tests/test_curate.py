from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import RecipeError, StageFailed
from data.rows import tables
from data.store.campaign import Campaign
from flows.round.artifacts import load
from tasks.prompts.curators import PassRate, difficulty, texts, word_runs
from tests.curated_rounds import Rates, Rounds, ids_of
from tests.micro import micro


def prompts(*contents: str, answer: str = "7") -> list[dict[str, Any]]:
    return [
        {"prompt_id": f"p{n}", "messages": [{"role": "user", "content": content}], "answer": answer}
        for n, content in enumerate(contents)
    ]


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["prompt_id"] for row in rows]


TWELVE = prompts(*[f"question {n}" for n in range(12)])


# -- the band -----------------------------------------------------------------------------------------------------------
def still(rates: np.ndarray) -> Rates:
    """A policy that does not change."""
    return lambda number: rates


def test_the_band_keeps_its_prompts_and_drops_others(tmp_path: Path) -> None:
    # Kimi k1.5's filter under a policy that does not change: after 6 and 20 rounds at least 90% of the prompts of the band are
    # offered, also of its hard ones, and most of the prompts that are always or never solved are not.
    rng = np.random.default_rng(7)
    rates = np.concatenate([rng.random(120), np.zeros(40), np.ones(40)])
    inside, hopeless = (rates >= 0.2) & (rates <= 0.8), (rates == 0) | (rates == 1)
    rounds = Rounds(tmp_path, still(rates), samples=8).run(21, ("pass_rate_band", {"low": 0.2, "high": 0.8}))
    for finished in (6, 20):
        offered = np.isin(np.arange(len(rates)), rounds.offered[finished])
        assert offered[inside].mean() >= 0.9
        assert offered[inside & (rates < 0.4)].mean() >= 0.85
        assert offered[hopeless].mean() <= 0.3


def test_the_band_follows_a_policy_that_learns(tmp_path: Path) -> None:
    # A prompt that becomes solvable comes back though it was dropped, and one that becomes always solved leaves.
    def rates(number: int) -> np.ndarray:
        return np.repeat([0.0, 0.5] if number <= 5 else [0.5, 1.0], 40)

    rounds = Rounds(tmp_path, rates, samples=8).run(20, ("pass_rate_band", {"low": 0.2, "high": 0.8}))
    hard, easy = ([sum(n // 40 == kind for n in offered) / 40 for offered in rounds.offered] for kind in (0, 1))
    assert min(hard[2:5]) < 0.1  # dropped while hopeless
    assert hard[-1] >= 0.9
    assert easy[4] >= 0.9
    assert np.mean(easy[-5:]) <= 0.4


def test_a_prompt_leaves_the_band_only_surely() -> None:
    # 8 wrong samples of 8: a rate below 0.21 has a probability of 0.95 under Jeffreys' posterior, below 0.2 of 0.945.
    none, every = [{"p0": PassRate(0, 8)}], [{"p0": PassRate(8, 8)}]
    for low, kept in ((0.2, ["p0"]), (0.21, [])):
        assert ids(difficulty.pass_rate_band(TWELVE[:1], none, low=low, high=1.0)) == kept
        assert ids(difficulty.pass_rate_band(TWELVE[:1], every, low=0.0, high=1.0 - low)) == kept
    assert ids(difficulty.pass_rate_band(TWELVE[:1], none * 2, low=0.2, high=1.0)) == []  # 16 of 16 are enough
    assert ids(difficulty.pass_rate_band(TWELVE[:2], none, low=0.5, high=1.0)) == ["p1"]  # never sampled: it stays


def test_a_dropped_prompt_is_tried_again() -> None:
    # It returns after again to 2 again - 1 rounds, and the prompts of a round do not return together.
    many = prompts(*["question"] * 200)
    dropped: list[dict[str, PassRate]] = [{p: PassRate(0, 8) for p in ids(many)}]
    back = [len(difficulty.pass_rate_band(many, dropped + [{}] * k, low=0.5, high=1.0, again=3)) for k in range(6)]
    assert back[:3] == [0, 0, 0]
    assert back[5] == 200
    assert all(40 <= later - before <= 95 for before, later in itertools.pairwise(back[2:]))


# -- hard prompts first -------------------------------------------------------------------------------------------------
def test_inclusion_is_in_proportion_to_the_share_unsolved() -> None:
    # Kimi k1.5's prioritised sampling: over 400 rounds the inclusion of each class is its weight times one constant.
    right = np.repeat([0, 2, 5, 8, 9, 10], 40)  # of 10 samples
    weight = np.where(right == 10, 1 / 12, 1 - right / 10)
    many = prompts(*["question"] * len(right))
    rates = {p: PassRate(int(r), 10) for p, r in zip(ids(many), right, strict=True)}
    for share in (0.2, 0.4):
        kept = [ids(difficulty.hard_first(many, [{}] * k + [rates], share=share)) for k in range(400)]
        inclusion = np.bincount([int(p[1:]) for chosen in kept for p in chosen], minlength=len(right)) / 400
        expected = weight * share * len(right) / weight.sum()
        for r in (0, 2, 5, 8, 9, 10):
            assert inclusion[right == r].mean() == pytest.approx(expected[right == r][0], rel=0.06)
        assert all(len(chosen) == share * len(right) for chosen in kept)
        assert 0.5 <= inclusion[right == 0].std() / math.sqrt(expected[0] * (1 - expected[0]) / 400) <= 1.5


def test_no_inclusion_exceeds_one() -> None:
    # Where the hardest would be drawn more than once they are always kept, the others as their weight says.
    right = np.repeat([0, 10], [20, 180])
    many = prompts(*["question"] * len(right))
    rates = {p: PassRate(int(r), 10) for p, r in zip(ids(many), right, strict=True)}
    kept = [ids(difficulty.hard_first(many, [{}] * k + [rates], share=0.5)) for k in range(200)]
    inclusion = np.bincount([int(p[1:]) for chosen in kept for p in chosen], minlength=len(right)) / 200
    assert set(inclusion[right == 0]) == {1.0}
    assert inclusion[right == 10].mean() == pytest.approx(100 / (20 + 180 / 12) / 12, rel=0.06)
    assert ids(difficulty.hard_first(TWELVE, [], share=1.0)) == ids(TWELVE)
    assert difficulty.hard_first([], [], share=0.5) == []


@pytest.mark.parametrize("per_round", [0, 30])
def test_prompts_are_drawn_as_often_as_they_are_hard(tmp_path: Path, per_round: int) -> None:
    # The same over rounds, with rates that the rounds themselves sample, and behind `draw`: no prompt is lost by lucky samples.
    true = np.array([0.0, 0.25, 0.5, 0.75, 0.9])
    rates = np.repeat(true, 30)
    rounds = Rounds(tmp_path, still(rates), samples=10, per_round=per_round).run(30, ("hard_first", {"share": 0.5}))
    draws = rounds.draws(rounds.drawn[10:]).reshape(5, 30)
    assert draws.mean(axis=1) / draws[0].mean() == pytest.approx(1 - true, abs=0.08)
    assert (draws[:4] == 0).mean() <= 0.05


# -- draw ---------------------------------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=8)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 9))
def test_a_pool_is_used_up_first(tmp_path_factory: pytest.TempPathFactory, size: int, count: int, seed: int) -> None:
    # Without curators: every round has its full number of different prompts, and no two prompts differ by more than one draw.
    rounds = Rounds(tmp_path_factory.mktemp("rounds"), still(np.zeros(size)), samples=1, per_round=count, seed=seed)
    rounds.run(4)
    for number, drawn in enumerate(rounds.drawn, start=1):
        assert len(set(drawn)) == len(drawn) == min(count, size)
        assert np.ptp(rounds.draws(rounds.drawn[:number])) <= 1


def any_third(rows: list[dict[str, Any]], history: Any) -> list[dict[str, Any]]:
    """A curator: another random third of the prompts in each round."""
    return random.Random(f"third/{len(history)}").sample(rows, len(rows) // 3)


def mostly_the_first_half(rows: list[dict[str, Any]], history: Any) -> list[dict[str, Any]]:
    """A curator: the second half of the prompts only in every second round."""
    return rows if len(history) % 2 == 0 else rows[: len(rows) // 2]


@pytest.mark.parametrize(
    "curator",
    [
        ("pass_rate_band", {"low": 0.3, "high": 0.7}),
        ("hard_first", {"share": 0.5}),
        ("tests.test_curate:any_third", {}),
        ("tests.test_curate:mostly_the_first_half", {}),
    ],
)
def test_none_repeats_while_another_of_the_pool_is_unused(tmp_path: Path, curator: tuple[str, dict[str, Any]]) -> None:
    # Whatever the curators do: a round draws again only if it draws all prompts of its pool that were never drawn.
    rounds = Rounds(tmp_path, still(np.linspace(0, 1, 200)), samples=8, per_round=20).run(14, curator)
    used: set[int] = set()
    for offered, drawn in zip(rounds.offered, rounds.drawn, strict=True):
        assert len(set(drawn)) == len(drawn) == 20
        assert not set(drawn) & used or set(offered) - used <= set(drawn)
        used |= set(drawn)
    assert len(used) >= 160


def test_prompts_are_drawn_as_often_as_they_are_offered(tmp_path: Path) -> None:
    # What a curator offers twice as often is drawn twice as often: `draw` does not undo a curator.
    curator: tuple[str, dict[str, Any]] = ("tests.test_curate:mostly_the_first_half", {})
    rounds = Rounds(tmp_path, still(np.full(80, 0.5)), samples=1, per_round=10).run(24, curator)
    often, seldom = rounds.draws(rounds.drawn).reshape(2, 40).mean(axis=1)
    assert often / seldom == pytest.approx(2.0, rel=0.2)


# -- LIMR ---------------------------------------------------------------------------------------------------------------
def test_learnable() -> None:
    # LIMR by hand: mean rates 0.25 and 0.75; who follows them scores 1, who never learns 1 - (0.0625 + 0.5625) / 0.625 = 0.
    history = [dict(zip(ids(TWELVE), map(of_four, right), strict=False)) for right in ((1, 0, 2), (3, 2, 4), ())]
    kept = difficulty.learnable(TWELVE[:4], history, minimum=0.85, rounds=2)
    assert ids(kept) == ["p0", "p3"]  # p1 and p2: 1 - 0.125 / 0.625 = 0.8; p3 was never sampled
    assert ids(difficulty.learnable(TWELVE[:4], history, minimum=0.85, rounds=3)) == ids(TWELVE[:4])  # too few rounds
    never = [{"p0": of_four(0), "p1": of_four(3)}, {"p0": of_four(0), "p1": of_four(4)}]
    assert ids(difficulty.learnable(TWELVE[:1], never, rounds=2)) == []


def of_four(right: int) -> PassRate:
    return PassRate(right, 4)


@pytest.mark.parametrize(("samples", "least"), [(4, 0.85), (8, 0.98)])
def test_learnable_drops_the_always_and_the_never_solved(samples: int, least: float) -> None:
    # LIMR on curves: half of the prompts rise from 0.2 to 0.8 in five rounds, and nearly all of them stay; prompts that are
    # always or never solved go. What the docstring admits: a rate that stays at the average's level is kept as well.
    rise, level = np.linspace(0.2, 0.8, 5), np.full(5, 0.5)
    curves = np.vstack([np.tile(curve, (200, 1)) for curve in (rise, rise, 0 * level, 2 * level, level)])
    right = np.random.default_rng(1).binomial(samples, curves)
    many = prompts(*["question"] * len(curves))
    history = [{p: PassRate(int(r), samples) for p, r in zip(ids(many), column, strict=True)} for column in right.T]
    kept = np.isin(ids(many), ids(difficulty.learnable(many, history))).reshape(5, 200).mean(axis=1)
    assert min(kept[:2]) >= least
    assert max(kept[2:4]) <= 0.02
    assert kept[4] >= 0.7


# -- texts --------------------------------------------------------------------------------------------------------------
GUESSABLE = (
    "B",
    "(c)",
    "c)",
    "d.",
    "**B**",
    "$B$",
    "\\boxed{D}",
    "\\text{(E)}",
    "B. 12 apples",
    "Option C",
    "True",
    "no",
    "Yes.",
)
OPEN = ("7", "-1", "Bob", "e", "i", "-i", "12 B", "x + A", "C(5, 2)", "no solution", "I am", "10:00", "E = mc^2", "AB")
PROOFS = ("Prove that 2 is even.", "Prove the inequality.", "Let x = 1. Show that x > 0.", "Please prove it.")
CHOICES = (
    "Which? (A) 3 (B) 4 (C) 5",
    "Which?\nA. 3\nB. 4\nC. 5",
    "Which? $\\textbf{(A)}\\ 3 \\textbf{(B)}\\ 4 \\textbf{(C)}\\ 5$",
)
NEITHER = (
    "From A. Then to B. Then to C.",
    "cos(A) + cos(B) + cos(C)",
    "Records show that Ann won.",
    "Improve it.",
    "(A) and (B)",
)


def test_guessable_prompts() -> None:
    # Kimi k1.5: no multiple choice, no true or false, no proof, however it is written; open questions stay.
    def stays(text: str, answer: str) -> bool:
        return texts.not_guessable(prompts(text, answer=answer), []) != []

    assert [answer for answer in (*GUESSABLE, *OPEN) if stays("How many?", answer)] == list(OPEN)
    assert [text for text in (*PROOFS, *CHOICES, *NEITHER) if stays(text, "7")] == list(NEITHER)


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


def sentences(rng: random.Random, count: int, words: int) -> list[str]:
    """Texts of random words, so that no two share a run of 8."""
    syllables = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru")
    return [" ".join("".join(rng.choices(syllables, k=3)) for _ in range(words)) + "?" for _ in range(count)]


WRAPPED = ("Hey, tell me: {} Answer fast, please.", "{} Show every step before the answer.", "One more, by a friend - {}")
TEMPLATE = "Please solve the following problem step by step and put the final answer into a box at the very end: "
SCHOOL = "You are given a question from a school book, so think about it with care and reply with one number only. "


def dropped(train: list[str], test: list[str]) -> int:
    return len(train) - len(texts.decontaminated(prompts(*train), [], against=prompts(*test)))


def wrapped(rng: random.Random, contents: list[str]) -> list[str]:
    return [rng.choice(WRAPPED).format(text) for text in contents]


def test_copies_of_test_prompts_are_found() -> None:
    # Every test prompt is found within other words: those of three words or signs, of a sentence, with or without a template;
    # of a long one 13 words in a row suffice.
    rng = random.Random(0)
    sums = [f"{rng.randrange(1000, 9999)}{rng.choice('+-*')}{rng.randrange(1000, 9999)}?" for _ in range(100)]
    asked = [f"What is {text}" for text in sums]
    long = sentences(rng, 100, 25)
    for test in (sums, asked, long, [TEMPLATE + text for text in long], [TEMPLATE + text for text in asked]):
        assert dropped(wrapped(rng, test), test) == 100
    assert dropped(wrapped(rng, long), [TEMPLATE + text for text in long]) == 100
    assert dropped(wrapped(rng, asked), [TEMPLATE + text for text in asked]) == 100
    assert dropped(wrapped(rng, [" ".join(text.split()[:13]) for text in long]), long) == 100


@pytest.mark.parametrize("share", [1.0, 0.4, 0.1, 1 / 200])
def test_a_shared_template_is_no_copy(share: float) -> None:
    # 300 clean prompts stay, whatever share of the test prompts has their template, and other ones another template.
    rng = random.Random(1)
    many = int(share * 200)
    test = [TEMPLATE + text for text in sentences(rng, many, 12)] + [SCHOOL + text for text in sentences(rng, 200 - many, 12)]
    assert dropped([TEMPLATE + text for text in sentences(rng, 300, 12)], test) == 0


@pytest.mark.parametrize("largest", [30, 100, 1000])
def test_a_template_with_gaps_is_no_copy(largest: int) -> None:
    # Problems that differ in names and numbers only: those of the test prompts are dropped, all others stay.
    rng = random.Random(2)

    def problems(count: int) -> list[str]:
        numbers = ((rng.randrange(2, largest), rng.randrange(2, largest)) for _ in range(count))
        return [
            f"{rng.choice(('Tom', 'Ann', 'Bob', 'Eve'))} has {a} marbles in a bag and buys {b} more marbles at the store near "
            "the school. How many marbles are there now?"
            for a, b in numbers
        ]

    test = problems(200)
    assert dropped([text for text in problems(400) if text not in test], test) == 0
    assert dropped(wrapped(rng, test), test) == 200


def test_short_prompts_are_compared_as_a_whole() -> None:
    # A word or two occur anywhere, so they must be the whole prompt; a sign makes another problem.
    assert dropped(["A", "a word", "what is this"], ["a", "What is that?"]) == 1
    assert dropped(["7 - 3 ?", "now 7 + 3 !", "-7 + 3"], ["7+3"]) == 2
    assert dropped(["7 + 3"], ["-7 + 3"]) == 0


def test_near_duplicates_are_found_up_to_the_likeness() -> None:
    # Of 30 words one changed leaves 25 of 31 runs of three words, 0.81; two changed leave 22 of 34, 0.65. The likeness is 0.8.
    rng = random.Random(3)
    originals = sentences(rng, 200, 30)

    def changed(text: str, at: tuple[int, ...]) -> str:
        return " ".join("changed" if number in at else word for number, word in enumerate(text.split()))

    for at, left in (((10,), 200), ((10, 20), 400)):
        copies = [changed(text, at) for text in originals]
        assert len(texts.no_near_duplicates(prompts(*originals, *copies), [], likeness=0.8)) == left


# -- campaigns ----------------------------------------------------------------------------------------------------------
@pytest.mark.minutes
def test_a_campaign_curates(run_micro: Callable[..., Campaign]) -> None:
    # In round 2 only prompts that round 1 solved sometimes are sampled (0 or 4 right of 4 are surely outside).
    band = 'curate=[{curator="pass_rate_band", settings={low=0.4, high=0.6}}, {curator="decontaminated"}]'
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


def test_a_campaign_draws_by_turns(run_micro: Callable[..., Campaign]) -> None:
    # Through the rounds of a campaign: 16 of the 32 prompts that each round offers, so the first two rounds share none.
    curator = 'curate=[{curator="tests.test_curate:first_half"}]'
    campaign = run_micro("tiny_raft", curator, "rounds=3", "prompts.per_round=16")
    drawn = [set(ids_of(load(campaign.store, r.artifacts["draw"]).path)) for r in campaign.rounds()[1:]]
    assert [len(d) for d in drawn] == [16, 16, 16]
    assert not drawn[0] & drawn[1]
    inputs = campaign.store.manifest(campaign.rounds()[3].artifacts["draw"].key)["job"]["inputs"]
    assert sorted(inputs) == ["drawn/1", "drawn/2", "offered/1", "offered/2", "prompts"]


def first_half(rows: list[dict[str, Any]], history: Any) -> list[dict[str, Any]]:
    return rows[: len(rows) // 2]


def nothing(rows: list[dict[str, Any]], history: Any) -> list[dict[str, Any]]:
    return []


def test_nothing_left_is_said(run_micro: Callable[..., Campaign]) -> None:
    # An empty pool stops with counts; curating given prompts is refused.
    with pytest.raises(StageFailed, match=r"no prompt is left .*'hard_first'"):
        run_micro("tiny_raft", 'curate=[{curator="tests.test_curate:nothing"}, {curator="hard_first", settings={share=0.5}}]')
    with pytest.raises(RecipeError, match="not both"):
        micro("tiny_dpo", "pool.given=true", 'curate=[{curator="decontaminated"}]')
