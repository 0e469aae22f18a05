"""Train a checkpoint through TRL on the data that a round chose. Resumes from verified saves.

data/recipe/loss.py defines the data of each loss. rows.py makes rows of token ids, trainers.py holds TRL's trainers, and
losses.py holds the loss terms that TRL lacks.
"""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import ReferenceMismatch, StageFailed
from data.recipe.loss import Loss
from data.recipe.settings import Lora
from data.rows import tables
from data.store.store import sha256_text
from tasks.models import models
from tasks.models.sequences import sequences_of_split
from tasks.run.work import StageSettings, Work, device_of
from tasks.train import rows
from tasks.train.rows import Row
from tasks.train.saves import newest_save, save_callback

VERSION = 6  # 6: a loss is a mean over an optimizer step, however it is divided. 5: KTO's validation rows are shuffled
LIBRARIES = ("torch", "transformers", "tokenizers", "trl", "accelerate")
LAUNCHED = True  # under `accelerate launch` if hardware.accelerate names a configuration
REFERENCE_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}  # nats per token, between the reference and its stored values
ADVICE = "Lower train.learning_rate or add train.warmup."


class Settings(StageSettings):
    loss: Loss
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
    lora: Lora | None
    validation: float
    patience: int
    replay: bool
    save_every: int
    split: str  # the prompts file the completions answer
    trust_remote_code: bool


def libraries(settings: Settings) -> tuple[str, ...]:
    """The libraries that make adapters, if the settings have any."""
    if not settings.lora:
        return ()
    return ("peft", "bitsandbytes") if settings.lora.four_bit else ("peft",)


def train(work: Work) -> None:
    """A checkpoint folder with `training.parquet` (TRAINING: every metric of every step) and `training.json` (rows, left out).

    Inputs: `checkpoint` (start); `prompts` and `completions` with `selected` or `pairs`; `reference` and `reference_logprobs`
    if the loss has a reference; `seed_data` (a prepare artifact) if `replay` is set.

    Raises:
        ReferenceMismatch: the reference in memory is not the checkpoint that the round names.
        StageFailed: the loss or a weight is NaN or infinite, or no row fits `max_length`.
    """
    from tasks.train.trainers import Setup, build

    s: Settings = work.settings
    tokenizer = models.load_tokenizer(work.inputs["checkpoint"], s.trust_remote_code)
    all_rows = _rows(work, tokenizer)
    fitting = [row for row in all_rows if rows.longest(row) <= s.max_length]
    if not fitting:
        shortest = min(map(rows.longest, all_rows), default=0)
        raise StageFailed(
            f"train: none of {len(all_rows)} rows fits train.max_length = {s.max_length} tokens; the shortest has {shortest}. "
            "Raise train.max_length."
        )
    training, validation = split(fitting, s.validation)
    policy, reference = _models(work, tokenizer)
    trainer = build(Setup(work, s.loss, policy, reference, tokenizer, training, validation))
    run(trainer, work, patience=s.patience if validation else 0)
    write_checkpoint(work, trainer, merge=s.lora is not None)
    write_log(work, trainer, {"rows": len(training), "validation": len(validation), "left_out": len(all_rows) - len(fitting)})


def run(trainer: Any, work: Work, patience: int = 0) -> None:
    """Train to the end from the newest verified save. `patience` validations without an improvement end it early.

    Raises:
        StageFailed: the loss, or at the end a weight, is NaN or infinite.
    """
    from transformers import EarlyStoppingCallback
    from transformers.trainer_callback import PrinterCallback

    if hasattr(trainer.model, "peft_config"):
        _as_saved(trainer.model)
    trainer.remove_callback(PrinterCallback)  # metrics go to training.parquet; the terminal shows the bar
    trainer.add_callback(_finite_loss()())  # before saves are sealed
    trainer.add_callback(save_callback(work.scratch, work.tick))
    if patience:
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=patience))
    with trainer.accelerator.main_process_first():  # it removes broken saves before the other ranks list them
        resume = newest_save(work.scratch)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if not all(weight.isfinite().all() for weight in trainer.model.parameters()):  # the last loss was before the last update
        raise StageFailed(f"train: training ended with NaN or infinite weights. {ADVICE}")


