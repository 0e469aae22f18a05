from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.score import verify_pool
from tasks.score.scorers import Score, consensus, shaping

Groups = list[list[tuple[int, float | None]]]  # a prompt's samples, as length and verdict
SAMPLE = st.tuples(st.integers(0, 30), st.sampled_from((1.0, 0.0, None)))
GROUPS = st.lists(st.lists(SAMPLE, min_size=1, max_size=6), max_size=3)


@pytest.fixture(autouse=True, scope="module")
def _no_workers_left() -> Iterator[None]:
    yield
    verify_pool._close()


def rows(groups: Groups) -> tuple[list[Any], list[Any], list[float | None]]:
    completions = [
        {"prompt_id": f"p{p}", "token_ids": list(range(length)), "finish_reason": "stop", "text": "x" * length}
        for p, group in enumerate(groups)
        for length, _ in group
    ]
    return [{} for _ in completions], completions, [verdict for group in groups for _, verdict in group]


def shape(scorer: Any, groups: Groups, **settings: Any) -> list[list[float | None]]:
    prompts, completions, verdicts = rows(groups)
    values = iter(score.value for score in scorer(prompts, completions, verdicts=verdicts, **settings))
    return [[next(values) for _ in group] for group in groups]


def test_kimi_length() -> None:
    # By hand: per prompt from 0.5 (shortest) to -0.5 (longest); wrong ones never above 0; all equally long: 0.
    groups: Groups = [[(10, 1.0), (20, 1.0), (15, 0.0), (10, 0.0), (12, None)], [(7, 1.0), (7, 0.0)], [(100, 1.0), (0, 1.0)]]
    assert shape(shaping.kimi_length, groups) == [[0.5, -0.5, 0.0, 0.0, None], [0.0, 0.0], [-0.5, 0.5]]


def test_efficient_length() -> None:
    # The right samples' own mean and spread count; wrong is 0; one right sample alone is at the middle of the sigmoid.
    low, high = (1 - 0.4 / (1 + math.exp(z)) for z in (1, -1))
    got = shape(shaping.efficient_length, [[(10, 1.0), (30, 1.0), (500, 0.0)], [(9, 1.0)]], alpha=0.4)
    assert got[0] == pytest.approx([low, high, 0.0])
    assert got[1] == pytest.approx([0.8])


def test_cosine_length() -> None:
    # The ends of both curves, and beyond them: the paper's run scripts.
    got = shape(shaping.cosine_length, [[(0, 1.0), (100, 1.0), (0, 0.0), (100, 0.0), (101, 1.0)]], max_tokens=100)
    assert got[0] == pytest.approx([2.0, 1.0, -10.0, 0.0, -10.0])
    prompts, completions, _ = rows([[(5, 1.0)]])
    completions[0]["finish_reason"] = "length"
    assert shaping.cosine_length(prompts, completions, max_tokens=100, verdicts=[1.0]) == [Score(-10.0)]


@given(GROUPS)
def test_shaping_is_bounded_and_prefers_short_right_ones(groups: Groups) -> None:
    # Within a prompt, among right answers a shorter one never gets less; no verdict, no value; nothing leaves its range.
    scorers = (
        (functools.partial(shape, shaping.kimi_length), -0.5, 0.5),
        (functools.partial(shape, shaping.efficient_length, alpha=0.3), 0.0, 1.0),
        (functools.partial(shape, shaping.cosine_length, max_tokens=30), -10.0, 2.0),
    )
    for score, low, high in scorers:
        for group, values in zip(groups, score(groups), strict=True):
            assert [value is None for value in values] == [verdict is None for _, verdict in group]
            known = [(length, value or 0.0) for (length, verdict), value in zip(group, values, strict=True) if verdict == 1.0]
            assert all(low - 1e-9 <= value <= high + 1e-9 for value in values if value is not None)
            assert all(a >= b - 1e-9 for m, a in known for n, b in known if m <= n)


def test_other_prompts_change_nothing() -> None:
    # Shortest and longest are those of the prompt's own samples; open-r1 takes them over the whole batch.
    alone = shape(shaping.kimi_length, [[(10, 1.0), (20, 1.0)]])
    assert shape(shaping.kimi_length, [[(10, 1.0), (20, 1.0)], [(1, 1.0), (999, 1.0)]])[:1] == alone


def test_soft_overlong_and_repetition() -> None:
    # A line over the last stretch; the share of n-grams seen before; unknown tokens have no value.
    lengths: Groups = [[(n, None) for n in (0, 80, 90, 100, 120)]]
    prompts, completions, _ = rows(lengths)
    assert [s.value for s in shaping.soft_overlong(prompts, completions, max_tokens=100, cache=20)] == [0, 0, -0.5, -1, -1]
    tokens = [[1, 2, 3, 4], [1, 1, 1, 1, 1], [1, 2], [], None]
    completions = [{"token_ids": t, "finish_reason": "stop", "prompt_id": "p"} for t in tokens]
    assert [s.value for s in shaping.repetition([], completions)] == pytest.approx([0.0, 1 / 3 - 1, 0.0, 0.0, None])
    assert shaping.kimi_length([], completions[-1:], verdicts=[1.0]) == [Score(None, "no_tokens")]


LENGTHS = st.lists(st.integers(0, 200), min_size=1, max_size=8)


