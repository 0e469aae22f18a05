"""The log-probability of given texts under a checkpoint. It shows forgetting before any answer becomes wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.rows import tables
from tasks.evaluate.measure import mean, paired
from tasks.run.work import StageSettings, Work

VERSION = 2  # 2: intervals of skewed values
LIBRARIES = ("numpy", "scipy")


class Settings(StageSettings):
    split: str  # its name in the metrics
    against: list[str]  # names of the inputs `logprobs/<name>` to compare with


def measure_logprob(work: Work) -> None:
    """METRICS (`metrics.parquet`): mean log-probability per token of `inputs["logprobs"]` (LOGPROBS), in nats.

    It is the mean over prompts of each prompt's mean, with its 95% interval. Paired differences follow.
    """
    s: Settings = work.settings
    ours = per_token(work.inputs["logprobs"])
    rows = [mean("logprob", s.split, [value for (value,) in ours.values()])]
    rows += [paired(s.split, f"logprob_vs_{name}", ours, per_token(work.inputs[f"logprobs/{name}"])) for name in s.against]
    tables.write(tables.from_rows(rows, tables.METRICS), tables.METRICS, work.out / "metrics.parquet")


def per_token(folder: Path) -> dict[str, list[float]]:
    """By prompt_id, the mean over its texts of their mean log-probability per token, as a list of one."""
    means: dict[str, list[float]] = {}
    for row in tables.read(folder / "logprobs.parquet", tables.LOGPROBS).to_pylist():
        means.setdefault(row["prompt_id"], []).append(float(np.mean(row["logprobs"])))
    return {prompt: [float(np.mean(values))] for prompt, values in means.items()}
