"""Biases of a judge from verdicts in both orders, against values worked out by hand and planted ones."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.evaluate import judge_bias

Row = dict[str, object]


def both(prompt: str, a: str, b: str, ab: float | None, ba: float | None) -> list[Row]:
    """`a` against `b` with a first (ab: how far a won) and with b first (ba: how far b won)."""
    return [
        {"prompt_id": prompt, "first_id": a, "second_id": b, "first_wins": ab},
        {"prompt_id": prompt, "first_id": b, "second_id": a, "first_wins": ba},
    ]


HAND = [*both("p", "a", "b", 1, 0), *both("q", "c", "d", 1, 1), *both("r", "e", "f", 0.5, 0.5), *both("s", "g", "h", 0, 0)]


def test_position_against_hand_values() -> None:
    # Claim: p is consistent, q always takes the first (+.5), r ties twice, s always takes the second (-.5).
    assert judge_bias.position_bias(HAND).value == pytest.approx(0)
    assert judge_bias.position_bias(HAND[:4]).value == pytest.approx(0.25)
    assert judge_bias.position_consistency(HAND).value == pytest.approx(0.5)


def test_a_pair_with_one_unreadable_order_does_not_count() -> None:
    # Claim: half a pair says nothing; without any pair the answer is NaN, not 0.
    assert judge_bias.pairs(both("p", "a", "b", 1, None)) == []
    assert math.isnan(judge_bias.position_bias(both("p", "a", "b", 1, None)).value)


def test_verbosity_against_hand_values() -> None:
    # Claim: gold prefers the shorter twice, the judge the longer once: .5; gold prefers the longer once, the judge too: 0.
    told = [*both("p", "a", "b", 1, 0), *both("q", "c", "d", 0, 1), *both("r", "e", "f", 1, 0)]
    lengths = {"a": 9, "b": 1, "c": 9, "d": 1, "e": 9, "f": 1}
    gold = {"a": 0.0, "b": 1.0, "c": 0.0, "d": 1.0, "e": 1.0, "f": 0.0}
    longer, shorter, bias = judge_bias.verbosity_bias(told, lengths, gold)
    assert (longer.value, shorter.value, bias.value) == (0.5, 0.0, 0.5)


def test_preference_for_the_own_text_at_equal_gold() -> None:
    # Claim: pairs of unequal gold are left out, whichever side the own text stands on.
    told = [*both("p", "own1", "x", 1, 0), *both("q", "y", "own2", 0, 1), *both("r", "own3", "z", 1, 0)]
    gold = {"own1": 1.0, "x": 1.0, "own2": 0.0, "y": 0.0, "own3": 1.0, "z": 0.0}
    own = {"own1", "own2", "own3"}
    assert judge_bias.preference_for(told, own, gold).value == 0.5
    assert judge_bias.preference_for(told[:4], {"x", "y"}).value == -0.5


def test_self_preference_of_a_judge_that_rates() -> None:
    # Claim: scores 3 and 1 at equal gold, SD 1: own texts gain 2 SD; a prompt without a counterpart counts not.
    scores = {"own1": 3.0, "x1": 1.0, "own2": 3.0, "x2": 1.0, "own3": 3.0, "x3": 1.0}
    gold = dict.fromkeys(scores, 1.0) | {"own3": 0.0}
    prompts = {key: f"p{key[-1]}" for key in scores}
    found = judge_bias.self_preference(scores, gold, {"own1", "own2", "own3"}, prompts)
    assert found.value == pytest.approx(2)


def campaign(win: Callable[[float, random.Random], float], prompts: int = 600) -> tuple[list[Row], dict[str, float]]:
    """Our text against another a prompt, lengths of ours 200 longer on average; `win` gets the difference in length."""
    draw, told, lengths = random.Random(3), list[Row](), dict[str, float]()
    for p in range(prompts):
        ours, theirs = f"ours{p}", f"x{p}"
        lengths |= {ours: draw.gauss(1200, 300), theirs: draw.gauss(1000, 300)}
        won = win(lengths[ours] - lengths[theirs], draw)
        told += both(f"p{p}", ours, theirs, won, 1 - won)
    return told, lengths


def test_wins_that_hang_on_length_alone_vanish_at_equal_length() -> None:
    # Oracle 6: the judge takes the longer (noisily): raw win rate well above .5, length-controlled .5 within its interval.
    told, lengths = campaign(lambda d, draw: float(draw.random() < 1 / (1 + math.exp(-d / 200))))
    ours = {key for key in lengths if key.startswith("ours")}
    raw, controlled = judge_bias.preference_for(told, ours), judge_bias.length_controlled_wins(told, ours, lengths)
    assert raw.low > 0.05
    assert controlled.low < 0.5 < controlled.high
    assert controlled.high - controlled.low < 0.15


def test_wins_that_do_not_hang_on_length_stay() -> None:
    # Claim: a judge that takes ours 70% of the time whatever the lengths has a length-controlled win rate around .7.
    told, lengths = campaign(lambda d, draw: float(draw.random() < 0.7))
    controlled = judge_bias.length_controlled_wins(told, {key for key in lengths if key.startswith("ours")}, lengths)
    assert controlled.low < 0.7 < controlled.high


def test_planted_biases_are_found_and_kept_apart() -> None:
    # Claim: a judge that takes the first 20% of the time blindly has a position bias of .1 and none for length or authorship.
    draw, told, lengths, gold = random.Random(8), list[Row](), dict[str, float](), dict[str, float]()
    for p in range(1500):
        a, b = f"a{p}", f"b{p}"
        lengths |= {a: draw.random(), b: draw.random()}
        gold |= {a: 1.0, b: 0.0}
        told += both(f"p{p}", a, b, *(float(draw.random() < (1.0 if draw.random() < 0.2 else x)) for x in (0.8, 0.2)))
    bias = judge_bias.position_bias(told)
    assert bias.low < 0.1 < bias.high
    assert bias.low > 0.05
    longer, shorter, _ = judge_bias.verbosity_bias(told, lengths, gold)
    assert longer.low < shorter.high
    assert shorter.low < longer.high


VERDICT = st.sampled_from([0.0, 0.5, 1.0, None])


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from([0.0, 0.5, 1.0, None]), st.sampled_from([0.0, 0.5, 1.0, None])),
        max_size=12,
    )
)
def test_swapping_every_pair_changes_nothing(told: list[tuple[int, float | None, float | None]]) -> None:
    # Claim: which text of a pair is called a is no matter, and values keep to their ranges.
    one = [row for i, (p, x, y) in enumerate(told) for row in both(str(p), f"a{i}", f"b{i}", x, y)]
    other = [row for i, (p, x, y) in enumerate(told) for row in both(str(p), f"b{i}", f"a{i}", y, x)]
    for measure, bound in ((judge_bias.position_bias, 0.5), (judge_bias.position_consistency, 1.0)):
        found, again = measure(one).value, measure(other).value
        assert np.isclose(found, again, equal_nan=True)
        assert math.isnan(found) or -bound <= found <= bound
