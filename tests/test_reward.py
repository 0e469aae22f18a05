"""The reward: scores of unlike scales made one value, what does not apply, and ensembles that no unit can sway."""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data.rows import tables
from tasks.run import parts
from tasks.score import reward
from tasks.score.scorers import Score

Column = Mapping[str, float | None]  # "prompt-sample" -> value
PROMPTS, SAMPLES = 300, 8  # fixed before looking
IDS = [f"{p:03d}-{s}" for p in range(PROMPTS) for s in range(SAMPLES)]
GROUPS = [IDS[i : i + SAMPLES] for i in range(0, len(IDS), SAMPLES)]


def rewarded(folder: Path, columns: Mapping[str, Column], status: str = "no_tokens", **settings: Any) -> dict[str, Any]:
    """The reward of each completion, by the stage; `facts` has its facts."""
    inputs = {f"score/{name}": folder / name for name in columns}
    for name, column in columns.items():
        rows = [
            {"completion_id": i, "prompt_id": i[:3], "value": v, "status": "ok" if v is not None else status, "detail": None}
            for i, v in column.items()
        ]
        (folder / name).mkdir(exist_ok=True)
        tables.write(tables.from_rows(rows, tables.SCORES), tables.SCORES, folder / name / "scores.parquet")
    common = {"weights": dict.fromkeys(columns, 1.0), "how": "sum", "penalty": 1.0, "normalise": "none"}
    reward.reward(SimpleNamespace(settings=reward.Settings(**common | settings), inputs=inputs, out=folder))  # type: ignore[arg-type]
    made = tables.read(folder / "scores.parquet", tables.SCORES).to_pylist()
    facts = json.loads((folder / "facts.json").read_text()) if (folder / "facts.json").exists() else None
    return {row["completion_id"]: row["value"] for row in made} | {"facts": facts}


