"""What each selector and pairer promises, as a law over many prompts: from its paper, with fixed seeds and sizes.

A figure is allowed 4 standard errors. So with other seeds one run in about a hundred would fail somewhere. The seeds are fixed,
and were not chosen.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from data.recipe.settings import Hardware
from data.rows import tables
from data.rows.completions import by_prompt, is_right, is_wrong
from tasks.choose import pair, select
from tasks.choose.chosen_facts import pair_facts, selection_facts
from tasks.choose.mitigations import chosen as mitigations
from tasks.choose.pairers import origins, recorded
from tasks.choose.pairers import rewards as pairers
from tasks.choose.selectors import best, labels
from tasks.evaluate.measure import right_by_prompt
from tasks.run import parts
from tasks.run.work import Work

Row = dict[str, Any]
Sample = tuple[str, float | None, float | None]  # text, verdict, reward
Judged = tuple[list[Row], dict[str, float | None], dict[str, dict[str, float | None]]]
VOCABULARY = ["".join(random.Random(i).choices("aeioudhlnrst", k=2 + i % 7)) for i in range(400)]
ZIPF = [1 / (1 + i) for i in range(400)]
SENTENCES = [" ".join(VOCABULARY[(7 * i + 3 * j * j) % 400] for j in range(8)) for i in range(60)]


def judged(groups: Sequence[Sequence[Sample]]) -> Judged:
    """Completions, rewards and verdicts, one group per prompt, with ids as stages make them."""
    rows, reward, verdict = [], {}, {}
    for number, group in enumerate(groups):
        prompt = tables.prompt_id([{"role": "user", "content": f"prompt {number}"}])
        for sample, (text, value, worth) in enumerate(group):
            key = tables.completion_id("generate/1", prompt, sample)
            rows.append({"completion_id": key, "prompt_id": prompt, "sample": sample, "text": text, "finish_reason": "stop"})
            rows[-1] |= {"token_ids": [1] * len(text.split()), "group": number}
            reward[key], verdict[key] = worth, value
    return rows, reward, {"verifier": verdict}


def drawn(prompts: int, n: int, draw: Callable[[random.Random], Sample], seed: int = 0) -> Judged:
    rng = random.Random(seed)
    return judged([[draw(rng) for _ in range(n)] for _ in range(prompts)])


def rows_of(chosen: Sequence[Row], completions: Sequence[Row], key: str = "completion_id") -> list[Row]:
    row_of = {row["completion_id"]: row for row in completions}
    return [row_of[row[key]] for row in chosen]


def within(observed: Sequence[float], expected: float, spread: float | None = None) -> bool:
    """Whether a mean is within 4 standard errors. `spread`: the standard deviation, by default that of a share."""
    deviation = math.sqrt(expected * (1 - expected)) if spread is None else spread
    return abs(float(np.mean(observed)) - expected) <= 4 * deviation / math.sqrt(len(observed)) + 1e-9


def follows(values: Sequence[Any], law: Mapping[Any, float]) -> bool:
    """Whether each value of a law is as frequent as it says."""
    total = sum(law.values())
    return all(within([float(value == key) for value in values], weight / total) for key, weight in law.items())


# -- one meaning of right ------------------------------------------------------------------------------------------------
def test_right_means_the_same_everywhere(tmp_path: Path) -> None:
    # of partial credit and of rewards above 1: what accuracy counts is what is selected, labelled, paired and counted as right
    values = (None, 0.0, 0.1, 0.5, 0.999, 1.0, 1.5, 2.0, -1.5)
    completions, reward, scores = judged([[(f"start\ntext {value}", value, value) for value in values]])
    verdict = scores["verifier"]
    keys = [{k: row[k] for k in ("prompt_id", "completion_id")} for row in completions]
    scored = [key | {"value": verdict[key["completion_id"]], "status": "ok", "detail": None} for key in keys]
    tables.write(tables.from_rows(scored, tables.SCORES), tables.SCORES, tmp_path / "scores.parquet")
    measured = next(iter(right_by_prompt(tmp_path).values()))
    known = [row for row in completions if verdict[row["completion_id"]] is not None]
    counted = {row["completion_id"] for row, right in zip(known, measured, strict=True) if right}
    others = {row["completion_id"] for row in known} - counted
    assert {key for key, value in verdict.items() if is_right(value)} == counted
    assert {key for key, value in verdict.items() if is_wrong(value)} == others
    for selector in (best.all_correct, best.shortest_correct, best.diverse_correct):
        assert {row["completion_id"] for row in selector(completions, reward, scores, cap=9)} == counted
    labelled = {row["completion_id"]: row["label"] for row in labels.labelled(completions, reward, scores, cap=0)}
    assert labelled == dict.fromkeys(counted, True) | dict.fromkeys(others, False)
    for pairer in (pairers.right_vs_wrong, pairers.longest_shared_prefix):
        pairs = pairer(completions, reward, scores, cap=0)
        assert {pair["rejected_id"] for pair in pairs} == others
        assert {pair["chosen_id"] for pair in pairs} <= counted
        turned = [pair | {"chosen_id": pair["rejected_id"], "rejected_id": pair["chosen_id"]} for pair in pairs]
        facts = pair_facts(turned, completions, reward, scores)
        assert facts["wrong_chosen"] == facts["right_rejected"] == len(pairs)


@pytest.mark.parametrize("verdict", [0.5, 2.0])
def test_a_wrong_answer_is_never_chosen_whatever_its_credit(verdict: float) -> None:
    # partial credit is wrong for the pairers that go by reward and refuse wrong answers, a verdict above 1 is not
    completions, reward, scores = judged([[("good", verdict, 1.0), ("bad", 0.0, 0.0)]])
    origin = dict(zip(reward, ("policy", "base"), strict=True))
    expected = int(is_right(verdict))
    assert len(pairers.best_vs_worst(completions, reward, scores)) == expected
    assert len(pairers.all_over_margin(completions, reward, scores, minimum_margin=0.1)) == expected
    assert len(origins.best_vs_base(completions, reward, scores, origins=origin)) == expected


# -- rejection sampling --------------------------------------------------------------------------------------------------
LEVELS = {0.0: 0.4, 0.5: 0.3, 1.0: 0.3}  # reward -> its share under the policy


def tilted(beta: float) -> dict[float, float]:
    return {reward: share * math.exp(reward / beta) for reward, share in LEVELS.items()}


def of_levels(rng: random.Random) -> Sample:
    worth = rng.choices(list(LEVELS), list(LEVELS.values()))[0]
    return f"{worth} {rng.random()}", float(worth == 1.0), worth


@functools.cache
def of_32() -> Judged:
    return drawn(1000, 32, of_levels)


@pytest.mark.parametrize("beta", [0.1, 0.5, 5.0])
def test_rejection_sampling_follows_the_tilted_policy(beta: float) -> None:
    # RSO, theorem 1: accepted are drawn from the policy times exp(reward / beta); 8 of 32, 1,000 prompts
    completions, reward, scores = of_32()
    taken = best.rejection_sampling(completions, reward, scores, beta=beta, count=8)
    assert follows([reward[row["completion_id"]] for row in taken], tilted(beta))
    assert max(Counter(row["prompt_id"] for row in taken).values()) == 8


@pytest.mark.parametrize("beta", [0.1, 0.5, 5.0])
def test_a_large_count_does_not_fill_up_with_what_was_rejected(beta: float) -> None:
    # 15 of 16 may be accepted, and still the accepted follow the tilted pools, whose highest rewards may be below 1
    completions, reward, scores = drawn(2000, 16, of_levels)
    taken = best.rejection_sampling(completions, reward, scores, beta=beta, count=15)
    law: Counter[float] = Counter()
    for pool in by_prompt(completions).values():
        values = [reward[row["completion_id"]] or 0.0 for row in pool]
        for value in values:
            law[value] += math.exp((value - max(values)) / beta)  # type: ignore[assignment]
    assert follows([reward[row["completion_id"]] for row in taken], law)


@pytest.mark.parametrize("beta", [0.5, 5.0])
@pytest.mark.parametrize("count", [8, 31])
def test_pairs_of_rejection_sampling_are_two_draws_of_the_tilted_policy(beta: float, count: int) -> None:
    # both sides are independent draws, the better one chosen and ties left out; of 32, 1,000 prompts
    completions, reward, scores = of_32()
    pairs = pairers.rejection_sampled(completions, reward, scores, beta=beta, count=count)
    share = tilted(beta)
    law = {(high, low): share[high] * share[low] for high in LEVELS for low in LEVELS if high > low}
    assert follows([(reward[pair["chosen_id"]], reward[pair["rejected_id"]]) for pair in pairs], law)


def test_facts_tell_the_acceptance_rate_and_what_it_gains() -> None:
    # the rate is the mean of exp((r - 1) / beta); the accepted are better than the pool by what the tilt says
    completions, reward, _ = of_32()
    law = tilted(0.5)
    for family, name in (("selectors", "rejection_sampling"), ("pairers", "rejection_sampled")):
        about = parts.facts_about(family, name)
        assert about is not None
        facts = about(completions, reward, beta=0.5, count=8)
        assert facts["acceptance_rate"] == pytest.approx(sum(law.values()) / math.exp(2), abs=0.01)
        assert facts["mean_candidate_reward"] == pytest.approx(0.45, abs=0.01)
        assert facts["mean_accepted_reward"] == pytest.approx(sum(r * w for r, w in law.items()) / sum(law.values()), abs=0.01)


# -- selectors -----------------------------------------------------------------------------------------------------------
TEXTS = {"a": 0.4, "b b": 0.3, "c c c": 0.2, "d d d d": 0.1}  # text -> its share under the policy
RIGHT = ("b b", "c c c")


def of_texts(rng: random.Random) -> Sample:
    text = rng.choices(list(TEXTS), list(TEXTS.values()))[0]
    return text, float(text in RIGHT), rng.random()


def of_rewards(rng: random.Random) -> Sample:
    return f"{rng.random()}", None, rng.random()


@pytest.mark.parametrize("cap", [0, 1])
def test_all_correct_is_the_policy_given_that_it_is_right(cap: int) -> None:
    # RAFT with a verifier: p(text | right), whatever the length, the order and the reward
    completions, reward, scores = drawn(3000, 8, of_texts)
    taken = best.all_correct(completions, reward, scores, cap=cap, deduplicate=False)
    assert follows([row["text"] for row in rows_of(taken, completions)], {text: TEXTS[text] for text in RIGHT})


def test_the_best_of_n_is_the_highest_of_n_draws() -> None:
    # RAFT: of n uniform rewards the selected one is below t with probability t^n
    completions, reward, scores = drawn(3000, 8, of_rewards)
    values = [reward[row["completion_id"]] or 0.0 for row in best.best_of_n(completions, reward, scores)]
    assert len(values) == 3000
    for t in (0.5, 0.7, 0.8, 0.9, 0.97):
        assert within([float(value < t) for value in values], t**8)


def test_a_share_by_rank_is_a_threshold_for_all_prompts() -> None:
    # ReST: what is above the quantile of all completions, so a prompt with better completions gives more of them
    completions, reward, scores = drawn(400, 8, of_rewards)
    taken = best.top_share(completions, reward, scores, share=0.1)
    assert min(reward[row["completion_id"]] or 0.0 for row in taken) == pytest.approx(0.9, abs=0.02)
    counts = Counter(row["prompt_id"] for row in taken)
    assert within([float(counts[prompt] == 0) for prompt in by_prompt(completions)], 0.9**8)


def test_ties_of_a_share_favour_no_prompt() -> None:
    # of rewards 0 and 1, a twenty-fifth is taken: where a prompt stands in the order of ids does not matter
    completions, reward, scores = drawn(1000, 8, lambda rng: ("a", 1.0, float(rng.random() < 0.5)))
    taken = best.top_share(completions, reward, scores, share=0.04)
    assert {reward[row["completion_id"]] for row in taken} == {1.0}
    place = {prompt: i for i, prompt in enumerate(by_prompt(completions))}
    assert within([place[row["prompt_id"]] / 1000 for row in taken], 0.5, spread=math.sqrt(1 / 12))


def test_the_shortest_correct_is_the_shortest_of_the_right_ones() -> None:
    # of 4 right answers with lengths uniform in 1 to 100 the selected one is longer than t with probability (1 - t / 100)^4;
    # the wrong ones, all shorter, change nothing
    rng = random.Random(0)
    groups = [[("x" * rng.randint(101, 200), 1.0, 1.0) for _ in range(4)] + [("y" * 50, 0.0, 0.0)] * 4 for _ in range(2000)]
    completions, reward, scores = judged(groups)
    lengths = [len(row["text"]) - 100 for row in rows_of(best.shortest_correct(completions, reward, scores), completions)]
    for t in (5, 10, 20, 40):
        assert within([float(length > t) for length in lengths], (1 - t / 100) ** 4)


def written(kind: str, words: int, rng: random.Random) -> str:
    """A text of one law, whatever its length."""
    if kind == "words":
        return " ".join(rng.choices(VOCABULARY, k=words))
    if kind == "common words":
        return " ".join(rng.choices(VOCABULARY, ZIPF, k=words))
    return ". ".join(rng.choices(SENTENCES, k=words // 8))


@pytest.mark.parametrize("kind", ["words", "common words", "sentences"])
def test_diversity_is_not_brevity(kind: str) -> None:
    # texts of one law and of different lengths: the second that is taken has any of the 7 ranks of length equally often
    rng = random.Random(0)
    groups = [[(written(kind, words, rng), 1.0, 1.0) for words in rng.sample(range(16, 96), 8)] for _ in range(700)]
    completions, reward, scores = judged(groups)
    ranks: Counter[int] = Counter()
    for taken in rows_of(best.diverse_correct(completions, reward, scores, cap=2)[1::2], completions):
        others = completions[8 * taken["group"] + 1 : 8 * taken["group"] + 8]
        ranks[sum(len(row["text"]) < len(taken["text"]) for row in others)] += 1
    assert chisquare([ranks[i] for i in range(7)]).pvalue > 0.001


def test_two_ways_are_found_more_often_than_by_chance() -> None:
    # DIVE: of 8 right answers 2 go another way; half of the words vary, and up to two thirds of a text are filler. Two taken at
    # random go both ways in 0.43 of the prompts
    rng, groups = random.Random(0), []
    for _ in range(300):
        ways = [[" ".join(rng.choices(VOCABULARY, k=10)) for _ in range(4)] for _ in range(2)]
        order = rng.sample([0] * 6 + [1] * 2, 8)
        groups.append([(f"{one_way(ways[way], rng)} #{way}", 1.0, 1.0) for way in order])
    completions, reward, scores = judged(groups)
    taken = rows_of(best.diverse_correct(completions, reward, scores, cap=2), completions)
    found = [len({one["text"][-1], other["text"][-1]}) == 2 for one, other in zip(taken[::2], taken[1::2], strict=True)]
    assert np.mean(found) > 0.7


def one_way(steps: Sequence[str], rng: random.Random) -> str:
    """The steps with half of their words replaced, and up to eight sentences of filler between them."""
    told = [" ".join(rng.choice(VOCABULARY) if rng.random() < 0.5 else word for word in step.split()) for step in steps]
    for _ in range(rng.randint(0, 8)):
        told.insert(rng.randint(0, len(told)), written("common words", 8, rng))
    return " ".join(told)


def test_labels_are_the_verdicts_of_the_whole_policy() -> None:
    # KTO: no pairs are needed. The share of right labels is the pass rate, also where a prompt is always or never solved
    rng = random.Random(0)
    completions, reward, scores = judged(
        [[(f"{i} {s}", float(rng.random() < i % 5 / 4), None) for s in range(8)] for i in range(500)]
    )
    taken = labels.labelled(completions, reward, scores, cap=0)
    assert [row["label"] for row in taken].count(True) / len(taken) == np.mean([v or 0.0 for v in scores["verifier"].values()])
    assert len({row["prompt_id"] for row in taken}) == 500
    assert all(row["label"] == (scores["verifier"][row["completion_id"]] == 1.0) for row in taken)


def test_ranks_are_the_order_of_the_rewards() -> None:
    # RRHF, LiPO: within a prompt every two completions are ranked as their rewards are, and equals share a rank
    def draw(rng: random.Random) -> Sample:
        return f"{rng.random()}", None, rng.choice((0.1, 0.4, 0.7, rng.random()))

    completions, reward, scores = drawn(300, 8, draw)
    taken = labels.ranked(completions, reward, scores, cap=0)
    assert len(taken) == len(completions)
    for rows in by_prompt([row | {"sample": 0} for row in taken]).values():
        for one, other in itertools.combinations(rows, 2):
            a, b = (reward[row["completion_id"]] or 0.0 for row in (one, other))
            assert np.sign(one["rank"] - other["rank"]) == np.sign(b - a)


# -- pairers -------------------------------------------------------------------------------------------------------------
def test_right_and_wrong_are_the_policy_on_either_side() -> None:
    # Iterative RPO: chosen follow p(text | right), rejected p(text | wrong), whatever the length and the reward
    completions, reward, scores = drawn(3000, 8, of_texts)
    pairs = pairers.right_vs_wrong(completions, reward, scores, cap=1)
    for side, texts in (("chosen_id", RIGHT), ("rejected_id", ("a", "d d d d"))):
        assert follows([row["text"] for row in rows_of(pairs, completions, side)], {text: TEXTS[text] for text in texts})


def test_best_and_worst_are_the_extremes_of_n_draws() -> None:
    # online DPO with max_min: of n uniform rewards chosen is below t with t^n, rejected above 1 - t with t^n, and the margin is
    # (n - 1) / (n + 1) on average
    completions, reward, scores = drawn(3000, 8, of_rewards)
    pairs = pairers.best_vs_worst(completions, reward, scores)
    assert len(pairs) == 3000
    for t in (0.6, 0.8, 0.95):
        assert within([float((reward[pair["chosen_id"]] or 0.0) < t) for pair in pairs], t**8)
        assert within([float((reward[pair["rejected_id"]] or 0.0) > 1 - t) for pair in pairs], t**8)
    assert within([pair["margin"] for pair in pairs], 7 / 9, spread=math.sqrt(2 * 7 / (9**2 * 10)))


@pytest.mark.parametrize("minimum", [1e-9, 0.3, 0.6])
def test_all_pairs_of_a_ranking_over_a_margin(minimum: float) -> None:
    # InstructGPT trains on all K (K - 1) / 2 pairs, DNO on wide ones: two uniform rewards are m apart with (1 - m)^2
    completions, reward, scores = drawn(1000, 6, of_rewards)
    pairs = pairers.all_over_margin(completions, reward, scores, minimum_margin=minimum)
    per_prompt = Counter(pair["prompt_id"] for pair in pairs)
    counts = [per_prompt[prompt] for prompt in by_prompt(completions)]
    assert within(counts, 15 * (1 - minimum) ** 2, spread=float(np.std(counts)) + 1e-6)
    assert all(pair["margin"] >= minimum for pair in pairs)


def test_the_majority_is_right_more_often_than_a_sample() -> None:
    # ScPO: of 9 samples right with 0.6 the majority is right with 0.733; a unanimous vote gives no pair; a pair's weight is the
    # margin of its vote
    rng, groups = random.Random(0), []
    for _ in range(3000):
        right = [rng.random() < 0.6 for _ in range(9)]
        groups.append([(f"{i} answer {r}", float(r), right.count(r) / 9) for i, r in enumerate(right)])
    completions, reward, scores = judged(groups)
    pairs = pairers.most_vs_least_voted(completions, reward, scores)
    law = {k: math.comb(9, k) * 0.6**k * 0.4 ** (9 - k) for k in range(1, 9)}
    total = sum(law.values())
    assert within([1.0] * len(pairs) + [0.0] * (3000 - len(pairs)), total)
    majority = sum(share for k, share in law.items() if k > 4) / total
    assert within([scores["verifier"][pair["chosen_id"]] or 0.0 for pair in pairs], majority)
    margin = sum(share * abs(2 * k - 9) / 9 for k, share in law.items()) / total
    assert within([pair["weight"] for pair in pairs], margin, spread=0.25)


WORDINGS = ("{} + {} = {}", "So {} + {} = {}.", "Then {} + {} = {}", "Adding, {} + {} = {}")


def worked(values: Sequence[int], wrong_step: int | None, varied: float, rng: random.Random) -> str:
    """A sum of several numbers, a step a line. After a wrong step the next ones go on with its result."""
    total, lines = values[0], []
    for step, value in enumerate(values[1:]):
        result = total + value + (rng.choice((-1, 1, 2)) if step == wrong_step else 0)
        wording = rng.choice(WORDINGS) if rng.random() < varied else WORDINGS[0]
        lines.append(wording.format(total, value, result))
        total = result
    return "\n".join([*lines, f"Answer {total}"])


@pytest.mark.parametrize("varied", [0.0, 0.2, 0.5])
def test_a_pair_parts_at_the_first_wrong_step_where_wordings_vary(varied: float) -> None:
    # Step-DPO: the shared steps are right, and the next one is right in chosen and wrong in rejected; 400 prompts of 16 samples
    rng, groups = random.Random(0), []
    wrong_steps: dict[tuple[int, int], int | None] = {}
    for prompt in range(400):
        values = [rng.randint(1, 50) for _ in range(6)]
        steps = [rng.randint(0, 4) if rng.random() < 0.5 else None for _ in range(16)]
        groups.append([(worked(values, step, varied, rng), float(step is None), None) for step in steps])
        wrong_steps |= {(prompt, sample): step for sample, step in enumerate(steps)}
    completions, reward, scores = judged(groups)
    pairs = pairers.longest_shared_prefix(completions, reward, scores, cap=0)
    assert len(pairs) > 400
    sides = zip(*(rows_of(pairs, completions, side) for side in ("chosen_id", "rejected_id")), strict=True)
    for good, bad in sides:
        lines = zip(good["text"].split("\n"), bad["text"].split("\n"), strict=True)
        parted = next(number for number, (one, other) in enumerate(lines) if one != other)
        assert parted == wrong_steps[bad["group"], bad["sample"]]


def test_given_answers_against_the_policy_as_it_is() -> None:
    # SPIN: chosen is the given answer, rejected a draw of the policy, right or not: verdicts and rewards are not read
    completions, reward, scores = drawn(3000, 8, of_texts)
    origin = {row["completion_id"]: "given" if row["sample"] == 7 else "policy" for row in completions}
    for row in completions:
        row["text"] += " (given)" if row["sample"] == 7 else ""
    pairs = origins.given_vs_sample(completions, reward, scores, origins=origin)
    assert len(pairs) == 3000
    assert {origin[pair["chosen_id"]] for pair in pairs} == {"given"}
    assert follows([row["text"] for row in rows_of(pairs, completions, "rejected_id")], TEXTS)


def test_a_contrasts_label_comes_from_the_prompts_alone() -> None:
    # RLCD: chosen follows the policy under the prompt, rejected that under the contrasting one; the reward changes nothing
    completions, reward, _ = drawn(3000, 8, of_texts)
    origin = {row["completion_id"]: "policy" if row["sample"] < 4 else "contrast" for row in completions}
    for row in completions:
        row["text"] = row["text"].upper() if row["sample"] >= 4 else row["text"]
    unknown: dict[str, dict[str, float | None]] = {"verifier": dict.fromkeys(reward)}
    pairs = origins.prompt_contrast(completions, reward, unknown, origins=origin)
    assert follows([row["text"] for row in rows_of(pairs, completions, "chosen_id")], TEXTS)
    assert follows([row["text"].lower() for row in rows_of(pairs, completions, "rejected_id")], TEXTS)
    turned = {key: -(value or 0.0) for key, value in reward.items()}
    again = origins.prompt_contrast(completions, turned, unknown, origins=origin)
    assert [(p["chosen_id"], p["rejected_id"]) for p in again] == [(p["chosen_id"], p["rejected_id"]) for p in pairs]


def test_the_base_still_differs_from_a_policy_that_became_one_answer() -> None:
    # Temporal Self-Rewarding: with a policy of one answer best against worst gives no pair. Against the base there is one
    # wherever its worst of 4 is lower, in 1 - 0.2^4 of the prompts
    rng = random.Random(0)
    of_base = [[of_rewards(rng) for _ in range(4)] for _ in range(2000)]
    completions, reward, scores = judged([[*[("the answer", None, 0.8)] * 4, *group] for group in of_base])
    own = [row for row in completions if row["sample"] < 4]
    assert pairers.best_vs_worst(own, reward, scores) == []
    origin = {row["completion_id"]: "policy" if row["sample"] < 4 else "base" for row in completions}
    pairs = origins.best_vs_base(completions, reward, scores, origins=origin)
    assert within([1.0] * len(pairs) + [0.0] * (2000 - len(pairs)), 1 - 0.2**4)
    lowest = [reward[pair["rejected_id"]] or 0.0 for pair in pairs]
    assert within([float(value > 0.3) for value in lowest], (0.7**4 - 0.2**4) / (1 - 0.2**4))


def test_recorded_preferences_are_those_of_the_people() -> None:
    # whatever a reward or a verdict thinks of them
    completions, reward, scores = drawn(500, 2, of_texts)
    for row in completions:
        row["record"], row["text"] = {"preferred": row["sample"] == 0}, f"{row['text']} {row['sample']}"
    pairs = recorded.as_recorded(completions, reward, scores)
    assert [row["sample"] for row in rows_of(pairs, completions, "chosen_id")] == [0] * 500
    assert [row["sample"] for row in rows_of(pairs, completions, "rejected_id")] == [1] * 500
    assert within([float(pair["margin"] > 0) for pair in pairs], 0.5)


# -- mitigations of what was chosen --------------------------------------------------------------------------------------
def count_marks(text: str) -> float:
    return float(text.count("!"))


def log_words(text: str) -> float:
    return math.log1p(len(text.split()))


def marks(completions: Sequence[Row]) -> list[float | None]:
    """A user's own feature."""
    return [count_marks(row["text"]) for row in completions]


