"""TRL's trainers on our rows: one function per trainer of data.recipe.loss.KINDS, and the arguments they share.

TRL's defaults for bfloat16, gradient checkpointing, reporting and text preparation do not fit; they are replaced here.
"""

from __future__ import annotations

import functools
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import StageFailed
from data.recipe.loss import Loss
from tasks.run.work import Work, device_of
from tasks.train import rows as tables_to_rows
from tasks.train.rows import Row


@dataclass(frozen=True)
class Setup:
    """The inputs of a trainer. `reference` is None if the loss has none, or if it is the policy without adapters."""

    work: Work
    loss: Loss
    policy: Any
    reference: Any
    tokenizer: Any
    train: list[Row]
    validation: list[Row]

    def datasets(self, shape: Callable[[Row], Row] = lambda row: row) -> dict[str, Any]:
        from datasets import Dataset

        datasets = {}
        for name, rows in (("train_dataset", self.train), ("eval_dataset", self.validation)):
            plain = [{k: v for k, v in shape(row).items() if k != "prompt_id"} for row in rows]
            datasets[name] = Dataset.from_list(plain) if rows else None
        return datasets


def arguments(work: Work, epoch: float, validates: bool) -> dict[str, Any]:
    """The arguments that all trainers share.

    Args:
        epoch: steps of one pass over the data, including a last short one.
        validates: whether there are validation rows.

    Raises:
        StageFailed: the batch cannot be divided among micro-batches and processes.
    """
    s = work.settings
    steps = s.steps or max(1, math.ceil(s.epochs * epoch))
    on_gpu = device_of(work.hardware) == "cuda"
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    micro, rest = divmod(s.batch, s.accumulate * ranks)
    if rest:
        raise StageFailed(
            f"train.batch = {s.batch} is not a multiple of train.accumulate ({s.accumulate}) x {ranks} processes. "
            "Change train.batch or train.accumulate."
        )
    interval = min(s.save_every, steps) if validates else s.save_every  # a short training is validated once, at its end
    early_stopping = {
        "eval_strategy": "steps",
        "eval_steps": interval,
        "restore_callback_states_from_checkpoint": True,  # else patience would start again at 0 after a crash
        "per_device_eval_batch_size": micro,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "prediction_loss_only": True,
    }
    return {
        "output_dir": str(work.scratch),
        "max_steps": steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": s.accumulate,
        "learning_rate": s.learning_rate,
        "lr_scheduler_type": s.schedule,
        "warmup_steps": round(s.warmup * steps),
        "weight_decay": s.weight_decay,
        "bf16": s.precision == "bfloat16",
        "gradient_checkpointing": s.checkpointing,
        "seed": work.seed,
        "data_seed": work.seed,
        "save_strategy": "steps",
        "save_steps": interval,
        "save_total_limit": 2,
        "logging_steps": 1,  # alarms read single steps, and a resumed training logs the same
        "logging_nan_inf_filter": False,  # else a NaN loss would be logged as 0
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not on_gpu,
        "remove_unused_columns": False,
        "dataloader_pin_memory": on_gpu,
        **(early_stopping if validates else {}),
    }


def build(setup: Setup) -> Any:
    """The trainer of the setup's loss."""
    makers: dict[str, Callable[[Setup, dict[str, Any]], Any]] = {
        "sft": sft, "dpo": dpo, "kto": kto, "orpo": orpo, "cpo": cpo, "listwise": listwise,
    }  # fmt: skip
    common = arguments(setup.work, math.ceil(len(setup.train) / setup.work.settings.batch), bool(setup.validation))
    return makers[setup.loss.kind.trainer](setup, common)


def sft(setup: Setup, common: dict[str, Any]) -> Any:
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        **common, max_length=setup.work.settings.max_length, dataset_kwargs={"skip_prepare_dataset": True}, loss_type="nll"
    )
    return SFTTrainer(model=setup.policy, args=config, **setup.datasets(), processing_class=setup.tokenizer)


def dpo(setup: Setup, common: dict[str, Any]) -> Any:
    from trl import DPOConfig

    from tasks.train.losses import pair_trainer

    loss = setup.loss
    stock = {"sigmoid": 1.0} if loss.own else {name: weight for name, weight in loss.weights.items() if name != "sft"}
    if common["per_device_train_batch_size"] < 2 and loss.name.startswith("aot"):
        raise StageFailed(
            f"train: {loss.name} sorts within a micro-batch; expected train.batch / train.accumulate >= 2, found 1. "
            "Lower train.accumulate."
        )
    config = DPOConfig(
        **common,
        **_dropout(setup),
        max_length=setup.work.settings.max_length,
        beta=loss.beta,
        label_smoothing=0.0 if loss.own else loss.smoothing,
        loss_type=list(stock),
        loss_weights=list(stock.values()),
    )
    return pair_trainer()(
        loss=loss,
        model=setup.policy,
        ref_model=setup.reference,
        args=config,
        **setup.datasets(),
        processing_class=setup.tokenizer,
    )


