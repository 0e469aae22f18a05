from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_rel

from data.recipe.settings import Hardware
from data.rows import tables
from data.statistics import t_interval
from tasks.evaluate.measure import (
    Settings,
    _lengths,
    measure,
    paired,
    paired_shares,
    pass_at_k,
    right_by_prompt,
    versus_champion,
)  # fmt: skip
from tasks.evaluate.paired_shares import shares_interval, sign_flip_p
from tasks.run.work import Work

Values = list[float | None]


def score_rows(groups: dict[str, Values], status: str = "ok") -> list[dict[str, Any]]:
    return [
        {"completion_id": f"{prompt}-{i}", "prompt_id": prompt, "value": value, "status": status, "detail": None}
        for prompt, values in groups.items()
        for i, value in enumerate(values)
    ]


def scores(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    tables.write(tables.from_rows(rows, tables.SCORES), tables.SCORES, folder / "scores.parquet")
    return folder


def completions(folder: Path, lengths: list[int], reasons: list[str]) -> Path:
    folder.mkdir()
    plain = {"prompt_id": "p", "sample": 0, "text": "", "logprobs": None, "seed": 0, "engine": "toy"}
    rows = [
        plain | {"completion_id": str(i), "token_ids": [1] * length, "finish_reason": reason}
        for i, (length, reason) in enumerate(zip(lengths, reasons, strict=True))
    ]
    tables.write(tables.from_rows(rows, tables.COMPLETIONS), tables.COMPLETIONS, folder / "completions.parquet")
    return folder


def measured(tmp_path: Path, greedy: dict[str, Values], **others: dict[str, Values]) -> dict[str, dict[str, Any]]:
    """METRICS of the stage by name, from scores per prompt; `base` is another checkpoint to compare with."""
    inputs = {
        "greedy": completions(tmp_path / "greedy", [3, 5], ["stop", "length"]),
        "greedy_score": scores(tmp_path / "greedy_score", score_rows(greedy)),
    }
    names = {"sampled": "sampled_score", "again": "again", "base": "greedy_score/base", "champion": "greedy_score/champion"}
    names |= {"of_champion": "sampled_score/champion"}
    for name, groups in others.items():
        inputs[names[name]] = scores(tmp_path / name, score_rows(groups))
    if "sampled" in others:
        inputs["sampled"] = inputs["sampled_score"]
    out = tmp_path / "out"
    out.mkdir()
    settings = Settings(split="held_out", against=[name for name in ("base", "champion") if name in others])
    measure(Work("key", settings, inputs, 0, out, tmp_path, Hardware(device="cpu")))
    return {row["metric"]: row for row in tables.read(out / "metrics.parquet", tables.METRICS).to_pylist()}


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (1, 1), (7, 20), (430, 1000)])
def test_accuracy_has_the_exact_interval(tmp_path: Path, hits: int, n: int) -> None:
    # scipy's Clopper-Pearson interval: within [0, 1], and never empty
    row = measured(tmp_path, {f"p{i}": [float(i < hits)] for i in range(n)})["accuracy"]
    assert (row["value"], row["n"], row["split"]) == (hits / n, n, "held_out")
    assert (row["low"], row["high"]) == pytest.approx(tuple(binomtest(hits, n).proportion_ci(0.95, method="exact")))
    assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    assert row["low"] < row["high"]


def test_what_counts_as_right(tmp_path: Path) -> None:
    # a full verifier value is right; half of one is not; a time-out or crash is not; a prompt without an answer is left out
    rows = score_rows({"right": [1.0], "half": [0.5], "wrong": [0.0], "more": [2.0]})
    rows += score_rows({"timeout": [None]}, "timeout") + score_rows({"crashed": [None]}, "crashed")
    rows += score_rows({"open": [None]}, "no_answer") + score_rows({"gold": [None]}, "gold_parse_failure")
    right = right_by_prompt(scores(tmp_path / "s", rows))
    assert right == {"right": [1], "half": [0], "wrong": [0], "more": [1], "timeout": [0], "crashed": [0]}


