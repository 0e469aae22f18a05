"""The shelf of prompt features: `(groups, *, settings) -> list[float | None]`, one number per prompt.

groups[i] holds all samples of a prompt (rows of COMPLETIONS, in sample order). Otherwise as on tasks/features: keyword-only
parameters are settings, except what the stage supplies, here a list per group, row for row with it: `verdicts` (the verifier's
values) and `answers` (what the verifier read as the final answer, None where it found none). With one sample per prompt most
of these cannot be known: None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
Groups = Sequence[Sequence[Row]]
Values = list[float | None]
Verdicts = Sequence[Sequence[float | None]]
NOT_PARTS = ("mean_or_none",)


def mean_or_none(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
