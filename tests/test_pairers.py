from __future__ import annotations

import functools
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import PartError
from data.rows import tables
from tasks.choose.chosen_facts import pair_facts
from tasks.choose.pairers.rewards import (
    all_over_margin,
    best_vs_worst,
    longest_shared_prefix,
    most_vs_least_voted,
    rejection_sampled,
    right_vs_wrong,
)
from tasks.choose.selectors.best import rejection_sampling
from tasks.run.parts import check_settings

Row = dict[str, Any]
SAMPLE = st.tuples(
    st.sampled_from("abcd"),  # text
    st.sampled_from(("stop", "stop", "length", "given")),
    st.sampled_from((1.0, 0.0, None)),  # the verifier's value
    st.sampled_from((None, -1.0, 0.25, 0.5, 2.0)),  # reward
    st.integers(1, 9),  # tokens
)
GROUPS = st.lists(st.lists(SAMPLE, max_size=6), max_size=4)


def judged(groups: list[list[Any]]) -> tuple[list[Row], dict[str, Any], dict[str, dict[str, Any]]]:
    """Completions, rewards and scores of groups of (text, finish_reason, verdict, reward, tokens), one group per prompt."""
    rows, reward, verdict = [], {}, {}
    for p, group in enumerate(groups):
        for sample, (text, finish, value, worth, tokens) in enumerate(group):
            key = f"{(7 * p + 3 * sample) % 29:02d}-{p}-{sample}"  # ids sort in another order than the samples
            row = {"completion_id": key, "prompt_id": f"p{p}", "sample": sample, "text": text, "finish_reason": finish}
            rows.append(row | {"token_ids": [1] * tokens})
            reward[key], verdict[key] = worth, value
    return rows, reward, {"verifier": verdict, "other": dict.fromkeys(verdict, 1.0)}


def samples(pairs: list[Row]) -> list[tuple[int, int]]:
    return [(int(pair["chosen_id"][-1]), int(pair["rejected_id"][-1])) for pair in pairs]


def check_pairs(pairs: list[Row], completions: list[Row], drawn: bool = False) -> list[tuple[Row, Row]]:
    """What holds for every pairer; returns (chosen, rejected) rows. Where pairs are `drawn`, two texts may meet again, as other
    samples: that they come often is part of the distribution."""
    tables.from_rows(pairs, tables.PAIRS)
    row_of = {row["completion_id"]: row for row in completions}
    both = [(row_of[pair["chosen_id"]], row_of[pair["rejected_id"]]) for pair in pairs]
    for pair, (chosen, rejected) in zip(pairs, both, strict=True):
        assert chosen["prompt_id"] == rejected["prompt_id"] == pair["prompt_id"]
        assert chosen["text"] != rejected["text"]
        assert chosen["finish_reason"] != "length"
    what = "completion_id" if drawn else "text"
    texts = [(c["prompt_id"], c[what], r[what]) for c, r in both]
    assert len(set(texts)) == len(texts)
    return both


@given(GROUPS, st.integers(0, 3))
def test_right_vs_wrong(groups: list[list[Any]], cap: int) -> None:
    # Chosen is right, rejected is wrong, no pair twice, within the cap; a prompt with both always gives a pair.
    completions, reward, scores = judged(groups)
    pairs = right_vs_wrong(completions, reward, scores, cap=cap)
    for chosen, rejected in check_pairs(pairs, completions):
        assert scores["verifier"][chosen["completion_id"]] == 1.0
        assert scores["verifier"][rejected["completion_id"]] == 0.0
    for p, group in enumerate(groups):
        right = {text for text, finish, value, *_ in group if value == 1.0 and finish != "length"}
        wrong = {text for text, _, value, *_ in group if value == 0.0} - right
        possible = max(len(right), len(wrong)) if right and wrong else 0
        assert sum(pair["prompt_id"] == f"p{p}" for pair in pairs) == min(possible, cap or possible)
    for pair in pairs:
        high, low = reward[pair["chosen_id"]], reward[pair["rejected_id"]]
        assert pair["margin"] == (1.0 if high is None or low is None else high - low)


