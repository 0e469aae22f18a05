"""Train a checkpoint through TRL: SFT on selected completions, DPO (any TRL loss) on pairs. Resumes from verified saves.

The sampled token ids go to the trainer as they are: nothing is tokenised twice and no end-of-sequence token is invented.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from data import tables
from data.errors import ReferenceMismatch, StageFailed
from tasks import models
from tasks.saves import newest_save, save_callback
from tasks.work import Work, device_of

VERSION = 1
LIBRARIES = ("torch", "transformers", "tokenizers", "trl", "accelerate")
REFERENCE_TOLERANCE = {
    "float32": 1e-3,
    "bfloat16": 0.1,
}  # nats per token between the reference and its stored log-probabilities

Row = dict[str, Any]


class Settings(BaseModel):
    loss: str
    beta: float
    nll: float
    steps: int
    epochs: float
    batch: int
    accumulate: int
    learning_rate: float
    schedule: str
    warmup: float
    weight_decay: float
    max_length: int
    precision: str
    replay: bool
    save_every: int
    split: str  # the prompts file the completions answer
    trust_remote_code: bool = False


def train(work: Work) -> None:
    """A checkpoint folder and `training.json` (loss by step, rows, rows left out).

    Inputs: `checkpoint` (start); `prompts` and `completions` with `selected`, or with `pairs`, `reference` and
    `reference_logprobs`; `seed_data` (a prepare artifact) where `replay` is set.

    Raises:
        ReferenceMismatch: the reference in memory is not the checkpoint the round names.
        StageFailed: the loss is not a number, or no row fits `max_length`.
    """
    s: Settings = work.settings
    tokenizer = models.load_tokenizer(work.inputs["checkpoint"], s.trust_remote_code)
    rows = _pair_rows(work, tokenizer) if s.loss != "nll" else _completion_rows(work, tokenizer)
    fitting = [row for row in rows if _longest(row) <= s.max_length]
    if not fitting:
        raise StageFailed(f"train: none of {len(rows)} rows fits train.max_length = {s.max_length} tokens; raise it")
    trainer = (_pair_trainer if s.loss != "nll" else _completion_trainer)(work, tokenizer, fitting)
    trainer.remove_callback(_printer())  # losses go to training.json; the terminal shows the bar
    trainer.add_callback(save_callback(work.scratch, work.tick))
    resume = newest_save(work.scratch)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    history = _history(trainer.state.log_history)
    if not all(math.isfinite(entry["loss"]) for entry in history):
        raise StageFailed("train: the loss is not a number; lower train.learning_rate")
    _write(work, trainer.model)
    facts = {"rows": len(fitting), "left_out": len(rows) - len(fitting), "steps": trainer.state.global_step, "history": history}
    (work.out / "training.json").write_text(json.dumps(facts, indent=1))


# -- rows -----------------------------------------------------------------------------------------------------------------
def _sequences(prompts: Path, completions: Path, tokenizer: Any) -> dict[str, tuple[list[int], list[int]]]:
    """completion_id -> (prompt ids, completion ids)."""
    messages = {row["prompt_id"]: row["messages"] for row in tables.read(prompts, tables.PROMPTS).to_pylist()}
    rendered: dict[str, list[int]] = {}
    out = {}
    for row in tables.read(completions, tables.COMPLETIONS).to_pylist():
        if row["prompt_id"] not in rendered:
            rendered[row["prompt_id"]] = models.render(tokenizer, messages[row["prompt_id"]])
        out[row["completion_id"]] = (rendered[row["prompt_id"]], models.completion_ids(tokenizer, row))
    return out


def _completion_rows(work: Work, tokenizer: Any) -> list[Row]:
    s: Settings = work.settings
    chosen: list[tuple[list[int], list[int]]] = []
    if "selected" in work.inputs:
        known = _sequences(
            work.inputs["prompts"] / f"{s.split}.parquet", work.inputs["completions"] / "completions.parquet", tokenizer
        )
        selected = tables.read(work.inputs["selected"] / "selected.parquet", tables.SELECTED)["completion_id"].to_pylist()
        chosen += [known[i] for i in selected]
    if s.replay:
        given = work.inputs["seed_data"]
        chosen += _sequences(given / "seed.parquet", given / "given.parquet", tokenizer).values()
    return [{"input_ids": p + c, "labels": [-100] * len(p) + c} for p, c in chosen]  # the loss sees the completion only


def _pair_rows(work: Work, tokenizer: Any) -> list[Row]:
    s: Settings = work.settings
    known = _sequences(
        work.inputs["prompts"] / f"{s.split}.parquet", work.inputs["completions"] / "completions.parquet", tokenizer
    )
    pairs = tables.read(work.inputs["pairs"] / "pairs.parquet", tables.PAIRS).to_pylist()
    return [
        {
            "prompt_ids": known[pair["chosen_id"]][0],
            "chosen_ids": known[pair["chosen_id"]][1],
            "rejected_ids": known[pair["rejected_id"]][1],
        }
        for pair in pairs
    ]


def _longest(row: Row) -> int:
    if "input_ids" in row:
        return len(row["input_ids"])
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


# -- trainers -------------------------------------------------------------------------------------------------------------
def _arguments(work: Work, rows: int) -> dict[str, Any]:
    """What SFTConfig and DPOConfig share. TRL's defaults that bite (bf16, gradient checkpointing, reporting) are set here."""
    s: Settings = work.settings
    steps = s.steps or max(1, math.ceil(s.epochs * rows / s.batch))
    on_gpu = device_of(work.hardware) == "cuda"
    return {
        "output_dir": str(work.scratch),
        "max_steps": steps,
        "per_device_train_batch_size": s.batch // s.accumulate,
        "gradient_accumulation_steps": s.accumulate,
        "learning_rate": s.learning_rate,
        "lr_scheduler_type": s.schedule,
        "warmup_steps": round(s.warmup * steps),
        "weight_decay": s.weight_decay,
        "bf16": s.precision == "bfloat16",
        "gradient_checkpointing": on_gpu,
        "max_length": s.max_length,
        "seed": work.seed,
        "data_seed": work.seed,
        "save_strategy": "steps",
        "save_steps": s.save_every,
        "save_total_limit": 2,
        "logging_steps": next(n for n in range(min(10, s.save_every), 0, -1) if s.save_every % n == 0),  # see _history
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not on_gpu,
        "remove_unused_columns": False,
        "dataloader_pin_memory": on_gpu,
    }


