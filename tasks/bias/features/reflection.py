"""Reflection keywords. `reflection_effect` in prompt_features/verdicts.py measures whether reflecting helps."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow.compute as pc

from tasks.bias.features import Batch, Row, Values, listed, matches

# The idea of the list: "There may not be an aha moment" (oat-zero study); wording ours, with wait / hmm / let me check added.
KEYWORDS = (
    r"(?i)\b(?:re-?check|re-?evaluate|re-?examine|re-?consider|re-?think|re-?verify|check again|try again|think again"
    r"|verify again|go over the steps|let['’]?s (?:check|verify)|let me (?:check|verify|double-check)|double-check|wait|hmm+)\b"
)
KINDS = {"reflects": "rate"}


def reflects(completions: Sequence[Row]) -> Values:
    """1.0 with, 0.0 without a reflection keyword (wait, let me check, re-evaluate, ...)."""
    return matches(Batch.of(completions).texts, KEYWORDS)


def reflections(completions: Sequence[Row]) -> Values:
    """How many reflection keywords."""
    return listed(pc.count_substring_regex(Batch.of(completions).texts, pattern=KEYWORDS))
