"""Selectors by verdict or reward: right, best, shortest or most diverse completions."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Ge, Gt, Le

from data.rows.completions import Row, Values, by_prompt, finished, unique_texts, verifier
from tasks.choose.selectors import selected_row

VERSIONS = {"top_share": 2}  # 2: completions of equal reward are spread over prompts

NOT_PARTS = ("accepted",)
NEEDS_GOLD = IGNORES_REWARD = ("all_correct", "shortest_correct", "diverse_correct")


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
        right = [row for row in rows if finished(row) and verdict.get(row["completion_id"]) == 1.0]
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
    """The given share of all finished completions of the round by reward, whatever their prompts; ties in sample order.

    ReST's filter with the threshold set by rank, https://arxiv.org/abs/2308.08998.
    """
    rows = [row for rows in by_prompt(completions).values() for row in rows if finished(row)]
    known = [(value, row) for row in rows if (value := reward.get(row["completion_id"])) is not None]
    ranked = sorted(known, key=lambda pair: (-pair[0], pair[1]["sample"]))  # ties: first samples of all prompts, then second
    return [selected_row(row) for _, row in ranked[: math.ceil(share * len(known))]]


def shortest_correct(
    completions: Sequence[Row], reward: Values, scores: Mapping[str, Values], *, cap: Annotated[int, Ge(1)] = 1
) -> list[Row]:
    """The `cap` shortest verified completions of every prompt, in characters; each text once.

    Self-training for concise reasoning, https://arxiv.org/abs/2502.20122 (naive best of n: the shortest right one of 16).
    """
    verdict, selected = verifier(scores), []
    for rows in by_prompt(completions).values():
        right = unique_texts(row for row in rows if finished(row) and verdict.get(row["completion_id"]) == 1.0)
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

    Statistical rejection sampling (RSO), https://arxiv.org/abs/2309.06657: accept with probability exp((r - r_max) / beta),
    with r_max the highest reward still in the pool (there 8 of 64). The random numbers depend on the completions alone.
    """
    return [selected_row(row) for rows in accepted(completions, reward, beta, count).values() for row in rows]


def accepted(completions: Sequence[Row], reward: Values, beta: float, count: int) -> dict[str, list[Row]]:
    """Each prompt's completions in the order in which rejection sampling accepts them, at most `count`."""
    accepted_of_prompt = {}
    for prompt, rows in by_prompt(completions).items():
        pool = [(value, row) for row in rows if finished(row) and (value := reward.get(row["completion_id"])) is not None]
        rng = random.Random(f"rejection_sampling/{prompt}/{'/'.join(row['completion_id'] for _, row in pool)}")
        rows_accepted: list[Row] = []
        while pool and len(rows_accepted) < count:
            highest = max(value for value, _ in pool)
            passed = [rng.random() < math.exp((value - highest) / beta) for value, _ in pool]
            rows_accepted += [row for (_, row), ok in zip(pool, passed, strict=True) if ok]
            pool = [pair for pair, ok in zip(pool, passed, strict=True) if not ok]
        accepted_of_prompt[prompt] = rows_accepted[:count]
    return accepted_of_prompt


def diverse_correct(
    completions: Sequence[Row], reward: Values, scores: Mapping[str, Values], *, cap: Annotated[int, Ge(1)] = 4
) -> list[Row]:
    """Up to `cap` verified completions of every prompt: the first, then each time the one least similar to those selected.

    Similarity is the share of five-character pieces two texts have in common (Jaccard). Greedy diversity selection as in DIVE,
    https://arxiv.org/abs/2501.00747.
    """
    verdict, selected = verifier(scores), []
    for rows in by_prompt(completions).values():
        right = unique_texts(row for row in rows if finished(row) and verdict.get(row["completion_id"]) == 1.0)
        pieces = {row["completion_id"]: _pieces(row["text"]) for row in right}
        chosen = right[:1]
        while len(chosen) < min(cap, len(right)):
            rest = [row for row in right if row not in chosen]
            chosen.append(min(rest, key=lambda row: max(_similarity(pieces, row, other) for other in chosen)))
        selected += chosen
    return [selected_row(row) for row in selected]


def _pieces(text: str) -> set[str]:
    return {text[i : i + 5] for i in range(max(1, len(text) - 4))}


def _similarity(pieces: Mapping[str, set[str]], a: Row, b: Row) -> float:
    one, other = pieces[a["completion_id"]], pieces[b["completion_id"]]
    return len(one & other) / len(one | other)
