from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from data.recipe import templates
from data.recipe.settings import Score
from data.store.campaign import Campaign, Metric
from registry.judges import mirror_templates, used
from tasks.evaluate.judge_health import agreement, drift, length_bias, orders, probes, self_preference, spread
from tasks.gate.judge_alarms import SMALLEST, biased_judges
from tasks.gate.training_alarms import uninformative_judges
from tasks.score.scorers.likelihood import mean_logprob
from tests.test_judge import JUDGED

Row = dict[str, Any]


def named(rows: Sequence[Row]) -> dict[str, float | None]:
    return {row["metric"]: row["value"] for row in rows}


def scored(*groups: Sequence[float | None]) -> list[Row]:
    """SCORES rows, a group of values per prompt."""
    return [
        {"prompt_id": f"p{place}", "value": value, "status": "ok" if value is not None else "parse_failure"}
        for place, group in enumerate(groups)
        for value in group
    ]


def test_a_judge_that_only_knows_hard_prompts_is_found_out() -> None:
    # Easy prompts score high and hard ones low: the overall AUROC shines, within a prompt it is a coin, and nothing is gained.
    easy = [(0.9, 1.0), (0.9, 1.0), (0.9, 1.0), (0.9, 0.0)]
    hard = [(0.1, 0.0), (0.1, 0.0), (0.1, 0.0), (0.1, 1.0)]
    found = named(agreement({"a": easy, "b": hard}))
    assert found["auroc"] == 0.75
    assert (found["within_prompt_auroc"], found["selection_gain"]) == (0.5, 0.0)
    assert named(agreement({"a": [(0.1, 0.0), (0.2, 1.0)], "b": [(0.8, 0.0), (0.9, 1.0)]}))["within_prompt_auroc"] == 1.0


def test_the_selection_gain_is_best_of_n_less_a_random_one() -> None:
    # Right on one of four and the judge finds it: +0.75. It finds a wrong one: -0.25. Both tie at the top: their mean.
    right_found, wrong_found = (
        [(1.0, 1.0), (0.5, 0.0), (0.4, 0.0), (0.3, 0.0)],
        [(1.0, 0.0), (0.5, 1.0), (0.4, 0.0), (0.3, 0.0)],
    )
    tied = [(1.0, 1.0), (1.0, 0.0)]
    assert named(agreement({"a": right_found}))["selection_gain"] == 0.75
    assert named(agreement({"a": wrong_found}))["selection_gain"] == -0.25
    assert named(agreement({"a": tied}))["selection_gain"] == 0.0


@pytest.mark.parametrize(
    ("first", "second", "weight", "levels"),
    [
        ((0.50, 0.54), (0.51, 0.54), 0.0, ["watch", "STOP"]),  # surely blind, twice
        ((0.50, 0.54), (0.51, 0.54), 1.0, []),  # the verifier rewards beside it
        ((0.50, 0.54), (0.52, 0.60), 0.0, ["watch"]),  # the second time it may see something
        ((0.53, 0.56), (0.53, 0.56), 0.0, []),  # not surely
    ],
)
def test_a_blind_judge_is_stopped_in_the_second_round(
    first: tuple[float, float], second: tuple[float, float], weight: float, levels: list[str]
) -> None:
    # AUROC surely below .55 within a prompt; not where something else is rewarded of which that is not known
    def measured(value: float, high: float) -> dict[str, Metric]:
        return {"judge/likes/within_prompt_auroc": Metric(value=value, low=2 * value - high, high=high, n=200)}

    scores = [Score(scorer="exact_match", weight=weight), Score(scorer="judge", name="likes")]
    one, two = measured(*first), measured(*second)
    found = uninformative_judges(one, {}, scores) + uninformative_judges(two, one, scores)
    assert [alarm.level for alarm in found] == levels
    assert uninformative_judges(two, one, [*scores, Score(scorer="words")]) == []
    assert uninformative_judges({"judge/likes/within_prompt_auroc": Metric(value=None)}, one, scores) == []


