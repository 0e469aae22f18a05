"""Process scores: how likely each step of a solution leads to the correct answer, estimated by sampled continuations."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, MinLen

from data.rows import tables
from data.rows.completions import is_right
from tasks.generate.prefixes import begun
from tasks.score.scorers import Row, Score

VERSIONS = {"step_rollouts": 2}  # 2: the steps' values are shrunk before the minimum is taken


class step_rollouts:
    """The value of the worst step: the share of `samples` continuations after it that end with the correct answer.

    The last step's value is the verifier's verdict. `separator` ends a step, and there are at most `steps` of them. `detail`
    has the values of all steps; the first 0 is the first wrong step. The model of score.checkpoint continues every distinct
    start, decoded as in [generate], and the verifier judges the whole text. If a step has no verdict at all, there is no value.
    Math-Shepherd, https://arxiv.org/abs/2312.08935 (8 samples, minimum over the steps).

    The minimum of many noisy shares is low even where every step is equally good, so a long solution would lose to a short one.
    So the shares are first moved towards their mean, by as much of their spread as `samples` continuations explain by chance.
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
        self.count_of_start = {start: len(right) for start, right in verdicts.items()}

    def __call__(self, prompts: Sequence[Row], completions: Sequence[Row], *, verdicts: Sequence[float | None]) -> list[Score]:
        return [
            self._score(prompt, completion, verdict)
            for prompt, completion, verdict in zip(prompts, completions, verdicts, strict=True)
        ]

    def _score(self, prompt: Row, completion: Row, verdict: float | None) -> Score:
        cuts = begun(prompt["messages"], completion["text"], self.separator, self.steps)
        starts = [tables.prompt_id(messages) for messages in cuts]
        sampled = [self.value_of_start[start] for start in starts if start in self.value_of_start]
        detail = json.dumps([*map(self.value_of_start.get, starts), verdict])
        if verdict is None or len(sampled) < len(starts):
            return Score(None, "no_verdict", detail)
        return Score(min([*shrunk(sampled, [self.count_of_start[start] for start in starts]), verdict]), "ok", detail)


NOT_PARTS = ("shrunk",)


def shrunk(shares: Sequence[float], counts: Sequence[int]) -> list[float]:
    """Shares of right continuations, moved towards their mean by as much of their spread as chance explains.

    Each share is of `counts` continuations. A share becomes mean + b (share - mean), where b is the variance between steps over
    that variance plus the variance of a share by chance: empirical Bayes, with the moment estimator of DerSimonian and Laird
    (Controlled Clinical Trials 7, 1986) for equal weights. b is 0 if the shares differ no more than by chance.
    """
    if len(shares) < 2:
        return list(shares)
    mean = math.fsum(shares) / len(shares)
    observed = math.fsum((share - mean) ** 2 for share in shares) / (len(shares) - 1)
    chance = [mean * (1 - mean) / count for count in counts]
    between = max(0.0, observed - math.fsum(chance) / len(chance))
    return [mean + (between / (between + c) if between else 0.0) * (s - mean) for s, c in zip(shares, chance, strict=True)]