@given(GROUPS, st.sampled_from((0.0, 0.5, 1.0)), st.booleans())
def test_best_vs_worst(groups: list[list[Any]], minimum: float, allow: bool) -> None:
    # At most one pair per prompt, its margin positive and not below the minimum; chosen is wrong only where that is allowed.
    completions, reward, scores = judged(groups)
    pairs = best_vs_worst(completions, reward, scores, minimum_margin=minimum, allow_wrong_chosen=allow)
    assert len({pair["prompt_id"] for pair in pairs}) == len(pairs)
    for chosen, rejected in check_pairs(pairs, completions):
        margin = reward[chosen["completion_id"]] - reward[rejected["completion_id"]]
        assert margin > 0
        assert margin >= minimum
        assert allow or scores["verifier"][chosen["completion_id"]] != 0.0
        finished = [r for r in completions if r["prompt_id"] == chosen["prompt_id"] and r["finish_reason"] != "length"]
        known = [reward[r["completion_id"]] for r in finished if reward[r["completion_id"]] is not None]
        assert reward[chosen["completion_id"]] == max(known)


@given(GROUPS)
def test_the_order_of_rows_changes_nothing(groups: list[list[Any]]) -> None:
    # Pairs and the facts about them are the same for any order of the completions.
    completions, reward, scores = judged(groups)
    other = random.Random(1).sample(completions, len(completions))
    turned = dict(reversed(reward.items()))
    wide = functools.partial(all_over_margin, minimum_margin=0.25)
    for pairer in (right_vs_wrong, best_vs_worst, wide, most_vs_least_voted, longest_shared_prefix):
        pairs = pairer(completions, reward, scores)
        assert pairer(other, turned, scores) == pairs
        assert pair_facts(pairs[::-1], other, turned, scores) == pair_facts(pairs, completions, reward, scores)


@given(GROUPS, st.sampled_from((0.25, 1.0, 2.0)), st.integers(0, 3), st.booleans())
def test_all_over_margin(groups: list[list[Any]], minimum: float, cap: int, allow: bool) -> None:
    # Every pair is wide enough and none is missing but for the cap, which keeps the widest; wrong is chosen only where allowed.
    completions, reward, scores = judged(groups)
    pairs = all_over_margin(completions, reward, scores, minimum_margin=minimum, cap=cap, allow_wrong_chosen=allow)
    for chosen, rejected in check_pairs(pairs, completions):
        assert reward[chosen["completion_id"]] - reward[rejected["completion_id"]] >= minimum
        assert allow or scores["verifier"][chosen["completion_id"]] != 0.0
    every = all_over_margin(completions, reward, scores, minimum_margin=minimum, allow_wrong_chosen=allow)
    for p in range(len(groups)):
        margins = sorted((pair["margin"] for pair in every if pair["prompt_id"] == f"p{p}"), reverse=True)
        assert [pair["margin"] for pair in pairs if pair["prompt_id"] == f"p{p}"] == margins[: cap or None]


