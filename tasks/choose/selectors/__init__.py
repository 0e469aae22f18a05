"""Selectors: `(completions, reward, scores, *, settings) -> rows of SELECTED`, the data of SFT, RAFT, KTO and listwise losses.

`reward` and each scorer's values in `scores` are by completion_id, None if unknown. `scores` is in recipe order; its first
scorer is the verifier; `is_right` and `is_wrong` read its verdicts. A truncated completion is never selected, because it would
teach the policy not to stop (labels.py has the exceptions). The order of the rows has no effect.

Where the recipe's `gold` keeps verdicts out of training, a selector gets None for each. A file lists in NEEDS_GOLD the parts
that cannot choose without verdicts, in USES_GOLD those that read them if they get them, and in IGNORES_REWARD those that choose
the same whatever the reward.
"""

from __future__ import annotations

from data.rows.completions import Row

NOT_PARTS = ("selected_row",)


def selected_row(row: Row, weight: float = 1.0) -> Row:
    """The SELECTED row of a completion."""
    return {
        "prompt_id": row["prompt_id"],
        "completion_id": row["completion_id"],
        "weight": weight,
        "label": None,
        "rank": None,
    }
