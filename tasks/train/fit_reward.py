"""Train a reward model from pairs: a checkpoint with one output, Bradley-Terry loss, optional margins and centring."""

from __future__ import annotations

import math
from typing import Any

from data.errors import StageFailed
from data.rows import tables
from data.rows.folds import fold_of
from tasks.models import models
from tasks.models.sequences import Sequences, sequences_of_split
from tasks.run.work import StageSettings, Work, device_of
from tasks.train.train import run, write_checkpoint, write_log
from tasks.train.trainers import arguments
from tasks.train.whole_batch import over_whole_batches

VERSION = 3  # 3: the loss is a mean over an optimizer step, however it is divided. 2: an epoch's short last step counts
LAUNCHED = True
LIBRARIES = ("torch", "transformers", "tokenizers", "trl", "accelerate")


class Settings(StageSettings):
    margin: bool  # subtract each pair's reward difference (Llama-2)
    center: float  # weight of (r_chosen + r_rejected)^2
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
    checkpointing: bool
    save_every: int
    split: str
    trust_remote_code: bool
    fold: int | None = None  # leave out the pairs of this fold's prompts (data/rows/folds.py); None = fit on all


def fit_reward(work: Work) -> None:
    """A sequence-classification checkpoint with one output, on the trunk of `inputs["checkpoint"]`, with its training log.

    L = -log s(r_chosen - r_rejected - margin) + center (r_chosen + r_rejected)^2. Bradley-Terry as in InstructGPT (arXiv
    2203.02155), the margin of Llama-2 (2307.09288), the centring of 2312.09244.

    Raises:
        StageFailed: there are no pairs, none fits `max_length`, or the loss is NaN or infinite.
    """
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    s: Settings = work.settings
    tokenizer = models.load_tokenizer(work.inputs["checkpoint"], s.trust_remote_code)
    sequences = sequences_of_split(work.inputs, s.split, tokenizer)
    table = tables.read(work.inputs["pairs"] / "pairs.parquet", tables.PAIRS)
    pairs = [pair for pair in table.to_pylist() if s.fold is None or fold_of(pair["prompt_id"]) != s.fold]
    all_rows = [_row(pair, sequences, s.margin) for pair in pairs]
    fitting = [row for row in all_rows if max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= s.max_length]
    if not fitting:
        raise StageFailed(
            f"fit_reward: none of {len(pairs)} pairs fits max_length = {s.max_length} tokens. Raise train.max_length."
        )
    config = RewardConfig(
        **arguments(work, math.ceil(len(fitting) / s.batch), validates=False),
        max_length=None,
        center_rewards_coefficient=s.center or None,
    )
    model = _with_reward_output(work, tokenizer)
    trainer = over_whole_batches(RewardTrainer, "reward")(
        model=model, args=config, train_dataset=Dataset.from_list(fitting), processing_class=tokenizer
    )
    run(trainer, work)
    write_checkpoint(work, trainer, merge=False)
    write_log(work, trainer, {"rows": len(fitting), "left_out": len(pairs) - len(fitting)})


def _row(pair: dict[str, Any], sequences: Sequences, margin: bool) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for side in ("chosen", "rejected"):
        prompt, completion = sequences[pair[f"{side}_id"]]
        row[f"{side}_ids"] = prompt + completion
    return row | ({"margin": pair["margin"]} if margin else {})


def _with_reward_output(work: Work, tokenizer: Any) -> Any:
    """The checkpoint's trunk with one new output, whose weights are sampled with the seed. An existing output is kept."""
    import torch
    from transformers import AutoModelForSequenceClassification
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    torch.manual_seed(work.seed)
    with suppress_seqcls_warning():  # it warns that the output is new
        model = AutoModelForSequenceClassification.from_pretrained(
            work.inputs["checkpoint"], num_labels=1, dtype=torch.float32, use_safetensors=True, local_files_only=True,
            trust_remote_code=work.settings.trust_remote_code,
        )  # fmt: skip
    model.config.pad_token_id = tokenizer.pad_token_id  # the model finds the last token by it
    return model.to(device_of(work.hardware))