def _dropout(setup: Setup) -> dict[str, bool]:
    """TRL switches off all dropout by default, also that of LoRA; it stays on if the recipe sets it."""
    lora = setup.work.settings.lora
    return {"disable_dropout": not (lora and lora.dropout)}


def kto(setup: Setup, common: dict[str, Any]) -> Any:
    from trl import KTOConfig

    loss = setup.loss
    if common["per_device_train_batch_size"] < 2 and loss.name == "kto":
        raise StageFailed(
            "train: KTO estimates its KL inside a micro-batch; expected train.batch / train.accumulate >= 2, found 1. "
            "Lower train.accumulate."
        )
    config = KTOConfig(
        **common,
        **_dropout(setup),
        max_length=setup.work.settings.max_length,
        beta=loss.beta,
        loss_type=loss.name,
        desirable_weight=loss.desirable_weight or _balancing(setup.train, loss.undesirable_weight),
        undesirable_weight=loss.undesirable_weight,
    )
    # The KL completion of a row is that of its neighbour in the micro-batch, as in TRL's own preparation.
    size = common["per_device_train_batch_size"]
    for rows in (setup.train, setup.validation):
        random.Random(setup.work.seed).shuffle(rows)  # KTO reads rows in order, and neighbours should not share a prompt
        for start in range(0, len(rows), size):
            group = rows[start : start + size]
            for index, row in enumerate(group):
                row["KL_completion_ids"] = group[index - 1]["completion_ids"]
    return _without_preparation("KTOTrainer", "_prepare_dataset", "kto")(
        model=setup.policy, ref_model=setup.reference, args=config, **setup.datasets(), processing_class=setup.tokenizer
    )


def _balancing(rows: Sequence[Row], undesirable: float) -> float:
    """The weight at which right rows together weigh as much as wrong ones; KTO recommends 1 to 4/3 (2402.01306)."""
    right = sum(row["label"] for row in rows)
    wrong = len(rows) - right
    return undesirable * wrong / right if right and wrong else undesirable


def orpo(setup: Setup, common: dict[str, Any]) -> Any:
    from trl.experimental.orpo import ORPOConfig

    config = ORPOConfig(**common, **_dropout(setup), max_length=setup.work.settings.max_length, beta=setup.loss.beta)
    return _without_preparation("experimental.orpo.ORPOTrainer", "tokenize_row", "orpo")(
        model=setup.policy, args=config, **setup.datasets(tables_to_rows.side_by_side), processing_class=setup.tokenizer
    )


def cpo(setup: Setup, common: dict[str, Any]) -> Any:
    from trl.experimental.cpo import CPOConfig

    loss = setup.loss
    config = CPOConfig(
        **common,
        **_dropout(setup),
        max_length=setup.work.settings.max_length,
        beta=loss.beta,
        loss_type="sigmoid" if loss.name == "cpo" else loss.name,
        cpo_alpha=loss.terms.get("sft", 0.0),  # TRL's default of 1.0 would make SimPO another method
        simpo_gamma=loss.gamma,
        label_smoothing=loss.smoothing,
    )
    return _without_preparation("experimental.cpo.CPOTrainer", "tokenize_row", "cpo")(
        model=setup.policy, args=config, **setup.datasets(tables_to_rows.side_by_side), processing_class=setup.tokenizer
    )


def listwise(setup: Setup, common: dict[str, Any]) -> Any:
    from transformers import TrainingArguments

    from tasks.train.losses import list_trainer

    return list_trainer()(
        loss=setup.loss, reference=setup.reference, pad=setup.tokenizer.pad_token_id, model=setup.policy,
        args=TrainingArguments(**common), **setup.datasets(), processing_class=setup.tokenizer,
    )  # fmt: skip


@functools.cache
def _without_preparation(name: str, preparation: str, trainer: str) -> type[Any]:
    """A TRL trainer without its text preparation, because our rows are token ids already; its loss is over whole batches."""
    import importlib

    from tasks.train.whole_batch import over_whole_batches, with_nll_over_tokens

    module, _, attribute = f"trl.{name}".rpartition(".")
    stock = getattr(importlib.import_module(module), attribute)
    ours = over_whole_batches(type(attribute, (stock,), {preparation: lambda self, rows, *args, **kwargs: rows}), trainer)
    return with_nll_over_tokens(ours) if trainer in ("orpo", "cpo") else ours
