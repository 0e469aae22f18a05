from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import tables
from data.errors import PartError
from tasks.audit import audit_selection
from tasks.parts import check_settings
from tasks.selectors.best import all_correct, best_of_n

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


@settings(deadline=None)
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


@settings(deadline=None)
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


@settings(deadline=None)
@given(GROUPS)
def test_the_order_of_rows_changes_nothing(groups: list[list[Any]]) -> None:
    # Selections and their audit are the same for any order of the completions.
    completions, reward, scores = judged(groups)
    other, turned = shuffled(completions, reward)
    for selector in (all_correct, best_of_n):
        selected = selector(completions, reward, scores)
        assert selector(other, turned, scores) == selected
        assert audit_selection(selected[::-1], other, turned, scores) == audit_selection(selected, completions, reward, scores)


@settings(deadline=None)
@given(GROUPS)
def test_audit_is_plain_json(groups: list[list[Any]]) -> None:
    # An audit holds no NaN, and its counts add up.
    completions, reward, scores = judged(groups)
    audit = audit_selection(all_correct(completions, reward, scores), completions, reward, scores)
    json.dumps(audit, allow_nan=False)
    assert audit["prompts_with_rows"] + sum(audit["prompts_without"].values()) == audit["prompts"]
    assert audit["duplicates"] == audit["wrong_selected"] == audit["truncated_selected"] == 0


def test_audit_counts() -> None:
    # The facts of a small selection, by hand.
    groups = [
        [("a", "stop", 1.0, 1.0, 4), ("a", "stop", 1.0, 1.0, 6), ("b", "stop", 0.0, 0.0, 1), ("c", "length", 0.0, 0.0, 2)],
        [("a", "stop", 1.0, 1.0, 2), ("b", "length", 0.0, 0.0, 9)],
        [("a", "stop", 0.0, 0.0, 2), ("b", "stop", 0.0, 0.0, 9)],
    ]
    completions, reward, scores = judged(groups)
    selected = all_correct(completions, reward, scores, deduplicate=False)
    assert audit_selection(selected, completions, reward, scores) == {
        "rows": 3,
        "prompts": 3,
        "prompts_with_rows": 2,
        "prompts_without": {"all right": 0, "all wrong": 1, "no score": 0, "tied": 0, "other": 0},
        "duplicates": 1,
        "wrong_selected": 0,
        "truncated_selected": 0,
        "mean_rows_per_prompt": 1.5,
        "mean_selected_tokens": 4.0,
        "mean_other_tokens": 23 / 5,
        "length_gap": ((5 - 1.5) + (2 - 9)) / 2,
    }


def test_audit_of_nothing() -> None:
    # Nothing selected: null where nothing applies.
    audit = audit_selection([], *judged([]))
    assert (audit["rows"], audit["mean_selected_tokens"], audit["length_gap"]) == (0, None, None)


def test_a_negative_cap_is_refused() -> None:
    # It would silently drop the last ones; it is refused where the recipe is checked.
    with pytest.raises(PartError, match="cap: Input should be greater than or equal to 0"):
        check_settings("selectors", "all_correct", {"cap": -1})
