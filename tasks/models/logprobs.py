"""Log-probabilities of a checkpoint on given completions: proof of the reference, KL, and the engines' reload probe."""

from __future__ import annotations

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
    """LOGPROBS of `inputs["checkpoint"]` on the first rows of `inputs["completions"]` (of `inputs["pairs"]` where given).

    Chosen and rejected rows alternate, so that a small limit sees both.
    """
    s: Settings = work.settings
    prompts = {
        row["prompt_id"]: row for row in tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS).to_pylist()
    }
    rows = {
        row["completion_id"]: row
        for row in tables.read(work.inputs["completions"] / "completions.parquet", tables.COMPLETIONS).to_pylist()
    }
    wanted = list(rows)
    if "pairs" in work.inputs:
        pairs = tables.read(work.inputs["pairs"] / "pairs.parquet", tables.PAIRS).to_pylist()
        wanted = list(dict.fromkeys(i for pair in pairs for i in (pair["chosen_id"], pair["rejected_id"])))
    wanted = wanted[: s.limit or None]
    tokenizer = models.load_tokenizer(work.inputs["checkpoint"], s.trust_remote_code)
    model = models.load_model(work.inputs["checkpoint"], device_of(work.hardware), s.dtype, s.trust_remote_code)
    sequences = [
        (models.render(tokenizer, prompts[rows[i]["prompt_id"]]["messages"]), models.completion_ids(tokenizer, rows[i]))
        for i in wanted
    ]
    values = models.completion_logprobs(model, sequences, tokenizer.pad_token_id)
    table = [
        {"completion_id": i, "prompt_id": rows[i]["prompt_id"], "logprobs": value, "total": float(sum(value))}
        for i, value in zip(wanted, values, strict=True)
    ]
    tables.write(tables.from_rows(table, tables.LOGPROBS), tables.LOGPROBS, work.out / "logprobs.parquet")