def amount(law: str, mean: float, draw: np.random.Generator) -> int:
    if law == "skewed":
        return int(draw.lognormal(mean, 1.0))
    if law == "rare":
        return int(draw.integers(1, 40)) if draw.random() < 0.1 * (1 + mean) else 0
    return int(draw.geometric(1 / (1 + 4 * mean)))


@pytest.mark.parametrize(("feature", "scale"), [("tests.test_choice_laws:marks", count_marks), ("words", log_words)])
@pytest.mark.parametrize("law", ["skewed", "rare", "geometric"])
def test_balanced_pairs_have_as_much_of_a_style_on_both_sides(law: str, feature: str, scale: Callable[[str], float]) -> None:
    # by how much, on the ledger's scale, and not by how often: at most 5% of the pressure is left, over half of the pairs stay,
    # what is dropped is all of the side that has more, and the order of the pairs does not matter
    for seed in range(10):
        draw = np.random.default_rng(seed)
        texts = [["go !" * amount(law, mean, draw) + f" {i}" for mean in (1.0, 0.5)] for i in range(400)]
        completions, reward, scores = judged([[(high, 1.0, 1.0), (f"{low}0", 0.0, 0.0)] for high, low in texts])
        pairs = pairers.right_vs_wrong(completions, reward, scores)
        kept = mitigations.style_balanced(pairs, completions, scores, feature=feature)
        sides = [[scale(row["text"]) for row in rows_of(pairs, completions, side)] for side in ("chosen_id", "rejected_id")]
        gap = {pair["chosen_id"]: high - low for pair, high, low in zip(pairs, *sides, strict=True)}
        before, after = np.mean(list(gap.values())), np.mean([gap[pair["chosen_id"]] for pair in kept])
        assert before > 0
        assert abs(after) <= 0.05 * before
        assert len(kept) >= 0.5 * len(pairs)
        assert all(gap[pair["chosen_id"]] > 0 for pair in pairs if pair not in kept)
        mixed = random.Random(seed).sample(pairs, len(pairs))
        again = mitigations.style_balanced(mixed, completions, scores, feature=feature)
        assert {pair["chosen_id"] for pair in again} == {pair["chosen_id"] for pair in kept}


