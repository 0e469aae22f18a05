"""Pairers: `(completions, reward, scores, *, settings) -> rows of PAIRS`, the data of DPO and other preference losses.

`reward` and each scorer's values in `scores` are by completion_id, None if unknown. `scores` is in recipe order; its first
scorer is the verifier; `is_right` and `is_wrong` read its verdicts.

For every pairer: a truncated completion is never chosen. Chosen and rejected never have the same text. A completion with an
unknown value is neither chosen nor rejected. The order of the rows has no effect.

Where the recipe's `gold` keeps verdicts out of training, a pairer gets None for each verdict. NEEDS_GOLD, USES_GOLD and
IGNORES_REWARD are as in the selectors' folder; the margin of a pair does not count there.
"""

from __future__ import annotations

from data.rows.completions import Row, Values

NOT_PARTS = ("pair_row",)


def pair_row(chosen: Row, rejected: Row, reward: Values, weight: float = 1.0) -> Row:
    """The PAIRS row of two completions. Margin: difference of the rewards, 1.0 if one is unknown."""
    high, low = reward.get(chosen["completion_id"]), reward.get(rejected["completion_id"])
    return {
        "prompt_id": chosen["prompt_id"],
        "chosen_id": chosen["completion_id"],
        "rejected_id": rejected["completion_id"],
        "margin": 1.0 if high is None or low is None else high - low,
        "weight": weight,
    }