def test_calibration_is_of_probabilities_only() -> None:
    # Said 0.8 and right in 8 of 10: no error. Said 1.0 and right half the time: Brier 0.5. Log-probabilities have neither.
    honest = {f"p{i}": [(0.8, float(i < 8))] for i in range(10)}
    assert named(agreement(honest))["brier"] == pytest.approx(0.16)
    boastful = {f"p{i}": [(1.0, float(i % 2))] for i in range(100)}
    found = named(agreement(boastful))
    assert [found["brier"], found["ece"]] == [0.5, pytest.approx(0.5)]
    assert "brier" not in named(agreement({"a": [(-0.2, 1.0), (-3.0, 0.0)]}))


def test_without_verdicts_nothing_is_claimed() -> None:
    # No row, or one class only: null, never a number or a crash.
    assert named(agreement({}))["auroc"] is None
    assert named(agreement({"a": [(0.5, 1.0)]}))["within_prompt_auroc"] is None


def test_ties_saturation_and_failures() -> None:
    # One prompt of two is tied, one with one text is none. By prompt: none, two of three and none of its values are
    # the highest; none, one of four and none was unread.
    found = named(spread(scored((0.5, 0.5), (1.0, 0.2, 1.0, None), (0.3, 0.3)), list("ababcdaa")))
    assert [found["tied_prompts"], found["saturated"], found["parse_failures"]] == [
        0.5,
        pytest.approx(2 / 9),
        pytest.approx(1 / 12),
    ]


def test_both_orders_agree_or_do_not() -> None:
    # The same text wins from either place: consistent. The first place wins twice: not. One order unread: left out.
    def game(first: str, second: str, wins: float | None) -> Row:
        return {"prompt_id": "p", "first_id": first, "second_id": second, "first_wins": wins}

    games = [game("a", "b", 1.0), game("b", "a", 0.0), game("a", "c", 1.0), game("c", "a", 1.0), game("b", "c", None)]
    (row,) = orders([*games, game("c", "b", 1.0)])
    assert (row["value"], row["n"]) == (0.5, 1)  # one prompt
    assert orders([]) == []


def judged_round(draw: np.random.Generator, prompts: int, length: float = 0.0) -> tuple[list[Row], list[Row], list[str]]:
    """Four texts of each prompt. Right ones are longer, the score rises with being right, and by `length` SD with length."""
    right = (draw.random((prompts, 4)) < draw.beta(1.5, 1.5, (prompts, 1))).astype(float)
    lengths = draw.normal(4, 0.5, right.shape) + 0.3 * right
    values = right + length * (lengths - 4) / 0.5 + draw.normal(size=right.shape) + draw.normal(size=(prompts, 1))
    both = [[{**row, "completion_id": str(i)} for i, row in enumerate(scored(*map(list, table)))] for table in (values, right)]
    return both[0], both[1], ["x" * round(float(np.exp(n))) for n in lengths.flat]


def test_a_fair_judge_has_no_length_bias_and_a_planted_one_is_found() -> None:
    # A judge that errs alike on long and short texts: 0 is within the interval, though right texts are longer.
    draw = np.random.default_rng(4)
    (fair,) = length_bias(*judged_round(draw, 600), [])
    (biased,) = length_bias(*judged_round(draw, 600, 0.5), [])
    (opposed,) = length_bias(*judged_round(draw, 600, -0.5), [])
    assert fair["low"] < 0 < fair["high"]
    assert biased["low"] > 0.1
    assert opposed["high"] < -0.1


def test_verdicts_in_both_orders_tell_length_and_position() -> None:
    # A longer wrong text wins from either place, a shorter wrong one loses from either: all errors are for length.
    judged = [{**row, "completion_id": str(i)} for i, row in enumerate(scored((0.9, 0.1), (0.9, 0.1)))]
    verified = scored((0.0, 1.0), (1.0, 0.0))
    games = [
        {"prompt_id": f"p{int(a) // 2}", "first_id": a, "second_id": b, "first_wins": wins}
        for a, b, wins in (("0", "1", 1.0), ("1", "0", 0.0), ("2", "3", 1.0), ("3", "2", 0.0))
    ]
    assert named(length_bias(judged, verified, ["long", "s", "long", "s"], games)) == {"length_bias": 1.0, "position_bias": 0.0}