def drawn(seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Verdicts, right in 40%, and a judge that sees half an SD of them."""
    draw = np.random.default_rng(seed)
    right = {i: float(draw.random() < 0.4) for i in IDS}
    return right, {i: 0.5 * right[i] + float(draw.normal()) for i in IDS}


def best(made: Mapping[str, Any]) -> list[str]:
    return [max(group, key=lambda i: made[i]) for group in GROUPS]


def test_what_does_not_apply_neither_helps_nor_hurts(tmp_path: Path) -> None:
    # a penalty that applies to a random half: the other half is not best more often than its share, nor worst, and its mean
    # reward is that of the half with a penalty. The same for a bonus
    draw = np.random.default_rng(0)
    applies = {i: draw.random() < 0.5 for i in IDS}
    for sign in (-1, 1):
        score = {i: sign * float(draw.random()) if applies[i] else None for i in IDS}
        made = rewarded(tmp_path, {"verifier": dict.fromkeys(IDS, 1.0), "penalty": score})
        without = [made[i] for i in IDS if not applies[i]]
        assert np.mean(without) == pytest.approx(np.mean([made[i] for i in IDS if applies[i]]), abs=0.02)
        for pick in (max, min):
            chosen = [pick(group, key=lambda i: made[i]) for group in GROUPS]
            assert np.mean([not applies[i] for i in chosen]) <= 0.5


def test_an_answer_that_nobody_can_read_gains_nothing_from_the_votes(tmp_path: Path) -> None:
    # a completion without an answer has no vote. Beside another score it is neither chosen nor rejected
    votes: Column = {"000-0": 0.75, "000-1": 0.25, "000-2": None}
    made = rewarded(tmp_path, {"votes": votes, "format": dict.fromkeys(votes, 1.0)}, status="no_answer_found")
    assert [made[i] for i in votes] == [1.75, 1.25, None]


def test_where_a_scorer_applies_to_no_completion_of_a_prompt_the_others_decide(tmp_path: Path) -> None:
    # it adds nothing there, so a floor for the reward means what it meant
    made = rewarded(
        tmp_path,
        {"verifier": {"000-0": None, "000-1": None, "001-0": 1.0}, "judge": {"000-0": 0.2, "000-1": 0.9, "001-0": 0.5}},
    )
    assert (made["000-0"], made["000-1"], made["001-0"]) == (0.2, 0.9, 1.5)


@pytest.mark.parametrize("normalise", ["prompt", "round"])
def test_normalised_scores_weigh_by_their_weights_alone(tmp_path: Path, normalise: str) -> None:
    # a verifier of 0 and 1 and an independent reward model in logits share the variance; whatever its unit and offset, the
    # choice is the same. As they are, the model has nearly all of it
    right, draw = drawn(1)[0], np.random.default_rng(2)
    logits = {i: float(draw.normal()) for i in IDS}
    plain = rewarded(tmp_path, {"verifier": right, "model": {i: 5 * v + 3 for i, v in logits.items()}})
    assert plain["facts"]["reward_share"]["model"] > 0.95
    first = rewarded(tmp_path, {"verifier": right, "model": logits}, normalise=normalise)
    assert first["facts"]["reward_share"]["model"] == pytest.approx(0.5, abs=0.05)
    for unit, offset in ((5.0, 3.0), (0.01, -200.0)):
        again = rewarded(
            tmp_path, {"verifier": right, "model": {i: unit * v + offset for i, v in logits.items()}}, normalise=normalise
        )
        assert best(again) == best(first)
    heavy = rewarded(
        tmp_path, {"verifier": right, "model": logits}, normalise=normalise, weights={"verifier": 3.0, "model": 1.0}
    )
    assert heavy["facts"]["reward_share"]["verifier"] == pytest.approx(0.9, abs=0.03)  # 9 to 1: variances go by squares


def test_normalised_within_the_prompt_is_grpos_advantage(tmp_path: Path) -> None:
    # (r - mean) / sd of the group, sd of the sample as in TRL; a prompt of equal values has 0
    made = rewarded(tmp_path, {"a": {"000-0": 1.0, "000-1": 2.0, "000-2": 6.0, "001-0": 4.0, "001-1": 4.0}}, normalise="prompt")
    sd = statistics.stdev([1.0, 2.0, 6.0])
    assert [made[i] for i in ("000-0", "000-1", "000-2")] == pytest.approx([-2 / sd, -1 / sd, 3 / sd])
    assert (made["001-0"], made["001-1"]) == (0.0, 0.0)


def test_shares_add_up_and_one_score_alone_has_no_facts(tmp_path: Path) -> None:
    # by hand: 0 and 1 against 0 and 3, in step: 1/4 and 3/4; a sum that does not vary has none
    made = rewarded(tmp_path, {"a": {"000-0": 0.0, "000-1": 1.0}, "b": {"000-0": 0.0, "000-1": 3.0}})
    assert made["facts"] == {"reward_share": {"a": 0.25, "b": 0.75}}
    made = rewarded(tmp_path, {"a": {"000-0": 0.0, "000-1": 1.0}, "b": {"000-0": 1.0, "000-1": 0.0}})
    assert made["facts"] == {"reward_share": None}
    (tmp_path / "facts.json").unlink()
    assert rewarded(tmp_path, {"a": {"000-0": 0.0, "000-1": 1.0}})["facts"] is None


# -- ensembles ----------------------------------------------------------------------------------------------------------
WAYS = [("mean", 1.0), ("median", 1.0), ("min", 1.0), ("pessimistic", 0.5), ("pessimistic", 1.0)]


def number(prompts: Sequence[Any], completions: Sequence[Any], *, place: int) -> list[Score]:
    """A member that reads its value from the completion's text."""
    return [Score(float(row["text"].split()[place])) for row in completions]


@functools.cache
def ensemble(members: int, how: str, penalty: float) -> Any:
    numbers = [{"scorer": "tests.test_reward:number", "settings": {"place": k}} for k in range(members)]
    return parts.configure("scorers", "ensemble", {"members": numbers, "how": how, "penalty": penalty}, workers=1)


def combined(values: np.ndarray, how: str, penalty: float) -> np.ndarray:
    """The scorer `ensemble` on one prompt: values are completions x members."""
    scorer = ensemble(values.shape[1], how, penalty)
    rows = [{"prompt_id": "p", "text": " ".join(map(repr, line))} for line in values.tolist()]
    return np.array([score.value for score in scorer([{}] * len(rows), rows)])


@pytest.mark.parametrize(("how", "penalty"), WAYS)
def test_a_higher_value_of_a_member_never_lowers_an_ensemble(how: str, penalty: float) -> None:
    # 300 draws of 2 to 5 members, of verdicts and of logits: one value of a completion is raised, and its ensemble is not lower
    draw = np.random.default_rng(4)
    for _ in range(300):
        values = draw.normal(size=(6, int(draw.integers(2, 6)))) * 3
        values[:, 0] = draw.random(6) < 0.5
        raised, one, member = values.copy(), int(draw.integers(6)), int(draw.integers(values.shape[1]))
        raised[one, member] += 1.0 if member == 0 else float(draw.exponential(3))
        assert combined(raised, how, penalty)[one] >= combined(values, how, penalty)[one] - 1e-8


@pytest.mark.parametrize(("how", "penalty"), WAYS)
def test_neither_unit_nor_offset_of_a_member_sways_an_ensemble(how: str, penalty: float) -> None:
    # 200 draws: every completion keeps its value, whatever each member's scale
    draw = np.random.default_rng(5)
    for _ in range(200):
        values = draw.normal(size=(6, 3))
        other = values * np.exp(draw.normal(0, 3, 3)) + draw.normal(0, 10, 3)
        assert combined(other, how, penalty) == pytest.approx(combined(values, how, penalty), abs=1e-6)


@pytest.mark.parametrize(("how", "penalty"), WAYS)
def test_the_judges_scale_does_not_decide_who_is_best(tmp_path: Path, how: str, penalty: float) -> None:
    # reward.how over a verifier and a judge: the same completions are best at every offset and unit, and they are right oftener
    # than the judge alone chooses
    right, judge = drawn(6)
    first = best(rewarded(tmp_path, {"verifier": right, "judge": judge}, how=how, penalty=penalty))
    for unit, offset in ((1.0, -2.0), (1.0, 2.0), (0.1, 0.0), (10.0, 50.0)):
        moved = {i: unit * v + offset for i, v in judge.items()}
        assert best(rewarded(tmp_path, {"verifier": right, "judge": moved}, how=how, penalty=penalty)) == first
    assert np.mean([right[i] for i in first]) > np.mean([right[i] for i in best(judge)])


def test_a_member_that_sees_no_difference_leaves_the_order_to_the_others() -> None:
    # all right, also by values that differ by rounding only: the mean and the median go by the judge
    judge = np.array([0.3, 0.9, 0.1])
    for verdict in (np.ones(3), np.array([0.3, 0.1 + 0.2, 0.3])):
        order = combined(np.stack([verdict, judge], axis=1), "mean", 1.0).argsort()
        assert order.tolist() == judge.argsort().tolist()
