"""Selectors by verdict or reward: right, best, shortest or most diverse completions."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Ge, Gt, Le

from data.rows.completions import Row, Values, by_prompt, finished, is_right, unique_texts, verifier
from tasks.choose.selectors import selected_row

VERSIONS = {
    "all_correct": 2,  # 2: a verdict above 1.0 is right too
    "shortest_correct": 2,  # 2: as all_correct
    "top_share": 3,  # 3: ties favour no prompt. 2: completions of equal reward are spread over prompts
    "rejection_sampling": 2,  # 2: one pass, so that the accepted follow the tilted policy
    "diverse_correct": 2,  # 2: a similarity that does not favour short texts; right as all_correct
}
NOT_PARTS = ("acceptance", "accepted", "candidates")

NEEDS_GOLD = IGNORES_REWARD = ("all_correct", "shortest_correct", "diverse_correct")
SHORTEST = 40  # characters: what one very short answer tells of the others is chance


def all_correct(
    completions: Sequence[Row],
    reward: Values,
    scores: Mapping[str, Values],
    *,
    cap: Annotated[int, Ge(0)] = 4,
    deduplicate: bool = True,
) -> list[Row]:
    """Every completion that is verified right, each text once, at most `cap` per prompt in sample order (0 = no cap).

    RAFT with a verifier: https://arxiv.org/abs/2304.06767 with the reward cut at "right".
    """
    verdict, selected = verifier(scores), []
    for rows in by_prompt(completions).values():
        right = [row for row in rows if finished(row) and is_right(verdict.get(row["completion_id"]))]
        selected += (unique_texts(right) if deduplicate else right)[: cap or None]
    return [selected_row(row) for row in selected]


def best_of_n(
    completions: Sequence[Row], reward: Values, scores: Mapping[str, Values], *, minimum: float | None = None
) -> list[Row]:
    """The completion with the highest reward of every prompt, the first sample of those that tie; `minimum` is a floor.

    RAFT, https://arxiv.org/abs/2304.06767: y* = argmax_k r(x, y_k).
    """
    selected = []
    for rows in by_prompt(completions).values():
        known = [(value, row) for row in rows if finished(row) and (value := reward.get(row["completion_id"])) is not None]
        best = max(known, key=lambda pair: pair[0], default=None)  # max keeps the first of equals
        if best and (minimum is None or best[0] >= minimum):
            selected.append(best[1])
    return [selected_row(row) for row in selected]


def top_share(
    completions: Sequence[Row], reward: Values, scores: Mapping[str, Values], *, share: Annotated[float, Gt(0), Le(1)]
) -> list[Row]:
    """The given share of all finished completions of the round by reward, whatever their prompts; ties favour no prompt.

    Among equals the first samples of all prompts come before any second one, in the order of their ids, which are hashes that
    change every round. ReST's filter with the threshold set by rank, https://arxiv.org/abs/2308.08998.
    """
    rows = [row for rows in by_prompt(completions).values() for row in rows if finished(row)]
    known = [(value, row) for row in rows if (value := reward.get(row["completion_id"])) is not None]
    ranked = sorted(known, key=lambda pair: (-pair[0], pair[1]["sample"], pair[1]["completion_id"]))
    return [selected_row(row) for _, row in ranked[: math.ceil(share * len(known))]]


def shortest_correct(
    completions: Sequence[Row], reward: Values, scores: Mapping[str, Values], *, cap: Annotated[int, Ge(1)] = 1
) -> list[Row]:
    """The `cap` shortest verified completions of every prompt, in characters; each text once.

    Self-training for concise reasoning, https://arxiv.org/abs/2502.20122 (naive best of n: the shortest right one of 16).
    """
    verdict, selected = verifier(scores), []
    for rows in by_prompt(completions).values():
        right = unique_texts(row for row in rows if finished(row) and is_right(verdict.get(row["completion_id"])))
        selected += sorted(right, key=lambda row: len(row["text"]))[:cap]
    return [selected_row(row) for row in selected]


def rejection_sampling(
    completions: Sequence[Row],
    reward: Values,
    scores: Mapping[str, Values],
    *,
    beta: Annotated[float, Gt(0)],
    count: Annotated[int, Ge(1)] = 8,
) -> list[Row]:
    """Up to `count` completions a prompt, sampled to follow the policy tilted by exp(reward / beta), not only the best.

    Statistical rejection sampling (RSO), https://arxiv.org/abs/2309.06657 (there beta 0.5, and 8 accepted of 64). `accepted`
    says how, and where it departs from the paper. Verdicts are not used; facts.json has the acceptance rate.
    """
    passed = accepted(completions, reward, beta)
    return [selected_row(row) for rows in passed.values() for row in rows[:count]]


def accepted(completions: Sequence[Row], reward: Values, beta: float) -> dict[str, list[Row]]:
    """Each prompt's completions that rejection sampling accepts, in random order, which depends on the completions alone.

    A candidate is accepted with probability exp((r - r_max) / beta), equation 14 of https://arxiv.org/abs/2309.06657, with
    r_max the highest reward among the prompt's candidates. Each is tried once. The paper's Algorithm 1 tries the rejected
    again, against the highest reward that is left, until it has enough. With few candidates that keeps everything, whatever
    beta and the reward are: it follows the tilted policy only if the candidates are many more than it needs.
    """
    accepted_of_prompt = {}
    for prompt, pool in candidates(completions, reward).items():
        rng = random.Random(f"rejection_sampling/{prompt}/{'/'.join(row['completion_id'] for _, row in pool)}")
        highest = max((value for value, _ in pool), default=0.0)
        in_random_order = rng.sample(pool, len(pool))
        accepted_of_prompt[prompt] = [r for value, r in in_random_order if rng.random() < math.exp((value - highest) / beta)]
    return accepted_of_prompt


def candidates(completions: Sequence[Row], reward: Values) -> dict[str, list[tuple[float, Row]]]:
    """Each prompt's finished completions with a known reward, as (reward, completion)."""
    return {
        prompt: [(value, row) for row in rows if finished(row) and (value := reward.get(row["completion_id"])) is not None]
        for prompt, rows in by_prompt(completions).items()
    }


