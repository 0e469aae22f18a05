"""Selectors that keep right and wrong completions: with labels for KTO, with ranks for listwise losses.

Unlike other selectors they keep truncated completions, always as wrong: the loss pushes those down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Ge

from data.rows.completions import Row, Values, by_prompt, finished, is_right, is_wrong, unique_texts, verifier
from tasks.choose.selectors import selected_row

NEEDS_GOLD = IGNORES_REWARD = ("labelled",)
VERSIONS = {
    "labelled": 2,  # 2: a verdict above 1.0 is right too, partial credit is wrong
    "ranked": 2,  # 2: truncated completions rank below all that ended by themselves
}


def labelled(
    completions: Sequence[Row], reward: Values, scores: Mapping[str, Values], *, cap: Annotated[int, Ge(0)] = 4
) -> list[Row]:
    """Every completion with the verifier's label, each text once a side, at most `cap` right and `cap` wrong ones per prompt.

    KTO, https://arxiv.org/abs/2402.01306: no pairs are needed, prompts that are always or never solved teach as well.
    """
    verdict, selected = verifier(scores), []
    for rows in by_prompt(completions).values():
        right = unique_texts(row for row in rows if finished(row) and is_right(verdict.get(row["completion_id"])))
        wrong = unique_texts((row for row in rows if is_wrong(verdict.get(row["completion_id"]))), besides=right)
        for side, label in ((right, True), (wrong, False)):
            selected += [selected_row(row) | {"label": label} for row in side[: cap or None]]
    return selected


def _ranks_last(truncated: float, ended: Sequence[float]) -> bool:
    """Whether the reward of a truncated completion is below the best of those that ended, and above none of them.

    With a higher rank the loss would teach the truncated completion.
    """
    return bool(ended) and truncated < max(ended) and truncated <= min(ended)


def ranked(
    completions: Sequence[Row], reward: Values, scores: Mapping[str, Values], *, cap: Annotated[int, Ge(0)] = 4
) -> list[Row]:
    """Each prompt's completions by reward (rank 0 = highest, ties share a rank), each text once; no prompt of one reward.

    With `cap`, at most so many per rank, so that the many wrong answers do not dominate the list.
    RRHF, https://arxiv.org/abs/2304.05302; LiPO, https://arxiv.org/abs/2402.01878.
    """
    selected = []
    for rows in by_prompt(completions).values():
        known = [(reward.get(row["completion_id"]), row) for row in unique_texts(rows)]
        value = {row["completion_id"]: v for v, row in known if v is not None}
        usable = [row for _, row in known if row["completion_id"] in value]
        ended = [value[row["completion_id"]] for row in usable if finished(row)]
        usable = [row for row in usable if finished(row) or _ranks_last(value[row["completion_id"]], ended)]
        levels = sorted({value[row["completion_id"]] for row in usable}, reverse=True)
        if len(levels) < 2:
            continue
        for rank, level in enumerate(levels):
            same = [row for row in usable if value[row["completion_id"]] == level]
            selected += [selected_row(row) | {"rank": rank} for row in same[: cap or None]]
    return selected
