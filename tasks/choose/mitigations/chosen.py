"""Mitigations that drop rows of PAIRS (or of SELECTED, if they say so), or give pairs soft labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from data.errors import PartError
from data.rows.completions import Row, Values, by_prompt
from tasks.bias.effects import scaled
from tasks.choose.mitigations import lengths

VERSIONS = {
    "length_matched": 3,  # 3: an empty completion has 0 tokens, and does not change the unit of the others. 2: one unit
    "style_balanced": 2,  # 2: balances how much, not how often
}


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
    """The most pairs whose chosen sides have, on average, as much of a feature as their rejected sides.

    Pairs are dropped on the side that has too much, the widest gaps first, until the gaps add up to about nothing. Lengths are
    compared on the log scale, as in the ledger. A pair in which the feature does not apply to both sides has no gap.
    Down-sampling the over-represented side worked better than weights in https://arxiv.org/abs/2005.04345.
    """
    gaps = _gaps(rows, completions, feature)
    widest_first = sorted(range(len(rows)), key=lambda i: (-abs(gaps[i]), rows[i]["chosen_id"], rows[i]["rejected_id"]))
    dropped = _dropped(gaps, widest_first)
    return [pair for i, pair in enumerate(rows) if i not in dropped]


def _dropped(gaps: Sequence[float], widest_first: Sequence[int]) -> set[int]:
    """The pairs to leave out so that the gaps of the others add up to about 0."""
    excess, dropped = math.fsum(gaps), set()
    too_much = [i for i in widest_first if gaps[i] * excess > 0]
    for i in too_much:
        if abs(gaps[i]) <= abs(excess):  # so that it never tips over
            dropped.add(i)
            excess -= gaps[i]
    smallest = next((i for i in reversed(too_much) if i not in dropped), None)
    if smallest is not None and abs(excess - gaps[smallest]) < abs(excess):  # tips over, by less than is left
        dropped.add(smallest)
    return dropped


def _gaps(pairs: Sequence[Row], completions: Sequence[Row], feature: str) -> list[float]:
    """The feature of the chosen minus that of the rejected side, on the ledger's scale; 0 where one of them is unknown."""
    from tasks.run import parts

    known = np.array(parts.configure("features", feature, {})(completions), dtype=float)  # NaN for None
    values = scaled(known, parts.kind("features", feature)).tolist()
    value_of = dict(zip((row["completion_id"] for row in completions), values, strict=True))
    gaps = [value_of[pair["chosen_id"]] - value_of[pair["rejected_id"]] for pair in pairs]
    return [0.0 if math.isnan(gap) else gap for gap in gaps]


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