def test_where_nothing_applies_there_is_no_number(tmp_path: Path) -> None:
    # without a gold answer accuracy is null, never 0.0; lengths are still there
    rows = measured(tmp_path, {"p": [None]}, base={"p": [1.0]}, sampled={"p": [None, None]}, again={"p": [None, None]})
    for name in ("accuracy", "accuracy_vs_base", "aa_difference"):
        assert (rows[name]["value"], rows[name]["low"], rows[name]["high"], rows[name]["n"]) == (None, None, None, 0)
    assert "pass@1" not in rows
    assert rows["mean_tokens"]["value"] == 4.0
    assert rows["finished"]["value"] == 0.5


def test_an_empty_split_gives_empty_metrics(tmp_path: Path) -> None:
    # no rows at all is no error
    inputs = {"greedy": completions(tmp_path / "g", [], []), "greedy_score": scores(tmp_path / "s", [])}
    measure(Work("key", Settings(split="test", against=[]), inputs, 0, tmp_path, tmp_path, Hardware(device="cpu")))
    [row] = tables.read(tmp_path / "metrics.parquet", tables.METRICS).to_pylist()
    assert (row["metric"], row["value"], row["n"]) == ("accuracy", None, 0)


@pytest.mark.parametrize(
    ("groups", "one", "all_of_them"),
    [
        ([[1, 0, 0, 0]], 0.25, 1.0),
        ([[1, 1, 0, 0], [0, 0, 0, 0]], 0.25, 0.5),
        ([[1, 1], [1, 0], [0, 0]], 0.5, 2 / 3),
        ([[1, 1, 1]], 1.0, 1.0),
        ([[1, 0, 0], [0, 1]], 5 / 12, (2 / 3 + 1) / 2),  # k is what at least half of the prompts have: 2
    ],
)
def test_pass_at_k_by_hand(groups: list[list[float]], one: float, all_of_them: float) -> None:
    # by hand: pass@1 and pass@n, averaged over prompts
    rows = pass_at_k("held_out", {f"p{i}": list(map(float, group)) for i, group in enumerate(groups)})
    assert [row["metric"] for row in rows] == ["pass@1", f"pass@{min(map(len, groups))}"]
    assert [row["value"] for row in rows] == pytest.approx([one, all_of_them])


@given(st.integers(1, 6), st.integers(0, 6))
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(n: int, right: int) -> None:
    # the formula equals the count over every way to take k of n samples
    values = [1.0] * min(right, n) + [0.0] * (n - min(right, n))
    for row in pass_at_k("s", {"p": values, "q": values}):
        k = int(row["metric"].removeprefix("pass@"))
        draws = list(itertools.combinations(values, k))
        assert row["value"] == pytest.approx(sum(any(draw) for draw in draws) / len(draws))


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=6), min_size=1, max_size=12))
def test_pass_at_k_rests_on_the_prompts_that_have_k_samples(groups: list[list[float]]) -> None:
    # any numbers of judged samples: k is one that at least half of the prompts have; n counts them; never below 0 or above 1;
    # and the value is the count over every way to draw k of each one's samples
    last = pass_at_k("s", {f"p{i}": group for i, group in enumerate(groups)})[-1]
    k = int(last["metric"].removeprefix("pass@"))
    enough = [group for group in groups if len(group) >= k]
    assert last["n"] == len(enough) >= len(groups) / 2
    assert 0.0 <= last["value"] <= 1.0
    solved = [np.mean([any(draw) for draw in itertools.combinations(group, k)]) for group in enough]
    assert last["value"] == pytest.approx(np.mean(solved))


def test_one_lost_sample_renames_no_metric() -> None:
    # a request that failed on one prompt of a hundred: still pass@4, on the other 99
    groups = {f"p{i}": [1.0, 0.0, 0.0, 0.0] for i in range(99)} | {"lost": [0.0, 0.0, 0.0]}
    assert [(row["metric"], row["n"]) for row in pass_at_k("s", groups)] == [("pass@1", 100), ("pass@4", 99)]


def test_intervals_are_over_prompts_not_completions() -> None:
    # a prompt whose four samples all end is one prompt that ends; tokens alike
    rows = [{"prompt_id": p, "token_ids": [1] * (2 + 8 * (p == "a")), "finish_reason": "stop"} for p in "aaaab"]
    tokens, finished = _lengths("s", rows)
    assert (tokens["value"], tokens["n"], finished["value"], finished["n"]) == (6.0, 2, 1.0, 2)
    assert finished["low"] == pytest.approx(0.025 ** (1 / 2))


