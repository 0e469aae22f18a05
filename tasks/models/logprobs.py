"""Log-probabilities of completions under a checkpoint, and the KL from it of the checkpoint that sampled them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data.rows import tables
from tasks.models import models
from tasks.run.work import StageSettings, Work, device_of

VERSION = 1
LIBRARIES = ("torch", "transformers", "tokenizers")


class Settings(StageSettings):
    split: str
    limit: int  # rows; 0 = all
    dtype: str = "float32"
    trust_remote_code: bool


def logprobs(work: Work) -> None:
    """LOGPROBS of the first rows of `inputs["completions"]` under `inputs["checkpoint"]`.

    With an input `pairs`, the rows are those of the pairs. Chosen and rejected rows alternate, so that a small limit has both.
    With an input `own`, the checkpoint that sampled the rows, KL too: that of `own` from `checkpoint`, per token. It is null
    where the two have different vocabularies.
    """
    s: Settings = work.settings
    prompts = {
        row["prompt_id"]: row for row in tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS).to_pylist()
    }
    rows = {
        row["completion_id"]: row
        for row in tables.read(work.inputs["completions"] / "completions.parquet", tables.COMPLETIONS).to_pylist()
    }
    ids = list(rows)
    if "pairs" in work.inputs:
        pairs = tables.read(work.inputs["pairs"] / "pairs.parquet", tables.PAIRS).to_pylist()
        ids = list(dict.fromkeys(i for pair in pairs for i in (pair["chosen_id"], pair["rejected_id"])))
    ids = ids[: s.limit or None]
    tokenizer = models.load_tokenizer(work.inputs["checkpoint"], s.trust_remote_code)
    model = models.load_model(work.inputs["checkpoint"], device_of(work.hardware), s.dtype, s.trust_remote_code)
    sequences = [
        (models.render(tokenizer, prompts[rows[i]["prompt_id"]]["messages"]), models.completion_ids(tokenizer, rows[i]))
        for i in ids
    ]
    values, kl = _measured(work, model, sequences, tokenizer.pad_token_id)
    table = [
        {"completion_id": i, "prompt_id": rows[i]["prompt_id"], "logprobs": value, "total": float(sum(value))}
        for i, value in zip(ids, values, strict=True)
    ]
    tables.write(tables.from_rows(table, tables.LOGPROBS), tables.LOGPROBS, work.out / "logprobs.parquet")
    if "own" in work.inputs:
        of_rows = [{"completion_id": i, "prompt_id": rows[i]["prompt_id"], "kl": each} for i, each in zip(ids, kl, strict=True)]
        tables.write(tables.from_rows(of_rows, tables.KL), tables.KL, work.out / "kl.parquet")


def _measured(
    work: Work, model: Any, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int
) -> tuple[list[list[float]], Sequence[list[float] | None]]:
    """The model's log-probabilities, and the KL from it; None where it is unknown."""
    s: Settings = work.settings
    unknown: list[list[float] | None] = [None] * len(sequences)
    if "own" not in work.inputs:
        return models.completion_logprobs(model, sequences, pad), unknown
    own = models.load_model(work.inputs["own"], device_of(work.hardware), s.dtype, s.trust_remote_code)
    if models.vocabulary(own) != models.vocabulary(model):
        return models.completion_logprobs(model, sequences, pad), unknown
    return models.completion_kl(own, model, sequences, pad)
