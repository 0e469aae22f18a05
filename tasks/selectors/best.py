"""Selectors by verdict or reward: what is right, what is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Ge

from tasks.audit import Row, Values, by_prompt, finished, unique_texts, verifier
from tasks.selectors import selected_row


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
    verdict, kept = verifier(scores), []
    for rows in by_prompt(completions).values():
        right = [row for row in rows if finished(row) and verdict.get(row["completion_id"]) == 1.0]
        kept += (unique_texts(right) if deduplicate else right)[: cap or None]
    return [selected_row(row) for row in kept]


def best_of_n(
    completions: Sequence[Row], reward: Values, scores: Mapping[str, Values], *, minimum: float | None = None
) -> list[Row]:
    """The completion with the highest reward of every prompt, the first sample of those that tie; `minimum` is a floor.

    RAFT, https://arxiv.org/abs/2304.06767: y* = argmax_k r(x, y_k).
    """
    kept = []
    for rows in by_prompt(completions).values():
        known = [(value, row) for row in rows if finished(row) and (value := reward.get(row["completion_id"])) is not None]
        best = max(known, key=lambda pair: pair[0], default=None)  # max keeps the first of equals
        if best and (minimum is None or best[0] >= minimum):
            kept.append(best[1])
    return [selected_row(row) for row in kept]
