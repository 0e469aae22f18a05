"""Prompt features: `(groups, *, settings) -> list[float | None]`, one number per prompt.

groups[i] has all samples of a prompt (rows of COMPLETIONS, in sample order). Keyword-only parameters are settings, except those
that the stage supplies, here a list per group: `verdicts` (the verifier's values) and `answers` (the final answers that the
verifier extracted, None if it found none). With one sample per prompt most of these are unknown: None.

A part with a parameter `marks` compares the prompts with each other. The stage calls it once, for all prompts, with groups that
hold only the prompts' ids; `marks` has what is kept of their answers, prompt by prompt.
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
