"""Pairers by verdict or reward: right against wrong, high against low."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Ge

from tasks.audit import Row, Values, by_prompt, finished, unique_texts, verifier
from tasks.pairers import pair_row


def right_vs_wrong(
    completions: Sequence[Row], reward: Values, scores: Mapping[str, Values], *, cap: Annotated[int, Ge(0)] = 4
) -> list[Row]:
    """Verified right against verified wrong, each text once a side, up to `cap` pairs per prompt (0 = no cap).

    Both sides are walked in sample order and the shorter one starts again when it runs out, so that every pair is new and
    none is used twice before all are used once. Margin: difference of the rewards, 1.0 where one is unknown.
    Iterative RPO, https://arxiv.org/abs/2404.19733 (there up to 10 pairs per prompt).
    """
    verdict, pairs = verifier(scores), []
    for rows in by_prompt(completions).values():
        right = unique_texts(row for row in rows if finished(row) and verdict.get(row["completion_id"]) == 1.0)
        wrong = unique_texts((row for row in rows if verdict.get(row["completion_id"]) == 0.0), besides=right)
        count = max(len(right), len(wrong)) if right and wrong else 0
        pairs += [pair_row(right[i % len(right)], wrong[i % len(wrong)], reward) for i in range(min(count, cap or count))]
    return pairs


def best_vs_worst(
    completions: Sequence[Row],
    reward: Values,
    scores: Mapping[str, Values],
    *,
    minimum_margin: Annotated[float, Ge(0)] = 0.0,
    allow_wrong_chosen: bool = False,
) -> list[Row]:
    """The highest against the lowest reward of every prompt, the first sample of those that tie; equal rewards give no pair.

    A prompt whose best completion the verifier calls wrong gives no pair unless `allow_wrong_chosen`: without it, a prompt
    that was never solved would teach the least wrong answer as the right one. Margin: difference of the rewards.
    Online DPO with max_min, https://arxiv.org/abs/2405.07863; https://github.com/RLHFlow/Online-DPO-R1.
    """
    verdict, pairs = verifier(scores), []
    for rows in by_prompt(completions).values():
        known = [(value, row) for row in rows if (value := reward.get(row["completion_id"])) is not None]
        best = max((pair for pair in known if finished(pair[1])), key=lambda pair: pair[0], default=None)
        if best is None or (verdict.get(best[1]["completion_id"]) == 0.0 and not allow_wrong_chosen):
            continue
        lower = [pair for pair in known if pair[0] < best[0] and pair[1]["text"] != best[1]["text"]]
        worst = min(lower, key=lambda pair: pair[0], default=None)  # max and min keep the first of equals
        if worst and best[0] - worst[0] >= minimum_margin:
            pairs.append(pair_row(best[1], worst[1], reward))
    return pairs