def test_self_preference_is_of_texts_of_others_at_the_same_verdict() -> None:
    # Own texts score 1 more than given ones of the same verdict. A contrasting prompt's answers are left out.
    judged = [{**row, "completion_id": str(i)} for i, row in enumerate(scored((2.0, 1.0, 9.0), (2.0, 1.0, 9.0)))]
    verified = [{**row, "completion_id": str(i)} for i, row in enumerate(scored((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)))]
    origins = dict(zip("012345", ("policy", "given", "contrast") * 2, strict=True))
    (row,) = self_preference(judged, verified, origins, "policy")
    assert (row["metric"], row["value"], row["n"]) == ("self_preference", pytest.approx(2.0), 2)
    assert self_preference(judged, verified, {}, "policy") == self_preference(judged, verified, origins, "") == []


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ((0.06, 0.3), (0.06, 0.3), ["likes length bias"]),
        ((0.05, 0.3), (0.06, 0.3), []),  # not surely beyond the floor in the round before
        ((0.06, 0.3), (0.05, 0.3), []),
        ((-0.3, -0.06), (0.06, 0.3), []),  # the other way round
        ((-0.3, -0.06), (-0.3, -0.06), ["likes length bias"]),
    ],
)
def test_a_watch_needs_a_sure_bias_in_two_rounds_in_a_row(
    first: tuple[float, float], second: tuple[float, float], told: list[str]
) -> None:
    # beyond 5 points in the same direction; not of a scorer that is not rewarded
    before, now = (
        {"judge/likes/length_bias": Metric(value=sum(ends) / 2, low=ends[0], high=ends[1], n=90)} for ends in (first, second)
    )
    scores = [Score(scorer="exact_match"), Score(scorer="judge", name="likes")]
    found = biased_judges(now, before, scores)
    assert [alarm.name for alarm in found] == told
    assert {alarm.level for alarm in found} <= {"watch"}
    assert biased_judges(now, before, [scores[0], Score(scorer="judge", name="likes", weight=0.0)]) == []


@pytest.mark.parametrize("prompts", [32, 128])
def test_a_fair_judge_is_not_called_biased(prompts: int) -> None:
    # At most 1% of campaigns of 20 rounds have a watch: in two rounds in a row, the same way, surely beyond the floor. Rounds
    # have samples of their own, so the chance is at most 19 (p^2 + q^2). One of 60 rounds is allowed by chance.
    draw = np.random.default_rng(prompts)
    rows = [length_bias(*judged_round(draw, prompts), [])[0] for _ in range(60)]
    beyond = sum(row["low"] > SMALLEST["length_bias"] or row["high"] < -SMALLEST["length_bias"] for row in rows)
    assert beyond <= 1


def test_edits_that_a_judge_likes() -> None:
    # Rows of a prompt: two samples, then each edit of them. "bold" always wins, "twice" always ties.
    anchors = scored((0.1, 0.2, 0.1, 0.2, 0.5, 0.6), (0.3, 0.4, 0.3, 0.4, 0.9, 0.9))
    assert named(probes(anchors, ["twice", "bold"])) == {"prefers_twice": 0.0, "prefers_bold": 0.5}


def test_drift_on_frozen_texts() -> None:
    # Every score up by 0.1 keeps the ranking: CREAM's consistency is 1. The ranking reversed: 0. Ties throughout: not counted.
    then = scored((0.1, 0.2, 0.3), (0.5, 0.6), (0.4, 0.4))
    up = [{**row, "value": row["value"] + 0.1} for row in then]
    down = [{**row, "value": 1 - row["value"]} for row in then]
    assert named(drift(up, then, "first")) == {"shift_from_first": pytest.approx(0.1), "consistency_with_first": 1.0}
    assert named(drift(down, then, "first"))["consistency_with_first"] == 0.0