def test_pass_at_one_of_one_sample_is_one_row() -> None:
    # with a single sample pass@1 and pass@n are the same, named once
    assert [row["metric"] for row in pass_at_k("s", {"p": [1.0]})] == ["pass@1"]


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=2, max_size=40))
def test_the_paired_interval_of_numbers_is_the_t_tests(values: list[tuple[float, float]]) -> None:
    # the interval of log-probabilities is the textbook one: scipy's paired t test, 95%
    ours, theirs = ({f"p{i:03d}": [pair[side]] for i, pair in enumerate(values)} for side in (0, 1))
    row = paired("held_out", "difference", ours, theirs)
    difference = [a - b for a, b in values]
    assert row["value"] == pytest.approx(np.mean(difference))
    assert row["n"] == len(values)
    if len(set(difference)) > 1:
        interval = ttest_rel(*zip(*values, strict=True)).confidence_interval(0.95)
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    else:
        assert (row["low"], row["high"]) == (None, None)  # equal on few prompts is no certainty


def test_only_shared_prompts_are_compared_and_the_sides_are_ours_minus_theirs() -> None:
    # the difference is on the same prompts, whatever order or extra ones either side has
    ours = {"b": [1.0], "a": [1.0], "x": [0.0]}
    theirs = {"y": [1.0], "a": [0.0], "b": [1.0]}
    for compare in (paired, paired_shares):
        row = compare("s", "d", ours, theirs)
        assert (row["value"], row["n"]) == (0.5, 2)
        assert compare("s", "d", theirs, ours)["value"] == -0.5
        assert compare("s", "d", {"a": [1.0]}, {"b": [1.0]})["value"] is None


def test_the_stage_compares_and_checks_itself(tmp_path: Path) -> None:
    # the difference to another checkpoint is on greedy answers, the A/A difference on the means of two sampled sets
    rows = measured(
        tmp_path,
        {"a": [1.0], "b": [1.0], "c": [0.0]},
        base={"a": [0.0], "b": [1.0], "c": [0.0]},
        sampled={"a": [1.0, 0.0], "b": [1.0, 1.0]},
        again={"a": [0.0, 1.0], "b": [1.0, 0.0]},
    )
    assert rows["accuracy_vs_base"]["value"] == pytest.approx(1 / 3)
    assert rows["aa_difference"]["value"] == pytest.approx(0.25)
    assert rows["pass@1"]["value"] == pytest.approx(0.75)
    assert rows["pass@2"]["value"] == pytest.approx(1.0)


@pytest.mark.parametrize(("sampling", "value"), [(False, 0.5), (True, 0.25)])
def test_the_champion_is_compared_by_all_answers(tmp_path: Path, sampling: bool, value: float) -> None:
    # the share of right answers among the greedy and the sampled ones, by hand; greedy alone where nothing is sampled
    equal: dict[str, Values] = {"c": [0.0] * 3, "d": [1.0] * 3}
    sampled: dict[str, dict[str, Values]] = {"sampled": {"a": [1.0, 1.0, 0.0], "b": [1.0, 1.0, 1.0], **equal}}
    sampled |= {"of_champion": {"a": [1.0, 0.0, 0.0], "b": [1.0, 0.0, 1.0], **equal}}
    greedy: dict[str, Values] = {name: [1.0] for name in "abcd"}
    champion: dict[str, Values] = {"a": [0.0], "b": [0.0], "c": [1.0], "d": [1.0]}
    rows = measured(tmp_path, greedy, champion=champion, **(sampled if sampling else {}))
    assert rows["accuracy_vs_champion"]["value"] == 0.5
    assert rows["mean_accuracy_vs_champion"]["value"] == pytest.approx(value)
    assert rows["p_vs_champion"]["value"] == pytest.approx(0.25)  # two prompts won