def acceptance(completions: Sequence[Row], reward: Values, *, beta: float, count: int) -> dict[str, float | None]:
    """Facts about rejection sampling: the share of the candidates that pass, and the mean rewards of both.

    `count` keeps a random part of those that pass, so it changes none of the three.
    """
    pool = [value for pairs in candidates(completions, reward).values() for value, _ in pairs]
    passed = [reward[row["completion_id"]] or 0.0 for rows in accepted(completions, reward, beta).values() for row in rows]
    return {
        "acceptance_rate": len(passed) / len(pool) if pool else None,
        "mean_accepted_reward": math.fsum(passed) / len(passed) if passed else None,
        "mean_candidate_reward": math.fsum(pool) / len(pool) if pool else None,
    }


FACTS = {"rejection_sampling": acceptance}


def diverse_correct(
    completions: Sequence[Row], reward: Values, scores: Mapping[str, Values], *, cap: Annotated[int, Ge(1)] = 4
) -> list[Row]:
    """Up to `cap` verified completions of every prompt: the first, then each time the one least similar to those selected.

    Similarity is the share of a stretch of the text, in pieces of five characters, that the other text has too. The stretch is
    as long for every text of the prompt, so that neither short nor long ones look unlike the others by chance. Greedy diversity
    selection as in DIVE, https://arxiv.org/abs/2501.00747.
    """
    verdict, selected = verifier(scores), []
    for rows in by_prompt(completions).values():
        right = unique_texts(row for row in rows if finished(row) and is_right(verdict.get(row["completion_id"])))
        length = min((len(row["text"]) for row in right), default=0)
        chosen, rest = right[:1], [(_pieces(_stretch(row, max(length, SHORTEST))), row) for row in right[1:]]
        while rest and len(chosen) < cap:
            whole = [_pieces(row["text"]) for row in chosen]
            nearest = [max(_share(pieces, other) for other in whole) for pieces, _ in rest]
            chosen.append(rest.pop(nearest.index(min(nearest)))[1])
        selected += chosen
    return [selected_row(row) for row in selected]


def _stretch(row: Row, length: int) -> str:
    """`length` characters of the text, from a place drawn by the completion's id; all of a shorter text."""
    start = random.Random(row["completion_id"]).randint(0, max(0, len(row["text"]) - length))
    text: str = row["text"][start : start + length]
    return text


def _pieces(text: str) -> set[str]:
    return {text[i : i + 5] for i in range(max(1, len(text) - 4))}


def _share(pieces: set[str], other: set[str]) -> float:
    """How much of the first set is in the second."""
    return len(pieces & other) / len(pieces)
