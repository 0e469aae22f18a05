"""Process scores: how likely each step of a solution leads to the correct answer, estimated by sampled continuations."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, MinLen

from data.rows import tables
from data.rows.completions import is_right
from tasks.generate.prefixes import begun
from tasks.score.scorers import Row, Score


class step_rollouts:
    """The value of the worst step: the share of `samples` continuations after it that end with the correct answer.

    The last step's value is the verifier's verdict. `separator` ends a step, and there are at most `steps` of them. `detail`
    has the values of all steps; the first 0 is the first wrong step. The model of score.checkpoint continues every distinct
    start, decoded as in [generate], and the verifier judges the whole text. If a step has no verdict at all, there is no value.
    Math-Shepherd, https://arxiv.org/abs/2312.08935 (8 samples, minimum over the steps).
    """

    def __init__(
        self,
        *,
        separator: Annotated[str, MinLen(1)] = "\n",
        steps: Annotated[int, Ge(2)] = 32,
        samples: Annotated[int, Ge(1)] = 8,
        rollouts: Path,
    ) -> None:
        self.separator, self.steps = separator, steps
        verdicts: dict[str, list[float]] = defaultdict(list)
        for row in tables.read(rollouts / "scores.parquet", tables.SCORES).to_pylist():
            if row["value"] is not None:
                verdicts[row["prompt_id"]].append(float(is_right(row["value"])))
        self.value_of_start = {start: sum(right) / len(right) for start, right in verdicts.items()}

    def __call__(self, prompts: Sequence[Row], completions: Sequence[Row], *, verdicts: Sequence[float | None]) -> list[Score]:
        return [
            self._score(prompt, completion, verdict)
            for prompt, completion, verdict in zip(prompts, completions, verdicts, strict=True)
        ]

    def _score(self, prompt: Row, completion: Row, verdict: float | None) -> Score:
        starts = begun(prompt["messages"], completion["text"], self.separator, self.steps)
        steps = [*(self.value_of_start.get(tables.prompt_id(messages)) for messages in starts), verdict]
        values = [step for step in steps if step is not None]
        detail = json.dumps(steps)
        return Score(min(values), "ok", detail) if len(values) == len(steps) else Score(None, "no_verdict", detail)