@given(st.lists(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1.0])), min_size=1, max_size=5), max_size=5))
def test_every_metric_is_a_number_in_range_or_null(groups: list[list[tuple[float, float]]]) -> None:
    # Whatever the judge says: never NaN, shares and AUROC between 0 and 1, a gain between -1 and 1, the value in its interval.
    for row in [
        *agreement({f"p{i}": group for i, group in enumerate(groups)}),
        *spread(scored(*([v for v, _ in g] for g in groups)), [str(i) for g in groups for i in range(len(g))]),
    ]:
        assert row["value"] is None or (np.isfinite(row["value"]) and -1 <= row["value"] <= 1)
        assert row["low"] is None or row["low"] <= row["value"] <= row["high"]


@pytest.mark.minutes
def test_a_rounds_judge_health(run_micro: Callable[..., Campaign]) -> None:
    # Rounds carry judge/..., the anchors are the same texts in every round, and the first round has nothing to drift from.
    pairs = 'pair={pairer="best_vs_worst", settings={allow_wrong_chosen=true}}'
    campaign = run_micro("tiny_dpo", JUDGED % "policy", pairs, 'health.edits={twice="{text}{text}"}')
    zero, first, second = campaign.rounds()
    expected = {
        "length_bias",
        "auroc",
        "within_prompt_auroc",
        "brier",
        "ece",
        "selection_gain",
        "tied_prompts",
        "saturated",
        "prefers_twice",
    }
    assert {f"judge/judge/{name}" for name in expected} <= first.metrics.keys()
    assert not [name for name in zero.metrics if name.startswith("judge/")]
    assert first.artifacts["anchors"] == second.artifacts["anchors"]
    assert "judge/judge/shift_from_first" not in first.metrics
    assert second.metrics["judge/judge/shift_from_previous"].n == 8  # probe prompts, each with its edits and samples
    assert not [name for name in run_micro("tiny_dpo", name="plain").rounds()[1].metrics if name.startswith("judge/")]

    # Any other scorer beside the verifier is compared with it too; without a model there are no anchors to judge again.
    votes = 'score=[{scorer="tests.micro:ends_even", weight=0.0}, {scorer="votes", settings={after="#"}}]'
    voted = run_micro("tiny_dpo", votes, pairs, name="voted").rounds()[1]
    assert {"judge/votes/auroc", "judge/votes/within_prompt_auroc", "judge/votes/selection_gain"} <= voted.metrics.keys()
    assert "judge/votes/prefers_twice" not in voted.metrics

    # The template is in MLflow's prompt registry once, and again only when its text has changed.
    client = MlflowClient(f"sqlite:///{campaign.home / 'mlflow.db'}", f"sqlite:///{campaign.home / 'mlflow.db'}")
    assert used(campaign) == ["tiny_verdict"]
    mirror_templates(client, campaign)
    known = client.load_prompt("prompts:/ratchet-judge-tiny_verdict@latest", cache_ttl_seconds=0)
    assert (known.version, known.template) == (1, templates.load("tiny_verdict").text)


def test_mean_logprob_is_the_samplers_own(run_micro: Callable[..., Campaign]) -> None:
    # On completions the same checkpoint sampled, the score is the mean of the log-probabilities stored with them.
    from data.rows import tables
    from flows.round.artifacts import load

    campaign = run_micro("tiny_raft", "rounds=1")
    made, head = campaign.rounds()[1].artifacts, campaign.rounds()[0].head
    completions = tables.read(
        load(campaign.store, made["generate"]).file("completions.parquet"), tables.COMPLETIONS
    ).to_pylist()
    drawn = tables.read(load(campaign.store, made["draw"]).file("rounds.parquet"), tables.PROMPTS).to_pylist()
    prompts = {row["prompt_id"]: row for row in drawn}
    scorer = mean_logprob(checkpoint=load(campaign.store, head).path)
    scores = scorer([prompts[row["prompt_id"]] for row in completions], completions)
    assert [s.value for s in scores] == pytest.approx([float(np.mean(row["logprobs"])) for row in completions], abs=1e-4)
