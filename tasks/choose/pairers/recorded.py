"""The pairer for preferences that are known already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data.errors import StageFailed
from data.rows.completions import Row, Values, by_prompt, finished
from tasks.choose.pairers import pair_row


def as_recorded(completions: Sequence[Row], reward: Values, scores: Mapping[str, Values]) -> list[Row]:
    """The pairs of a file with `chosen` and `rejected` columns, as somebody else (people, mostly) preferred them.

    Pairs of equal texts, and those whose chosen side is known to be cut, are left out.

    Raises:
        StageFailed: the completions do not come from such a file.
    """
    if not all("preferred" in row.get("record", {}) for row in completions):
        raise StageFailed(
            "as_recorded: expected preferences, found completions without; set generate.engine = 'recorded' and, to a file's "
            "columns, prompts.map.chosen and rejected, or take another pairer"
        )
    pairs = []
    for rows in by_prompt(completions).values():
        for chosen, rejected in zip(rows[::2], rows[1::2], strict=True):  # as imported, side by side
            if chosen["text"] != rejected["text"] and finished(chosen):
                pairs.append(pair_row(chosen, rejected, reward))
    return pairs
