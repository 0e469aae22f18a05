"""Process scores: how far each step of a solution still leads to the answer, estimated by sampling on from it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, MinLen

from data.rows import tables
from tasks.generate.prefixes import begun
from tasks.score.scorers import Row, Score


class step_rollouts:
    """The worst step's value: the share of `samples` continuations after it that end right; of the last step, the verdict.

    `separator` ends a step, at most `steps` are told apart, and `detail` holds all their values: the first 0 is the first wrong
    step. The model of score.checkpoint goes on from every distinct start as [generate] decodes, the verifier judges the whole;
    with a step whose verdicts are all unknown, nothing is claimed. Math-Shepherd, https://arxiv.org/abs/2312.08935 (8 samples,
    the least of the steps).
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
        known: dict[str, list[float]] = defaultdict(list)
        for row in tables.read(rollouts / "scores.parquet", tables.SCORES).to_pylist():
            if row["value"] is not None:
                known[row["prompt_id"]].append(float(row["value"] >= 1.0))
        self.reached = {start: sum(right) / len(right) for start, right in known.items()}

    def __call__(self, prompts: Sequence[Row], completions: Sequence[Row], *, verdicts: Sequence[float | None]) -> list[Score]:
        return [
            self._score(prompt, completion, verdict)
            for prompt, completion, verdict in zip(prompts, completions, verdicts, strict=True)
        ]

    def _score(self, prompt: Row, completion: Row, verdict: float | None) -> Score:
        starts = begun(prompt["messages"], completion["text"], self.separator, self.steps)
        steps = [*(self.reached.get(tables.prompt_id(messages)) for messages in starts), verdict]
        known = [step for step in steps if step is not None]
        detail = json.dumps(steps)
        return Score(min(known), "ok", detail) if len(known) == len(steps) else Score(None, "no_verdict", detail)
