"""Process scores by rollouts: what a step is, what is sampled on from it, and what the scorer makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.rows import tables
from data.store.campaign import Campaign
from flows.round.artifacts import load
from tasks.generate.prefixes import begun
from tasks.models import models
from tasks.score.scorers import Score
from tasks.score.scorers.process import shrunk, step_rollouts
from tests.tiny_llama import make

ASKED = [{"role": "user", "content": "2+3+4?"}]


def start(text: str) -> str:
    return tables.prompt_id([*ASKED, {"role": "assistant", "content": text}])


@given(st.text("ab;", max_size=12), st.integers(2, 4))
def test_a_text_is_cut_after_each_step_but_the_last(text: str, steps: int) -> None:
    # Starts grow by one step each; a run of separators ends one step; no more than `steps`; the whole is no start.
    starts = [messages[-1]["content"] for messages in begun(ASKED, text, ";", steps)]
    said = [part for part in text.lstrip(";").split(";") if part]
    assert len(starts) == max(0, min(steps, len(said)) - 1)
    for count, one in enumerate(starts, start=1):
        assert text.startswith(one)
        assert one.endswith(";")
        assert text[len(one)] != ";"
        assert [part for part in one.split(";") if part] == said[:count]


def test_a_hostile_text_has_few_starts() -> None:
    # A text of a million steps costs no more than the number of steps that the setting allows.
    assert len(begun(ASKED, "a;" * 1_000_000, ";", 32)) == 31


def test_a_solution_is_as_good_as_its_worst_step(tmp_path: Path) -> None:
    # Shares of the known verdicts, the solution's own verdict last; one unknown step and nothing is claimed. By hand: shares 1
    # and 1/2 of two vary by 1/8, chance explains 3/32, so a quarter of their distance to the mean 3/4 stays.
    verdicts: dict[str, list[float | None]] = {"5;": [1.0, 1.0, None], "6;": [0.0, 0.0], "5;9;": [1.0, 0.0]}
    rows = [
        {"completion_id": f"{text}{i}", "prompt_id": start(text), "value": value, "status": "ok", "detail": None}
        for text, values in verdicts.items()
        for i, value in enumerate(values)
    ]
    tables.write(tables.from_rows(rows, tables.SCORES), tables.SCORES, tmp_path / "scores.parquet")
    scorer = step_rollouts(separator=";", rollouts=tmp_path)
    texts: dict[str, float | None] = {"5;9;#9": 1.0, "6;#9": 1.0, "5;#8": 0.0, "#9": 1.0, "7;#9": 1.0, "5;#9": None}
    completions = [{"text": text} for text in texts]
    prompts: list[dict[str, Any]] = [{"messages": ASKED}] * len(texts)
    assert scorer(prompts, completions, verdicts=list(texts.values())) == [
        Score(0.6875, "ok", "[1.0, 0.5, 1.0]"),
        Score(0.0, "ok", "[0.0, 1.0]"),
        Score(0.0, "ok", "[1.0, 0.0]"),
        Score(1.0, "ok", "[1.0]"),
        Score(None, "no_verdict", "[null, 1.0]"),
        Score(None, "no_verdict", "[1.0, null]"),
    ]


def right_solutions(folder: Path, truths: Sequence[Sequence[float]], seed: int, samples: int = 8) -> np.ndarray:
    """Scores of solutions with a right answer, of whose steps a continuation is right with these probabilities."""
    draw = np.random.default_rng(seed)
    texts = ["".join(f"{n}.{i};" for i in range(len(truth))) + f"{n}" for n, truth in enumerate(truths)]
    rows = [
        {
            "completion_id": f"{name}{j}",
            "prompt_id": name,
            "value": float(draw.random() < chance),
            "status": "ok",
            "detail": None,
        }
        for text, truth in zip(texts, truths, strict=True)
        for messages, chance in zip(begun(ASKED, text, ";", 64), truth, strict=True)
        for name in [tables.prompt_id(messages)]
        for j in range(samples)
    ]
    tables.write(tables.from_rows(rows, tables.SCORES), tables.SCORES, folder / "scores.parquet")
    scorer = step_rollouts(separator=";", steps=64, samples=samples, rollouts=folder)
    prompts: list[dict[str, Any]] = [{"messages": ASKED}] * len(texts)
    scores = scorer(prompts, [{"text": text} for text in texts], verdicts=[1.0] * len(texts))
    return np.array([score.value for score in scores])


@pytest.mark.parametrize("chance", [0.5, 0.7, 0.9])
def test_equally_good_solutions_score_alike_whatever_their_number_of_steps(tmp_path: Path, chance: float) -> None:
    # 150 solutions each of 1, 5 and 31 sampled steps of one true value: the mean score is nearly that value (0.64 for 0.9 over
    # 31 steps without shrinking), and of a short and a long solution the short one is not preferred beyond 6 to 4
    by_steps = {n: right_solutions(tmp_path, [[chance] * n] * 150, n) for n in (1, 5, 31)}
    for n, scores in by_steps.items():
        assert scores.mean() == pytest.approx(chance, abs=0.06), n
    short, long = by_steps[5][:, None], by_steps[31][None]
    assert 0.4 < (short > long).mean() + (short == long).mean() / 2 < 0.6


@pytest.mark.parametrize("steps", [4, 20])
def test_a_wrong_step_is_seen_however_long_the_solution(tmp_path: Path, steps: int) -> None:
    # a wrong last step, after which continuations hardly ever end right: such a solution scores below a sound one of as many
    # steps, and of three times as many, in at least 90 of 100 comparisons
    sound = right_solutions(tmp_path, [[0.8] * steps] * 100, 1)
    longer = right_solutions(tmp_path, [[0.8] * 3 * steps] * 100, 2)
    flawed = right_solutions(tmp_path, [[0.8] * (steps - 1) + [0.05]] * 100, 3)
    for other in (sound, longer):
        assert (other[:, None] > flawed[None]).mean() > 0.9


def test_a_start_stands_as_if_it_had_been_sampled(tmp_path: Path) -> None:
    # The tokens of prompt and start are those of the prompt and then the start: no turn ends between them.
    tokenizer = models.load_tokenizer(make(tmp_path))
    begin = {"role": "assistant", "content": "2+3=5\n"}
    known = tokenizer(begin["content"], add_special_tokens=False)["input_ids"]
    assert models.render(tokenizer, [*ASKED, begin]) == models.render(tokenizer, ASKED) + known


def test_a_campaign_scores_steps(run_micro: Callable[..., Campaign]) -> None:
    # Every start of every completion is continued `samples` times from the head, judged whole, and found again by the scorer.
    how = '{scorer="step_rollouts", name="steps", settings={separator=";", steps=4, samples=2}}'
    score = f'score=[{{scorer="tests.micro:ends_even"}}, {how}]'
    campaign = run_micro("tiny_raft", score, "rounds=1", "prompts.per_round=8")
    made = campaign.rounds()[1].artifacts

    def read(label: str, file: str, schema: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = tables.read(load(campaign.store, made[label]).file(file), schema).to_pylist()
        return rows

    texts = [row["text"] for row in read("generate", "completions.parquet", tables.COMPLETIONS)]
    starts = {
        row["prompt_id"]: row["messages"][-1]["content"]
        for row in read("rollouts/steps/prefixes", "rounds.parquet", tables.PROMPTS)
    }
    drawn = read("rollouts/steps/drawn", "completions.parquet", tables.COMPLETIONS)
    whole = read("rollouts/steps/continued", "completions.parquet", tables.COMPLETIONS)
    assert starts
    assert [row["text"] for row in whole] == [starts[row["prompt_id"]] + row["text"] for row in drawn]
    assert len(whole) == 2 * len(starts)
    scores = read("score/steps", "scores.parquet", tables.SCORES)
    own = read("score/tests.micro:ends_even", "scores.parquet", tables.SCORES)
    for text, scored, verdict in zip(texts, scores, own, strict=True):
        steps = json.loads(scored["detail"])
        assert len(steps) == 1 + len(begun(ASKED, text, ";", 4))
        assert steps[-1] == verdict["value"]
        shares = shrunk(steps[:-1], [2] * len(steps[:-1]))
        assert scored["value"] == min([*shares, steps[-1]])