def _printer() -> Any:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def _completion_trainer(work: Work, tokenizer: Any, rows: list[Row]) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    s: Settings = work.settings
    config = SFTConfig(**_arguments(work, len(rows)), dataset_kwargs={"skip_prepare_dataset": True}, loss_type="nll")
    model = models.load_model(work.inputs["checkpoint"], device_of(work.hardware), "float32", s.trust_remote_code)
    return SFTTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def _pair_trainer(work: Work, tokenizer: Any, rows: list[Row]) -> Any:
    from datasets import Dataset
    from trl import DPOConfig

    from tasks.losses import pair_trainer

    s: Settings = work.settings
    terms = {"loss_type": [s.loss, "sft"], "loss_weights": [1.0, s.nll]} if s.nll else {"loss_type": [s.loss]}
    config = DPOConfig(**_arguments(work, len(rows)), beta=s.beta, **terms)
    device = device_of(work.hardware)
    # Both come from immutable folders: with ref_model=None TRL would reload whatever config._name_or_path points to.
    policy = models.load_model(work.inputs["checkpoint"], device, "float32", s.trust_remote_code)
    reference = models.load_model(work.inputs["reference"], device, "float32", s.trust_remote_code)
    _prove_reference(work, reference, tokenizer)
    return pair_trainer()(
        model=policy, ref_model=reference, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


def _prove_reference(work: Work, reference: Any, tokenizer: Any) -> None:
    """Compare the reference in memory with the LOGPROBS artifact of the checkpoint the round names."""
    s: Settings = work.settings
    stored = tables.read(work.inputs["reference_logprobs"] / "logprobs.parquet", tables.LOGPROBS).to_pylist()
    known = _sequences(
        work.inputs["prompts"] / f"{s.split}.parquet", work.inputs["completions"] / "completions.parquet", tokenizer
    )
    now = models.completion_logprobs(reference, [known[row["completion_id"]] for row in stored], tokenizer.pad_token_id)
    worst = max(
        (abs(a - b) for row, values in zip(stored, now, strict=True) for a, b in zip(row["logprobs"], values, strict=True))
    )
    if worst > REFERENCE_TOLERANCE[s.precision]:
        raise ReferenceMismatch(
            f"the reference in memory differs from its checkpoint by {worst:.3g} nats on a token "
            f"(allowed {REFERENCE_TOLERANCE[s.precision]}); the checkpoint or the loading is not what the round names"
        )


# -- results --------------------------------------------------------------------------------------------------------------
def _history(log: list[Row]) -> list[Row]:
    """Loss and, for pairs, reward margins and log-probabilities by step; no times, so that the digest does not move.

    Each entry averages the steps since the last one, so a save falls on an entry's end: a resumed training logs the same.
    """
    keep = ("loss", "grad_norm", "learning_rate", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")
    return [{"step": e["step"], **{k: e[k] for k in keep if k in e}} for e in log if "loss" in e]


def _write(work: Work, model: Any) -> None:
    """Weights and configuration from memory, everything else (tokenizer, template) copied from where training started."""
    model.save_pretrained(work.out)
    for path in models.inspect_checkpoint(work.inputs["checkpoint"]):
        weights = path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json")
        if not weights and not (work.out / path.name).exists() and path.name != "training.json":
            shutil.copyfile(path, work.out / path.name)