@given(GROUPS)
def test_most_vs_least_voted(groups: list[list[Any]]) -> None:
    # At most one pair a prompt; the margin is positive and is the weight; a majority below the minimum gives none.
    completions, reward, scores = judged(groups)
    pairs = most_vs_least_voted(completions, reward, scores, minimum_votes=0.5)
    check_pairs(pairs, completions)
    assert len({pair["prompt_id"] for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert pair["weight"] == pair["margin"] > 0
        assert reward[pair["chosen_id"]] >= 0.5


@given(GROUPS, st.integers(2, 5), st.sampled_from((0.1, 1.0, 100.0)))
def test_rejection_sampled_pairs(groups: list[list[Any]], count: int, beta: float) -> None:
    # Each pair has two accepted completions, the better one chosen; none is in two pairs; the selector accepts the same ones.
    completions, reward, scores = judged(groups)
    pairs = rejection_sampled(completions, reward, scores, beta=beta, count=count)
    check_pairs(pairs, completions, drawn=True)
    sides = [pair[side] for pair in pairs for side in ("chosen_id", "rejected_id")]
    assert len(set(sides)) == len(sides)
    assert all(pair["margin"] > 0 for pair in pairs)
    taken = {row["completion_id"] for row in rejection_sampling(completions, reward, scores, beta=beta, count=count)}
    assert set(sides) <= taken


@given(st.lists(st.lists(st.tuples(st.lists(st.sampled_from("ab"), max_size=4), st.booleans()), max_size=5), max_size=3))
def test_prefix_pairs_part_at_the_first_wrong_step(groups: list[list[tuple[list[str], bool]]]) -> None:
    # Right against wrong, with whole steps in common, and no other right answer shares more of them.
    made = [
        [(";".join([*steps, "end" if right else "no"]), "stop", float(right), None, 1) for steps, right in g] for g in groups
    ]
    completions, reward, scores = judged(made)
    for chosen, rejected in check_pairs(longest_shared_prefix(completions, reward, scores, separator=";", cap=0), completions):
        verdict = scores["verifier"]
        assert (verdict[chosen["completion_id"]], verdict[rejected["completion_id"]]) == (1.0, 0.0)
        depth = shared(chosen["text"], rejected["text"])
        others = [
            r["text"] for r in completions if r["prompt_id"] == chosen["prompt_id"] and verdict[r["completion_id"]] == 1.0
        ]
        assert depth == max(shared(text, rejected["text"]) for text in others) > 0


def shared(a: str, b: str) -> int:
    depth = 0
    while depth < min(a.count(";"), b.count(";")) and a.split(";")[depth] == b.split(";")[depth]:
        depth += 1
    return depth


def test_both_sides_are_used_before_any_is_used_again() -> None:
    # Pairs walk both sides in sample order; the shorter side starts again.
    group = [(text, "stop", value, None, 1) for text, value in zip("abcdef", (1.0, 0.0, 1.0, 0.0, 0.0, 0.0), strict=True)]
    assert samples(right_vs_wrong(*judged([group]))) == [(0, 1), (2, 3), (0, 4), (2, 5)]
    assert samples(right_vs_wrong(*judged([group]), cap=3)) == [(0, 1), (2, 3), (0, 4)]


def test_tied_rewards_give_no_pair() -> None:
    # OpenRLHF's iterative_dpo_processor emits chosen == rejected here.
    tied = judged([[("a", "stop", None, 0.5, 1), ("b", "stop", None, 0.5, 1)], [("c", "stop", None, 1.0, 1)]])
    assert best_vs_worst(*tied) == []
    assert pair_facts([], *tied)["ties_skipped"] == 1


def test_a_prompt_without_a_right_completion_gives_no_pair() -> None:
    # Online-DPO-R1 rewards a wrong boxed answer -0.5 and none -1.0: its pair's chosen answer is wrong.
    group = judged([[("boxed", "stop", 0.0, -0.5, 1), ("none", "stop", 0.0, -1.0, 1)]])
    assert best_vs_worst(*group) == []
    assert right_vs_wrong(*group) == []
    allowed = best_vs_worst(*group, allow_wrong_chosen=True)
    assert samples(allowed) == [(0, 1)]
    assert pair_facts(allowed, *group)["wrong_chosen"] == 1


def test_what_could_not_be_judged_is_never_rejected() -> None:
    # Oxen's -1 for an unparseable judgement becomes the rejected answer; here null is on neither side.
    group = judged([[("a", "stop", 1.0, 1.0, 1), ("b", "stop", None, None, 1)]])
    assert right_vs_wrong(*group) == []
    assert best_vs_worst(*group) == []


def test_the_same_text_right_and_cut_is_no_pair() -> None:
    # The same text may be cut in one sample (wrong) and finished in another (right): it is never paired with itself.
    assert right_vs_wrong(*judged([[("a", "stop", 1.0, 1.0, 3), ("a", "length", 0.0, 0.0, 3)]])) == []


@given(GROUPS)
def test_facts_are_plain_json(groups: list[list[Any]]) -> None:
    # Facts have no NaN, their counts add up, and they show no fault in our own pairs.
    completions, reward, scores = judged(groups)
    for pairer in (right_vs_wrong, best_vs_worst):
        facts = pair_facts(pairer(completions, reward, scores), completions, reward, scores)
        json.dumps(facts, allow_nan=False)
        assert facts["prompts_with_pairs"] + sum(facts["prompts_without"].values()) == facts["prompts"]
        assert facts["duplicate_pairs"] == facts["identical_texts"] == facts["wrong_chosen"] == facts["truncated_chosen"] == 0


def test_facts_count_every_fault() -> None:
    # The facts of a bad set of pairs, by hand.
    groups: list[list[Any]] = [
        [("a", "length", 0.0, 1.0, 8), ("b", "stop", 1.0, 0.0, 2), ("a", "stop", 1.0, 1.0, 4)],
        [("a", "stop", 1.0, 1.0, 1), ("b", "stop", 1.0, 1.0, 1)],
        [("a", "stop", 0.0, 0.0, 1)],
        [("a", "stop", None, None, 1), ("b", "length", None, None, 1)],
        [("a", "stop", None, 0.5, 1), ("b", "stop", None, 0.5, 1)],
        [("a", "stop", 1.0, 0.5, 1), ("b", "stop", 0.0, 0.75, 1)],
    ]
    completions, reward, scores = judged(groups)
    first = [row["completion_id"] for row in completions[:3]]
    chosen_rejected = [(first[0], first[1]), (first[0], first[1]), (first[2], first[0])]
    pairs = [
        {"prompt_id": "p0", "chosen_id": chosen, "rejected_id": rejected, "margin": 1.0, "weight": 1.0}
        for chosen, rejected in chosen_rejected
    ]
    assert pair_facts(pairs, completions, reward, scores) == {
        "pairs": 3,
        "prompts": 6,
        "prompts_with_pairs": 1,
        "too_long": 0,
        "prompts_without": {"all right": 1, "all wrong": 1, "no score": 1, "tied": 1, "too long": 0, "other": 1},
        "ties_skipped": 2,
        "duplicate_pairs": 1,
        "identical_texts": 1,
        "wrong_chosen": 2,
        "right_rejected": 2,
        "truncated_chosen": 2,
        "truncated_rejected": 1,
        "mean_chosen_tokens": 20 / 3,
        "mean_rejected_tokens": 4.0,
        "length_gap": 8 / 3,
        "length_unit": "tokens",
        "chosen_longer_share": 2 / 3,
        "mean_chosen_reward": 1.0,
        "mean_rejected_reward": 1 / 3,
        "mean_reward": 6.25 / 10,
    }


def test_settings_that_make_no_sense_are_refused() -> None:
    # A bad setting is refused where the recipe is checked, before anything runs.
    with pytest.raises(PartError, match="cap: Input should be greater than or equal to 0"):
        check_settings("pairers", "right_vs_wrong", {"cap": -1})
    with pytest.raises(PartError, match="minimum_margin: Input should be greater than or equal to 0"):
        check_settings("pairers", "best_vs_worst", {"minimum_margin": -1.0})


def test_lengths_that_nobody_knows_are_null_not_nought() -> None:
    # a recorded text without token ids leaves the means of tokens, and null says so; the gap is in characters
    completions, reward, scores = judged([[("aaaa", "stop", 1.0, 1.0, 5), ("b", "stop", 0.0, 0.0, 2)]])
    pairs = right_vs_wrong(completions, reward, scores)
    completions[1]["token_ids"] = None
    facts = pair_facts(pairs, completions, reward, scores)
    assert (facts["mean_chosen_tokens"], facts["mean_rejected_tokens"]) == (5.0, None)
    assert (facts["length_gap"], facts["length_unit"], facts["chosen_longer_share"]) == (3.0, "characters", 1.0)
    nothing = pair_facts([], completions, reward, scores)
    assert nothing["length_gap"] is nothing["length_unit"] is nothing["chosen_longer_share"] is None