def _as_saved(policy: Any) -> None:
    """Undo two changes that TRL makes to adapters, so that training can resume from a save.

    TRL adds a copy of the initial adapters as the reference. From a save with two adapters, transformers resumes from that copy
    alone; switching adapters off gives the same reference. TRL also casts adapters of a policy in four bits to bfloat16, which
    does not survive a save: peft reads float32.
    """
    if "ref" in policy.peft_config:
        policy.delete_adapter("ref")
    for weight in policy.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


@functools.cache
def _finite_loss() -> type[Any]:
    """A callback that stops training at the first loss that is NaN or infinite, before anything of it is saved."""
    from transformers import TrainerCallback

    class FiniteLoss(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Row, **kwargs: Any) -> None:
            if not math.isfinite(logs.get("loss", 0.0)):
                raise StageFailed(f"train: the loss is {logs['loss']} at step {state.global_step}. {ADVICE}")

    return FiniteLoss


def split(all_rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Training and validation rows: whole prompts, chosen by the hash of their id, so that no prompt is on both sides.

    Raises:
        StageFailed: one side has no rows.
    """
    if not share:
        return list(all_rows), []
    edge = int(share * 0x10000)
    validates = [int(sha256_text(row["prompt_id"])[:4], 16) < edge for row in all_rows]
    training = [row for row, aside in zip(all_rows, validates, strict=True) if not aside]
    validation = [row for row, aside in zip(all_rows, validates, strict=True) if aside]
    if not training or not validation:
        raise StageFailed(
            f"train.validation = {share} leaves {len(training)} rows to train on and {len(validation)} to validate on. "
            "Change train.validation, or add prompts."
        )
    return training, validation


def _rows(work: Work, tokenizer: Any) -> list[Row]:
    s: Settings = work.settings
    match s.loss.kind.data:
        case "pairs":
            return rows.of_pairs(work.inputs, s.split, tokenizer, s.loss)
        case "labelled":
            return rows.of_labelled(work.inputs, s.split, tokenizer)
        case "ranked":
            return rows.of_ranked(work.inputs, s.split, tokenizer)
        case _:
            return rows.of_selected(work.inputs, s.split, tokenizer, s.replay)


# -- models -----------------------------------------------------------------------------------------------------------------
def _models(work: Work, tokenizer: Any) -> tuple[Any, Any]:
    """The policy, with adapters if set, and the reference, which is compared with the checkpoint that the round names.

    Both are loaded here, because TRL would load whatever config._name_or_path points to. If adapters start from the reference,
    the policy with adapters switched off is the reference, and no second copy is loaded. A reference in four bits has rounding
    errors: it is compared in whole precision first, and then loaded again.
    """
    s: Settings = work.settings
    four_bit = s.lora is not None and s.lora.four_bit
    load = functools.partial(
        models.load_model, device=device_of(work.hardware), dtype="float32", trust_remote_code=s.trust_remote_code
    )
    if "reference" in work.inputs and four_bit:
        check_reference(work, load(work.inputs["reference"]), tokenizer)
    policy = load(work.inputs["checkpoint"], four_bit=four_bit)
    reference = None
    if "reference" in work.inputs:
        shared = s.lora and work.inputs["reference"] == work.inputs["checkpoint"]
        if not shared:
            reference = load(work.inputs["reference"], four_bit=four_bit)
        if not four_bit:
            check_reference(work, policy if shared else reference, tokenizer)
    return (adapted(policy, s.lora, work.seed) if s.lora else policy), reference


def adapted(policy: Any, lora: Lora, seed: int) -> Any:
    """The policy with LoRA adapters (arXiv 2106.09685), their initial weights sampled with the seed."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets, task_type="CAUSAL_LM"
    )
    return get_peft_model(policy, config)


