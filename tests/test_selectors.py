from __future__ import annotations

import functools
import json
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import PartError
from data.rows import tables
from tasks.choose.chosen_facts import selection_facts
from tasks.choose.selectors.best import all_correct, best_of_n, diverse_correct, rejection_sampling, shortest_correct, top_share
from tasks.choose.selectors.labels import ranked
from tasks.run.parts import check_settings

Row = dict[str, Any]
SAMPLE = st.tuples(
    st.sampled_from("abc"),  # text
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


def shuffled(completions: list[Row], reward: dict[str, Any]) -> tuple[list[Row], dict[str, Any]]:
    return random.Random(1).sample(completions, len(completions)), dict(reversed(reward.items()))


@given(GROUPS, st.integers(0, 3), st.booleans())
def test_all_correct(groups: list[list[Any]], cap: int, deduplicate: bool) -> None:
    # Selected is right, finished, once per text, within the cap, of its own prompt; nothing that qualifies is left out.
    completions, reward, scores = judged(groups)
    selected = all_correct(completions, reward, scores, cap=cap, deduplicate=deduplicate)
    row_of = {row["completion_id"]: row for row in completions}
    tables.from_rows(selected, tables.SELECTED)
    for choice in selected:
        row = row_of[choice["completion_id"]]
        assert row["prompt_id"] == choice["prompt_id"]
        assert scores["verifier"][choice["completion_id"]] == 1.0
        assert row["finish_reason"] != "length"
    for p, group in enumerate(groups):
        right = [text for text, finish, value, *_ in group if value == 1.0 and finish != "length"]
        expected = list(dict.fromkeys(right)) if deduplicate else right
        chosen = [row_of[c["completion_id"]]["text"] for c in selected if c["prompt_id"] == f"p{p}"]
        assert chosen == (expected[:cap] if cap else expected)


@given(GROUPS, st.sampled_from((None, 0.0, 1.0)))
def test_best_of_n(groups: list[list[Any]], minimum: float | None) -> None:
    # At most one per prompt: the first finished sample with the highest known reward; null never wins.
    completions, reward, scores = judged(groups)
    selected = {c["prompt_id"]: c["completion_id"] for c in best_of_n(completions, reward, scores, minimum=minimum)}
    for p, group in enumerate(groups):
        known = [(r, -s) for s, (_, finish, _, r, _) in enumerate(group) if r is not None and finish != "length"]
        if known and (minimum is None or max(known)[0] >= minimum):
            assert selected[f"p{p}"].endswith(f"-{p}-{-max(known)[1]}")
        else:
            assert f"p{p}" not in selected


@given(GROUPS)
def test_the_order_of_rows_changes_nothing(groups: list[list[Any]]) -> None:
    # Selections and the facts about them are the same for any order of the completions.
    completions, reward, scores = judged(groups)
    other, turned = shuffled(completions, reward)
    rso, half = functools.partial(rejection_sampling, beta=0.5), functools.partial(top_share, share=0.5)
    for selector in (all_correct, best_of_n, shortest_correct, diverse_correct, rso, half):
        selected = selector(completions, reward, scores)
        assert selector(other, turned, scores) == selected
        assert selection_facts(selected[::-1], other, turned, scores) == selection_facts(selected, completions, reward, scores)


@given(GROUPS, st.sampled_from((0.25, 0.5, 1.0)))
def test_top_share(groups: list[list[Any]], share: float) -> None:
    # So many of the finished completions with a reward, and none left out is better than one taken.
    completions, reward, scores = judged(groups)
    taken = {row["completion_id"] for row in top_share(completions, reward, scores, share=share)}
    known = [
        r["completion_id"] for r in completions if r["finish_reason"] != "length" and reward[r["completion_id"]] is not None
    ]
    assert len(taken) == math.ceil(share * len(known))
    assert taken <= set(known)
    left = [reward[key] for key in known if key not in taken]
    assert not taken or not left or min(reward[key] for key in taken) >= max(left)


@given(GROUPS, st.integers(1, 3))
def test_shortest_and_diverse_take_right_ones(groups: list[list[Any]], cap: int) -> None:
    # Right and finished, each text once, up to the cap; the shortest are not longer than what is left.
    completions, reward, scores = judged([[(text * (tokens), *rest, tokens) for text, *rest, tokens in g] for g in groups])
    row_of = {row["completion_id"]: row for row in completions}
    for selector in (shortest_correct, diverse_correct):
        rows = [row_of[r["completion_id"]] for r in selector(completions, reward, scores, cap=cap)]
        for p in {row["prompt_id"] for row in completions}:
            right = {
                row["text"]
                for row in completions
                if row["prompt_id"] == p
                and scores["verifier"][row["completion_id"]] == 1.0
                and row["finish_reason"] != "length"
            }
            texts = [row["text"] for row in rows if row["prompt_id"] == p]
            assert len(set(texts)) == len(texts) == min(cap, len(right))
            assert set(texts) <= right
            if selector is shortest_correct:
                assert sorted(map(len, texts)) == sorted(map(len, right))[:cap]


def test_the_most_unlike_is_taken_next() -> None:
    # Of three right answers the one that repeats the first comes last.
    group = [(text, "stop", 1.0, 1.0, 1) for text in ("one two three", "one two three!", "seven eight nine")]
    completions, reward, scores = judged([group])
    taken = [row["completion_id"][-1] for row in diverse_correct(completions, reward, scores, cap=2)]
    assert taken == ["0", "2"]


@given(GROUPS)
def test_a_small_beta_accepts_the_best_and_no_other(groups: list[list[Any]]) -> None:
    # the limits of rejection sampling: of every prompt all completions of the highest reward, or with a large beta everything
    completions, reward, scores = judged(groups)
    cold = {row["completion_id"] for row in rejection_sampling(completions, reward, scores, beta=1e-3, count=9)}
    warm = {row["completion_id"] for row in rejection_sampling(completions, reward, scores, beta=1e9, count=9)}
    for p in range(len(groups)):
        own = [row for row in completions if row["prompt_id"] == f"p{p}" and row["finish_reason"] != "length"]
        known = {row["completion_id"]: value for row in own if (value := reward[row["completion_id"]]) is not None}
        best = {key for key, value in known.items() if value == max(known.values())}
        assert best == {key for key in cold if key in known}
        assert set(known) <= warm


@given(GROUPS)
def test_facts_are_plain_json(groups: list[list[Any]]) -> None:
    # Facts have no NaN, and their counts add up.
    completions, reward, scores = judged(groups)
    facts = selection_facts(all_correct(completions, reward, scores), completions, reward, scores)
    json.dumps(facts, allow_nan=False)
    assert facts["prompts_with_rows"] + sum(facts["prompts_without"].values()) == facts["prompts"]
    assert facts["duplicates"] == facts["wrong_selected"] == facts["truncated_selected"] == 0


def test_facts_count() -> None:
    # The facts of a small selection, by hand.
    groups = [
        [("a", "stop", 1.0, 1.0, 4), ("a", "stop", 1.0, 1.0, 6), ("b", "stop", 0.0, 0.0, 1), ("c", "length", 0.0, 0.0, 2)],
        [("a", "stop", 1.0, 1.0, 2), ("b", "length", 0.0, 0.0, 9)],
        [("a", "stop", 0.0, 0.0, 2), ("b", "stop", 0.0, 0.0, 9)],
    ]
    completions, reward, scores = judged(groups)
    selected = all_correct(completions, reward, scores, deduplicate=False)
    assert selection_facts(selected, completions, reward, scores) == {
        "rows": 3,
        "prompts": 3,
        "prompts_with_rows": 2,
        "too_long": 0,
        "prompts_without": {"all right": 0, "all wrong": 1, "no score": 0, "tied": 0, "too long": 0, "other": 0},
        "duplicates": 1,
        "wrong_selected": 0,
        "truncated_selected": 0,
        "mean_rows_per_prompt": 1.5,
        "mean_selected_tokens": 4.0,
        "mean_other_tokens": 23 / 5,
        "length_gap": ((5 - 1.5) + (2 - 9)) / 2,
        "length_unit": "tokens",
        "selected_share": 3 / 8,
        "mean_selected_reward": 1.0,
        "mean_reward": 3 / 8,
    }


def test_facts_of_nothing() -> None:
    # Nothing selected: null where nothing applies.
    facts = selection_facts([], *judged([]))
    assert (facts["rows"], facts["mean_selected_tokens"], facts["length_gap"]) == (0, None, None)


def test_a_negative_cap_is_refused() -> None:
    # It would silently drop the last ones; it is refused where the recipe is checked.
    with pytest.raises(PartError, match="cap: Input should be greater than or equal to 0"):
        check_settings("selectors", "all_correct", {"cap": -1})


def test_equals_of_a_share_are_spread_over_prompts() -> None:
    # ties go by sample: ten prompts of four equals give their first ones before any second one
    completions, reward, scores = judged([[("a", "stop", 1.0, 0.5, 3)] * 4 for _ in range(10)])
    taken = top_share(completions, reward, scores, share=0.25)
    assert sorted(row["prompt_id"] for row in taken) == sorted({row["prompt_id"] for row in completions})


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ((1.0, 0.9), []),  # above or between what ended: whatever the reward says, it would be learnt
        ((0.2, 0.1), ["cut0", "cut1"]),
        ((0.3, 0.5), ["cut0"]),
    ],
)
def test_what_was_cut_ranks_below_all_that_ended(cut: tuple[float, float], kept: list[str]) -> None:
    # oracle: of ended ones at .8 and .3 a cut one may at most be the equal of the worst
    group = [(f"cut{i}", "length", 0.0, value, 9) for i, value in enumerate(cut)]
    group += [("good", "stop", 1.0, 0.8, 3), ("poor", "stop", 0.0, 0.3, 3)]
    taken = ranked(*judged([group]), cap=0)
    assert taken[0]["rank"] == 0
    texts = {row["completion_id"]: row["text"] for row in judged([group])[0]}
    assert sorted(texts[row["completion_id"]] for row in taken if texts[row["completion_id"]].startswith("cut")) == kept
    assert texts[taken[0]["completion_id"]] == "good"