def test_matched_pairs_leave_next_to_nothing_to_length() -> None:
    # chosen twice as long as rejected: of the pairs within 10% neither side is longer by more than a fifth of that, on average
    draw = np.random.default_rng(0)
    words = [(int(draw.lognormal(4.0, 0.7)) + 1, int(draw.lognormal(3.3, 0.7)) + 1) for _ in range(2000)]
    completions, reward, scores = judged([[("a " * a, 1.0, 1.0), ("b " * b, 0.0, 0.0)] for a, b in words])
    pairs = pairers.right_vs_wrong(completions, reward, scores)
    kept = mitigations.length_matched(pairs, completions, scores, tolerance=0.1)
    tokens = {row["completion_id"]: len(row["token_ids"]) for row in completions}
    ratio = [math.log(tokens[pair["chosen_id"]] / tokens[pair["rejected_id"]]) for pair in kept]
    assert abs(float(np.mean(ratio))) < 0.1 / 5
    assert len(kept) == sum(abs(math.log(a / b)) <= 0.1 for a, b in words)


def test_a_label_is_as_sure_as_two_judges_agree() -> None:
    # CREAM: of two judges who rank 6 samples alike, at random and in reverse the mean label is 1, 0.5 and 0
    completions, reward, _ = drawn(300, 6, of_rewards)
    rng = random.Random(1)
    values = {key: value or 0.0 for key, value in reward.items()}
    others = {"same": values, "random": {k: rng.random() for k in values}, "reverse": {k: -v for k, v in values.items()}}
    pairs = pairers.best_vs_worst(completions, reward, {"one": dict.fromkeys(reward)})
    for name, expected in (("same", 1.0), ("random", 0.5), ("reverse", 0.0)):
        scores: dict[str, Mapping[str, float | None]] = {"one": reward, "other": others[name]}
        labelled = mitigations.agreed(pairs, completions, scores, one="one", other="other")
        assert within([row["label"] for row in labelled], expected, spread=math.sqrt(2 * 17 / (9 * 6 * 5)) / 2)


