"""Mitigations that drop rows of PAIRS (or of SELECTED, if they say so), or give pairs soft labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Ge, Gt

from data.errors import PartError
from data.rows.completions import Row, Values, by_prompt
from tasks.choose.mitigations import feature_values, lengths

VERSIONS = {"length_matched": 2}  # 2: all lengths in one unit


def length_matched(
    rows: Sequence[Row], completions: Sequence[Row], scores: Mapping[str, Values], *, tolerance: Annotated[float, Gt(0)] = 0.1
) -> list[Row]:
    """Only pairs whose lengths differ by a factor of at most exp(tolerance), so that length teaches nothing."""
    tokens = {row["completion_id"]: length for row, length in zip(completions, lengths(completions), strict=True)}
    return [
        pair
        for pair in rows
        if abs(math.log(max(1, tokens[pair["chosen_id"]]) / max(1, tokens[pair["rejected_id"]]))) <= tolerance
    ]


def style_balanced(rows: Sequence[Row], completions: Sequence[Row], scores: Mapping[str, Values], *, feature: str) -> list[Row]:
    """As many pairs whose chosen side has more of a feature as pairs whose chosen side has less; all ties are kept.

    Down-sampling the over-represented side worked better than weights in https://arxiv.org/abs/2005.04345.
    """
    values = feature_values(completions, [feature])[:, 0]
    value_of = {row["completion_id"]: value for row, value in zip(completions, values, strict=True)}
    signs = [_sign(value_of[pair["chosen_id"]] - value_of[pair["rejected_id"]]) for pair in rows]
    quota = {0: len(rows), **dict.fromkeys((1, -1), min(signs.count(1), signs.count(-1)))}
    used: Counter[int] = Counter()
    balanced = []
    # Completion ids are hashes, so their order is random.
    for pair, sign in sorted(zip(rows, signs, strict=True), key=lambda both: both[0]["chosen_id"]):
        used[sign] += 1
        if used[sign] <= quota[sign]:
            balanced.append(pair)
    return balanced


def cap_copies(
    rows: Sequence[Row],
    completions: Sequence[Row],
    scores: Mapping[str, Values],
    *,
    copies: Annotated[int, Ge(1)] = 1,
    after: str = "",
) -> list[Row]:
    """At most `copies` rows of PAIRS or SELECTED that teach the same text for the same prompt.

    With `after`, at most `copies` rows with the same answer: the text behind the last `after`.
    """
    text = {row["completion_id"]: row["text"].rpartition(after)[2] if after else row["text"] for row in completions}
    count: Counter[tuple[str, str]] = Counter()
    capped = []
    for row in rows:
        taught = row["prompt_id"], text[row.get("chosen_id") or row["completion_id"]]
        count[taught] += 1
        if count[taught] <= copies:
            capped.append(row)
    return capped


def agreed(rows: Sequence[Row], completions: Sequence[Row], scores: Mapping[str, Values], *, one: str, other: str) -> list[Row]:
    """Pairs with a soft label: (tau + 1) / 2, Kendall's tau-b of how two scorers (by name) rank the prompt's completions.

    The sigmoid loss then weighs a pair by that share in its order, and by the rest in the reverse order. The label is 0.5 if
    either scorer ties all completions of a prompt. CREAM, https://arxiv.org/abs/2410.12735 (there the scorers are the policy
    and its predecessor as judges).

    Raises:
        PartError: the recipe has no such scorer.
    """
    from scipy.stats import kendalltau

    if unknown := sorted({one, other} - scores.keys()):
        raise PartError(f"mitigations 'agreed': expected names of [[score]], found {unknown[0]}; known: {', '.join(scores)}")
    labels = {}
    for prompt, group in by_prompt(completions).items():
        values = [(scores[one].get(row["completion_id"]), scores[other].get(row["completion_id"])) for row in group]
        known = [pair for pair in values if None not in pair]
        both_rank = all(len(set(side)) > 1 for side in zip(*known, strict=True)) if known else False
        labels[prompt] = (float(kendalltau(*zip(*known, strict=True)).statistic) + 1) / 2 if both_rank else 0.5
    return [row | {"label": labels[row["prompt_id"]]} for row in rows]


def _sign(value: float) -> int:
    return int(value > 0) - int(value < 0)