@given(LENGTHS, st.integers(10, 100), st.integers(1, 60))
def test_soft_overlong_is_daps_line_and_decides_nothing_below_it(lengths: list[int], limit: int, cache: int) -> None:
    # TRL's own function gives the same; completions in the window keep their order, because all of them have 0
    from trl.rewards import get_soft_overlong_punishment

    prompts, completions, _ = rows([[(n, None) for n in lengths]])
    made = [s.value for s in shaping.soft_overlong(prompts, completions, max_tokens=limit, cache=min(cache, limit))]
    theirs = get_soft_overlong_punishment(max_completion_len=limit, soft_punish_cache=min(cache, limit))
    assert made == pytest.approx(theirs([row["token_ids"] for row in completions]))
    assert {value for value, n in zip(made, lengths, strict=True) if n <= limit - min(cache, limit)} <= {0.0}


@given(st.lists(st.lists(st.integers(0, 3), max_size=30), min_size=1, max_size=5), st.integers(1, 4))
def test_repetition_is_trls(texts: list[list[int]], n: int) -> None:
    # the share of repeated n-grams, as TRL's own function has it
    from trl.rewards import get_repetition_penalty_reward

    completions = [{"token_ids": tokens, "finish_reason": "stop", "prompt_id": "p"} for tokens in texts]
    made = [score.value for score in shaping.repetition([], completions, n=n)]
    assert made == pytest.approx(get_repetition_penalty_reward(ngram_size=n)(texts))


@given(GROUPS)
def test_a_wrong_answer_gains_nothing_by_its_length(groups: Groups) -> None:
    # Kimi: a wrong one is never above a right one of its length, nor above 0; cosine: among wrong ones a longer one never gets
    # less; efficient: all wrong ones have 0
    for group, kimi, cosine, efficient in zip(
        groups,
        shape(shaping.kimi_length, groups),
        shape(shaping.cosine_length, groups, max_tokens=30),
        shape(shaping.efficient_length, groups, alpha=0.3),
        strict=True,
    ):
        wrong = [i for i, (_, verdict) in enumerate(group) if verdict == 0.0]
        assert all((kimi[i] or 0.0) <= 0 and efficient[i] == 0 for i in wrong)
        assert all((cosine[i] or 0.0) >= (cosine[j] or 0.0) - 1e-9 for i in wrong for j in wrong if group[i][0] >= group[j][0])


def voted(texts: list[str], finish: str = "stop", **settings: Any) -> list[float | None]:
    completions = [{"prompt_id": "p", "text": text, "finish_reason": finish} for text in texts]
    return [score.value for score in consensus.votes([{} for _ in texts], completions, **settings)]


@given(st.lists(st.sampled_from(["#1", "#2", "so #1", "no answer", "#"]), max_size=8))
def test_votes_are_shares_of_the_samples(texts: list[str]) -> None:
    # An answer's share among all samples of its prompt; a text without one has no value, but counts as a sample.
    count = Counter(text[-1] for text in texts if text[-1] in "12")
    want = [count[text[-1]] / len(texts) if text[-1] in "12" else None for text in texts]
    assert voted(texts, after="#") == want


PLAIN = ("42", "-42", "4.2", "42%", "5!", "Paris", "x", "1000", "(1, 2]")
DRESS: tuple[Callable[[str], str], ...] = (
    str, lambda a: f" {a} ", lambda a: f"{a}.", lambda a: f"**{a}**", lambda a: f"${a}$", lambda a: f"`{a}`.",
    lambda a: a.replace("1000", "1,000"), lambda a: f"{a},", lambda a: f"\\${a}",
)  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(PLAIN), st.sampled_from(range(len(DRESS)))), min_size=1, max_size=8))
def test_dress_does_not_split_the_votes(answers: list[tuple[str, int]]) -> None:
    # however it is written, an answer has the votes of all samples that say it; other answers never join it
    count = Counter(answer for answer, _ in answers)
    assert voted([f"so #{DRESS[i](answer)}" for answer, i in answers], after="#") == [
        count[answer] / len(answers) for answer, _ in answers
    ]


def test_the_vote_is_right_more_often_than_a_sample() -> None:
    # self-consistency: a sample is right with 0.4, wrong ones scatter over ten answers. Of 16 samples the most voted answer is
    # right at least twice as often as a sample (200 prompts)
    draw = np.random.default_rng(9)
    answers = np.where(draw.random((200, 16)) < 0.4, 0, draw.integers(1, 11, (200, 16)))
    shares = np.array([voted([f"#{a}" for a in prompt], after="#") for prompt in answers.tolist()], dtype=float)
    first = answers[np.arange(200), shares.argmax(1)]
    assert (first == 0).mean() >= 2 * (answers == 0).mean()


def test_votes_of_equal_mathematics() -> None:
    # 1/2 and 0.5 are one answer, on real math-verify; prompts do not vote for each other; a cut text does not vote.
    assert voted(["\\boxed{\\frac{1}{2}}", "so $0.5$", "it is 3", "it is 3", "1/2"], read="mathematics") == [
        0.6,
        0.6,
        0.4,
        0.4,
        0.6,
    ]
    assert voted(["it is 3"], finish="length", read="mathematics") == [None]
    completions = [{"prompt_id": p, "text": "it is 3", "finish_reason": "stop"} for p in "aab"]
    assert [s.value for s in consensus.votes([], completions, read="mathematics")] == [1.0, 1.0, 1.0]