def test_no_text_is_taught_more_often_than_its_copies_allow() -> None:
    # a policy that says one text in 0.4 of its samples is trained on it as often as on any other it says at all
    completions, reward, scores = drawn(500, 16, of_texts)
    taken = best.all_correct(completions, reward, scores, cap=0, deduplicate=False)
    kept = rows_of(mitigations.cap_copies(taken, completions, scores, copies=1), completions)
    said = {(row["prompt_id"], row["text"]) for row in completions if row["text"] in RIGHT}
    assert Counter((row["prompt_id"], row["text"]) for row in kept) == dict.fromkeys(said, 1)


def test_what_choosing_gains_is_in_the_facts() -> None:
    # chosen against the pool: of 8 uniform rewards the best is 8/9, the worst 1/9, all are 1/2 on average
    completions, reward, scores = drawn(2000, 8, lambda rng: (f"{rng.random()}", None, rng.random()))
    pairs = pair_facts(pairers.best_vs_worst(completions, reward, scores), completions, reward, scores)
    selected = selection_facts(best.best_of_n(completions, reward, scores), completions, reward, scores)
    assert pairs["mean_chosen_reward"] == selected["mean_selected_reward"] == pytest.approx(8 / 9, abs=0.01)
    assert pairs["mean_rejected_reward"] == pytest.approx(1 / 9, abs=0.01)
    assert pairs["mean_reward"] == selected["mean_reward"] == pytest.approx(1 / 2, abs=0.01)
    assert selected["selected_share"] == 1 / 8