# -- the exact test ----------------------------------------------------------------------------------------------------------
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=10))
def test_the_p_value_is_the_share_of_all_sign_flips(steps: list[int]) -> None:
    # counted over all 2^n ways to flip the signs: at least as far in the direction that was found
    flips = np.array(list(itertools.product((1, -1), repeat=len(steps)))) @ np.array(steps)
    assert sign_flip_p(np.array(steps) / 3, 3) == pytest.approx(np.mean(flips >= abs(sum(steps))), abs=1e-12)


@pytest.mark.parametrize("size", [8, 64, 300])
def test_equal_checkpoints_get_a_small_p_value_as_often_as_it_says(size: int) -> None:
    # 1500 comparisons of equal checkpoints with 5 answers: p is at most a in a share a of them at most, in either direction;
    # from 64 prompts on in nearly that share, so that no power is given away
    draw = np.random.default_rng(size)
    chance = draw.beta(0.4, 0.4, size=(1500, size, 1))
    ours, theirs = ((draw.random((1500, size, 5)) < chance).mean(axis=-1) for _ in range(2))
    p = np.array([sign_flip_p(each, 5) for each in ours - theirs])
    for share in (0.0125, 0.05, 0.2):
        error = 2.5 * math.sqrt(share * (1 - share) / 1500)
        for side in (1, -1):
            found = np.mean((p <= share) & (side * (ours - theirs).sum(axis=1) > 1e-9))
            assert found <= share + error
            assert size < 64 or found >= 0.75 * share - error


def test_sampled_answers_find_what_greedy_ones_miss() -> None:
    # 300 comparisons of 200 prompts, the same gain in both: the exact test finds it more often by 5 answers than by one
    draw, found = np.random.default_rng(3), np.zeros(2)
    for _ in range(300):
        logit = 2 * draw.normal(size=(200, 1)) + 0.5 * draw.normal(size=(200, 2)) + np.array([0.35, 0.0])
        chance = 1 / (1 + np.exp(-logit))
        answers = np.concatenate([logit[..., None] > 0, draw.random((200, 2, 4)) < chance[..., None]], axis=-1).astype(float)
        for place, used in enumerate((1, 5)):
            ours, theirs = ({str(i): row[:used].tolist() for i, row in enumerate(answers[:, side])} for side in (0, 1))
            rows = {row["metric"]: row["value"] for row in versus_champion("s", ours, theirs)}
            found[place] += rows["p_vs_champion"] <= 0.0125 and rows["mean_accuracy_vs_champion"] > 0
    assert found[1] > found[0] + 15


# -- intervals of paired shares ----------------------------------------------------------------------------------------------
def test_the_interval_of_shares_is_bonett_and_prices() -> None:
    # statpsych's ci.prop.ps(.05, 12, 4, 26, 6) gives .2548 to .6252; t in place of z widens both ends by less than .007
    low, high = shares_interval(np.array([1.0] * 26 + [-1.0] * 4 + [0.0] * 18))
    assert 0 <= 0.2548067 - low < 0.007
    assert 0 <= high - 0.6251933 < 0.007


@pytest.mark.parametrize("size", [32, 200, 1000])
@pytest.mark.parametrize("differing", [0.005, 0.02, 0.1, 0.35])
def test_the_interval_of_shares_covers_the_truth_where_few_prompts_differ(size: int, differing: float) -> None:
    # 1000 seeded comparisons in which a share of the prompts differs, 7 in 10 of them won: at least 93 of 100 hold the truth
    draw, held = np.random.default_rng(7), 0
    for won, lost, same in draw.multinomial(size, [0.7 * differing, 0.3 * differing, 1 - differing], size=1000):
        low, high = shares_interval(np.repeat([1.0, -1.0, 0.0], [won, lost, same]))
        held += low <= 0.4 * differing <= high
    assert held / 1000 >= 0.93


def test_the_interval_covers_the_truth_95_times_in_100() -> None:
    # seeded simulation: 200 held-out prompts, two checkpoints that differ by 5 points; 95 +- 2 of 100 intervals hold it
    draw = np.random.default_rng(5)
    held = 0
    for _ in range(1500):
        luck = draw.random((200, 2))
        low, high = t_interval((luck[:, 0] < 0.45).astype(float) - (luck[:, 1] < 0.40))
        held += low <= 0.05 <= high
    assert 0.93 <= held / 1500 <= 0.97
