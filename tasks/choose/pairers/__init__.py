"""The shelf of pairers: `(completions, reward, scores, *, settings) -> rows of PAIRS`, what DPO and its kin train on.

`reward` and each scorer's values in `scores` are by completion_id, None where unknown; `scores` is in recipe order and its
first scorer is the verifier (1.0 right, 0.0 wrong). Always: a completion cut at the token limit is never chosen, chosen and
rejected never have the same text, an unknown value puts a completion on neither side, the order of the rows changes nothing.
"""

from __future__ import annotations

from data.rows.completions import Row, Values

NOT_PARTS = ("pair_row",)


def pair_row(chosen: Row, rejected: Row, reward: Values, weight: float = 1.0) -> Row:
    """The PAIRS row of two completions. Margin: difference of the rewards, 1.0 where one is unknown."""
    high, low = reward.get(chosen["completion_id"]), reward.get(rejected["completion_id"])
    return {
        "prompt_id": chosen["prompt_id"],
        "chosen_id": chosen["completion_id"],
        "rejected_id": rejected["completion_id"],
        "margin": 1.0 if high is None or low is None else high - low,
        "weight": weight,
    }