def test_the_stages_write_what_rejection_sampling_and_mitigations_did(tmp_path: Path) -> None:
    # the acceptance rate, the rewards and the number of pairs that a mitigation dropped are in facts.json
    completions, reward, scores = drawn(200, 16, of_levels)
    written = [row | dict.fromkeys(("logprobs", "seed")) | {"engine": "transformers"} for row in completions]
    tables.write(
        tables.from_rows([{k: row[k] for k in tables.COMPLETIONS.names} for row in written], tables.COMPLETIONS),
        tables.COMPLETIONS,
        tmp_path / "completions.parquet",
    )
    inputs = {"completions": tmp_path}
    for name, values in (("reward", reward), ("score/verifier", scores["verifier"])):
        inputs[name] = tmp_path / name
        inputs[name].mkdir(parents=True)
        rows = [{**{k: row[k] for k in ("completion_id", "prompt_id")}, "status": "ok", "detail": None} for row in completions]
        scored = [row | {"value": values[row["completion_id"]]} for row in rows]
        tables.write(tables.from_rows(scored, tables.SCORES), tables.SCORES, inputs[name] / "scores.parquet")
    rso, drop = {"beta": 0.5, "count": 8}, [{"mitigation": "style_balanced", "settings": {"feature": "characters"}}]
    made = pair.Settings(pairer="rejection_sampled", settings=rso, scorers=["verifier"], mitigations=drop)
    taken = select.Settings(selector="rejection_sampling", settings=rso, scorers=["verifier"], mitigations=[])
    pair.pair(Work("key", made, inputs, 0, tmp_path, tmp_path, Hardware()))
    of_pairs = json.loads((tmp_path / "facts.json").read_text())
    select.select(Work("key", taken, inputs, 0, tmp_path, tmp_path, Hardware()))
    of_rows = json.loads((tmp_path / "facts.json").read_text())
    before = len(pairers.rejection_sampled(completions, reward, scores, beta=0.5, count=8))
    assert 0 < of_pairs["dropped_by_mitigations"] == before - of_pairs["pairs"]
    assert of_rows["dropped_by_mitigations"] == 0
    for name in ("acceptance_rate", "mean_accepted_reward", "mean_candidate_reward"):
        assert of_pairs[name] == of_rows[name] > 0
    assert of_rows["mean_selected_reward"] > of_rows["mean_reward"] == of_rows["mean_candidate_reward"]
    assert of_rows["rows"] / len(completions) == of_rows["selected_share"] <= of_rows["acceptance_rate"]
