"""The pairer for preferences that a file records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data.errors import StageFailed
from data.rows.completions import Row, Values, by_prompt, finished
from tasks.choose.pairers import pair_row

IGNORES_REWARD = ("as_recorded",)


def as_recorded(completions: Sequence[Row], reward: Values, scores: Mapping[str, Values]) -> list[Row]:
    """The pairs of a file with `chosen` and `rejected` columns, as recorded there (mostly by people).

    Pairs of equal texts, pairs whose chosen side was truncated and pairs of which one side is not offered are left out.

    Raises:
        StageFailed: the completions do not come from such a file.
    """
    if not all("preferred" in row.get("record", {}) for row in completions):
        raise StageFailed(
            "as_recorded: expected completions with recorded preferences, found some without. Set generate.engine = 'recorded' "
            "and prompts.map.chosen and prompts.map.rejected to the file's columns; or use another pairer."
        )
    pairs = []
    for rows in by_prompt(completions).values():
        by_sample = {row["sample"]: row for row in rows}  # imported as chosen, rejected, chosen, ...
        for sample, chosen in by_sample.items():
            rejected = by_sample.get(sample + 1) if sample % 2 == 0 else None
            if rejected and chosen["text"] != rejected["text"] and finished(chosen):
                pairs.append(pair_row(chosen, rejected, reward))
    return pairs