def check_reference(work: Work, reference: Any, tokenizer: Any) -> None:
    """Compare the reference in memory with the LOGPROBS artifact of the checkpoint that the round names.

    Raises:
        ReferenceMismatch: a token's log-probability differs by more than the tolerance.
    """
    s: Settings = work.settings
    stored = tables.read(work.inputs["reference_logprobs"] / "logprobs.parquet", tables.LOGPROBS).to_pylist()
    sequences = sequences_of_split(work.inputs, s.split, tokenizer)
    wanted = [sequences[row["completion_id"]] for row in stored]
    now = models.completion_logprobs(reference, wanted, tokenizer.pad_token_id)
    largest = max(
        (abs(a - b) for row, values in zip(stored, now, strict=True) for a, b in zip(row["logprobs"], values, strict=True))
    )
    if largest > REFERENCE_TOLERANCE[s.precision]:
        raise ReferenceMismatch(
            f"the reference in memory differs from its checkpoint by {largest:.3g} nats on a token "
            f"(at most {REFERENCE_TOLERANCE[s.precision]} is expected). Another checkpoint was loaded, or loading "
            "changed it. Check the store with `ratchet verify`."
        )


# -- results ----------------------------------------------------------------------------------------------------------------
TIMES = ("_runtime", "_per_second", "step_time", "epoch", "total_flos", "num_tokens")  # times change the digest; no signal


def write_log(work: Work, trainer: Any, facts: dict[str, Any]) -> None:
    """Every metric of every step, without times."""
    if not trainer.is_world_process_zero():
        return
    log = [
        {"step": entry["step"], "metric": name, "value": float(value)}
        for entry in trainer.state.log_history
        if "loss" in entry or "eval_loss" in entry
        for name, value in sorted(entry.items())
        if name != "step" and not name.endswith(TIMES)
    ]
    tables.write(tables.from_rows(log, tables.TRAINING), tables.TRAINING, work.out / "training.parquet")
    facts |= {"steps": trainer.state.global_step, "best_step": _best_step(trainer)}
    (work.out / "training.json").write_text(json.dumps(facts, indent=1))


def _best_step(trainer: Any) -> int:
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    return int(Path(best).name.split("-")[1]) if best else trainer.state.global_step


def merged(work: Work, policy: Any) -> Any:
    """The policy with its adapters added to its weights. In four bits: to the weights before they were rounded.

    Adapters change weights by less than a step of NF4. Added to rounded weights, the change is lost when the next round rounds
    the checkpoint again. Added to whole weights, it survives on average.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    s: Settings = work.settings
    assert s.lora is not None
    if s.lora.four_bit:
        adapters = get_peft_model_state_dict(policy)
        whole = models.load_model(work.inputs["checkpoint"], "cpu", "float32", s.trust_remote_code)
        policy = adapted(whole, s.lora, work.seed)
        set_peft_model_state_dict(policy, {name: tensor.float().cpu() for name, tensor in adapters.items()})
    return policy.merge_and_unload()


def write_checkpoint(work: Work, trainer: Any, merge: bool) -> None:
    """Weights (adapters merged) and configuration from memory; tokenizer and template from the start checkpoint.

    Every rank takes part in gathering weights that are sharded over processes; rank 0 writes.
    """
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    weights = {"state_dict": trainer.accelerator.get_state_dict(trainer.model_wrapped)} if sharded and not merge else {}
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    (merged(work, model) if merge else model).save_pretrained(work.out, **weights)
    for path in models.inspect_checkpoint(work.inputs["checkpoint"]):
        of_weights = path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json")
        if not of_weights and not (work.out / path.name).exists() and path.name != "training.json":
            shutil.copyfile(path, work.out / path.name)
