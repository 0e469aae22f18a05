"""Mitigations that drop rows of what was chosen, PAIRS, or SELECTED where they say so; or say how sure a pair is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Ge, Gt

from data.errors import PartError
from data.rows.completions import Row, Values, by_prompt
from tasks.choose.mitigations import feature_values, lengths

VERSIONS = {"length_matched": 2}  # 2: lengths of one unit


def length_matched(
    rows: Sequence[Row], completions: Sequence[Row], scores: Mapping[str, Values], *, tolerance: Annotated[float, Gt(0)] = 0.1
) -> list[Row]:
    """Only pairs whose lengths differ by a factor of at most exp(tolerance): nothing is learned from length."""
    tokens = {row["completion_id"]: length for row, length in zip(completions, lengths(completions), strict=True)}
    return [
        pair
        for pair in rows
        if abs(math.log(max(1, tokens[pair["chosen_id"]]) / max(1, tokens[pair["rejected_id"]]))) <= tolerance
    ]


def style_balanced(rows: Sequence[Row], completions: Sequence[Row], scores: Mapping[str, Values], *, feature: str) -> list[Row]:
    """Pairs in which the chosen has more of a feature, thinned to as many as those in which it has less; ties all stay.

    Down-sampling what is over-represented, which served better than weights in https://arxiv.org/abs/2005.04345.
    """
    values = feature_values(completions, [feature])[:, 0]
    of = {row["completion_id"]: value for row, value in zip(completions, values, strict=True)}
    sign = [_sign(of[pair["chosen_id"]] - of[pair["rejected_id"]]) for pair in rows]
    room = {0: len(rows), **dict.fromkeys((1, -1), min(sign.count(1), sign.count(-1)))}
    used: Counter[int] = Counter()
    kept = []
    for pair, way in sorted(zip(rows, sign, strict=True), key=lambda both: both[0]["chosen_id"]):  # ids are hashes: at random
        used[way] += 1
        if used[way] <= room[way]:
            kept.append(pair)
    return kept


def cap_copies(
    rows: Sequence[Row],
    completions: Sequence[Row],
    scores: Mapping[str, Values],
    *,
    copies: Annotated[int, Ge(1)] = 1,
    after: str = "",
) -> list[Row]:
    """At most `copies` rows of PAIRS or SELECTED that teach the same text of the same prompt.

    With `after`, the same answer: what follows the text's last `after`.
    """
    text = {row["completion_id"]: row["text"].rpartition(after)[2] if after else row["text"] for row in completions}
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for row in rows:
        taught = row["prompt_id"], text[row.get("chosen_id") or row["completion_id"]]
        seen[taught] += 1
        if seen[taught] <= copies:
            kept.append(row)
    return kept


def agreed(rows: Sequence[Row], completions: Sequence[Row], scores: Mapping[str, Values], *, one: str, other: str) -> list[Row]:
    """Pairs with a soft label: (tau + 1) / 2, Kendall's tau-b of how two scorers (by name) rank the prompt's completions.

    CREAM, https://arxiv.org/abs/2410.12735 (there the policy and its predecessor as judges): the sigmoid loss then counts a
    pair as it stands to that share, turned round to the rest. 0.5 where either ties all of a prompt.

    Raises:
        PartError: the recipe has no such scorer.
    """
    from scipy.stats import kendalltau

    if unknown := sorted({one, other} - scores.keys()):
        raise PartError(f"mitigations 'agreed': expected names of [[score]], found {unknown[0]}; known: {', '.join(scores)}")
    label = {}
    for prompt, group in by_prompt(completions).items():
        values = [(scores[one].get(row["completion_id"]), scores[other].get(row["completion_id"])) for row in group]
        known = [pair for pair in values if None not in pair]
        told = all(len(set(side)) > 1 for side in zip(*known, strict=True)) if known else False
        label[prompt] = (float(kendalltau(*zip(*known, strict=True)).statistic) + 1) / 2 if told else 0.5
    return [row | {"label": label[row["prompt_id"]]} for row in rows]


def _sign(value: float) -> int:
    return int(value > 0) - int(value < 0)
