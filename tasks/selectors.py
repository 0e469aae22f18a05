"""The shelf of selectors: `(completions, reward, scores, *, settings) -> rows of SELECTED`, what SFT and RAFT train on.

`reward` and each scorer's values in `scores` are by completion_id, None where unknown; `scores` is in recipe order and its
first scorer is the verifier (1.0 right, 0.0 wrong). A completion cut at the token limit is never selected: it would teach the
policy not to stop. The order of the rows never changes what is selected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Ge

from tasks.audit import Row, Values, by_prompt, finished, unique_texts, verifier


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
    return [_selected(row) for row in kept]


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
    return [_selected(row) for row in kept]


def _selected(row: Row) -> Row:
    return {"prompt_id": row["prompt_id"], "completion_id": row["completion_id"], "weight": 1.0, "label": None, "rank": None}
