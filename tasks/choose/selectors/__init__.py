"""The shelf of selectors: `(completions, reward, scores, *, settings) -> rows of SELECTED`, what SFT and RAFT train on.

`reward` and each scorer's values in `scores` are by completion_id, None where unknown; `scores` is in recipe order and its
first scorer is the verifier (1.0 right, 0.0 wrong). A completion cut at the token limit is never selected: it would teach the
policy not to stop. The order of the rows never changes what is selected.
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
