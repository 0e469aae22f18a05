"""Online RL through TRL: GRPO, its variants, and RLOO. The trainer samples; the recipe's scorers are its rewards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel

from data.errors import ReferenceMismatch
from data.rows import tables
from tasks.models import models
from tasks.run import parts as all_parts
from tasks.run.work import Work, device_of
from tasks.score.reward import UNKNOWN
from tasks.score.scales import filled
from tasks.score.scorers import Score
from tasks.train.early_stop import saving, stop_callback
from tasks.train.train import Settings as TrainSettings
from tasks.train.train import adapted, run, write_checkpoint, write_log
from tasks.train.train import libraries as libraries  # the libraries of adapters
from tasks.train.trainers import arguments

# 5: a training whose reward collapses ends with its best save, and one resumed after an epoch reads the prompts of the next.
# 4: a score that does not apply counts as its prompt's mean; BNPO divides by the tokens of the whole batch
VERSION = 5
LAUNCHED = True
LIBRARIES = ("torch", "transformers", "tokenizers", "trl", "accelerate", "math-verify")

Row = dict[str, Any]


class Reward(BaseModel):
    name: str  # TRL logs it under this name
    scorer: str
    settings: dict[str, Any]
    weight: float


class Settings(TrainSettings):
    rewards: list[Reward]
    n: int  # completions per prompt
    temperature: float
    top_p: float
    max_tokens: int
    together: int  # completions sampled at once


CLIP = {"cispo": {"epsilon_high": 5.0}}  # TRL's recommendation; its default of 0.2 would clip every weight of 1 to 0.2

# BNPO divides by the tokens of the batch. TRL takes those of a micro-batch, so that train.accumulate would change the loss.
# Over the whole batch it is what TRL calls DAPO's.
OVER_WHOLE_BATCHES = {"bnpo": "dapo"}


def parts(settings: Settings) -> list[tuple[str, str]]:
    return [("scorers", reward.scorer) for reward in settings.rewards]


def online(work: Work) -> None:
    """A checkpoint folder with `training.parquet` and `training.json`, as of the stage `train`.

    If the reward collapses, training stops and the best save is the result: `stopped` in `training.json` says when and why.
    Inputs: `checkpoint` (start), `prompts`, and `reference` if loss.beta > 0. The batch size counts completions.

    Raises:
        ReferenceMismatch: the reference in memory is not the checkpoint that the round names.
    """
    s: Settings = work.settings
    tokenizer = models.load_tokenizer(work.inputs["checkpoint"], s.trust_remote_code)
    prompts = tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS).to_pylist()
    four_bit = s.lora is not None and s.lora.four_bit
    policy = models.load_model(work.inputs["checkpoint"], device_of(work.hardware), "float32", s.trust_remote_code, four_bit)
    if "reference" in work.inputs:
        policy.config._name_or_path = str(work.inputs["reference"])  # TRL loads its reference from this path
    trainer = _trainer(work, adapted(policy, s.lora, work.seed) if s.lora else policy, tokenizer, prompts)
    if "reference" in work.inputs:
        _check_reference(work, trainer)
    stop = stop_callback(work.scratch)
    trainer.add_callback(stop)
    run(trainer, work)
    write_checkpoint(work, trainer, merge=s.lora is not None)
    facts = {"rows": len(prompts), "left_out": 0, "vocabulary": policy.config.vocab_size}
    write_log(work, trainer, facts | stop.facts)


def _trainer(work: Work, policy: Any, tokenizer: Any, prompts: Sequence[Row]) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    s: Settings = work.settings
    shared = arguments(work, len(prompts) * s.n / s.batch, validates=False)
    common = (
        shared
        | saving(shared["max_steps"], s.save_every)
        | {
            "num_generations": s.n,
            "max_completion_length": s.max_tokens,
            "temperature": s.temperature,
            "top_p": s.top_p,
            "beta": s.loss.beta,
            "reward_weights": [reward.weight for reward in s.rewards],
        }
    )
    if s.loss.name == "rloo":
        kind, config = RLOOTrainer, RLOOConfig(**common)
    else:  # Dr. GRPO is also the name for not dividing by the group's standard deviation (arXiv 2503.20783)
        scale = "none" if s.loss.name == "dr_grpo" else "group"
        loss_type = OVER_WHOLE_BATCHES.get(s.loss.name, s.loss.name)
        kind, config = (
            GRPOTrainer,
            GRPOConfig(**common, loss_type=loss_type, scale_rewards=scale, **CLIP.get(s.loss.name, {})),
        )
    questions = [
        {"prompt": row["messages"] if tokenizer.chat_template else "\n".join(m["content"] for m in row["messages"]), "row": i}
        for i, row in enumerate(prompts)
    ]
    return _in_batches(kind, s.together)(
        model=policy, reward_funcs=_rewards(work, tokenizer, prompts), args=config,
        train_dataset=Dataset.from_list(questions), processing_class=tokenizer,
    )  # fmt: skip


def _in_batches(kind: type[Any], together: int) -> type[Any]:
    """The trainer, sampling `together` completions at once: TRL would hold the KV caches of a whole optimizer step.

    Each epoch's order of prompts depends on its number. TRL's depends on how many this process began, so that a training
    resumed after its first epoch would see other prompts.
    """

    class InBatches(kind):  # type: ignore[misc]
        def _get_train_sampler(self, *of: Any) -> Any:
            sampler = super()._get_train_sampler(*of)
            sampler.set_epoch = functools.partial(_order_of_epoch, sampler)  # the trainer calls it as an epoch begins
            return sampler

        def _generate_single_turn(
            self, prompt_ids: Sequence[Any], images: Any, multimodal_fields: Row, *rest: Any, **more: Any
        ) -> Any:
            batches = []
            for start in range(0, len(prompt_ids), together):
                batch = slice(start, start + together)
                fields = {name: values[batch] for name, values in multimodal_fields.items()}  # for text: token types, by row
                batches.append(super()._generate_single_turn(prompt_ids[batch], images, fields, *rest, **more))
            if isinstance(batches[0], tuple):  # GRPO: with log-probabilities, which only vLLM has
                return [ids for completions, _ in batches for ids in completions], None
            return [ids for completions in batches for ids in completions]

    InBatches.__name__ = kind.__name__
    return InBatches


def _order_of_epoch(sampler: Any, epoch: int) -> None:
    """Put the sampler's generator where it is in an uninterrupted training when the epoch begins."""
    import torch

    sampler.generator.manual_seed(sampler.seed)
    for _ in range(epoch):
        torch.randperm(sampler.num_samples, generator=sampler.generator)


def _rewards(work: Work, tokenizer: Any, prompts: Sequence[Row]) -> list[Callable[..., list[float | None]]]:
    """The recipe's scorers as TRL's reward functions, one each, called in this order on the same completions.

    A completion has no reward if a weighted scorer's value is unknown or no weighted scorer applies, as in an offline round.
    All functions then return None for it, and TRL leaves it out of its group's mean and gives it no advantage. A score that
    does not apply counts as its mean within the prompt, since TRL leaves a None out of the sum, as if it were 0. A truncated
    completion is scored as truncated.
    """
    s: Settings = work.settings
    scorers = [all_parts.configure("scorers", r.scorer, r.settings, workers=work.hardware.workers) for r in s.rewards]
    stops = set(models.stop_tokens(work.inputs["checkpoint"], tokenizer, s.trust_remote_code))
    columns: list[list[float | None]] = []

    def score(completion_ids: Sequence[Sequence[int]], row: Sequence[int]) -> list[list[float | None]]:
        prompt_rows = [prompts[index] for index in row]
        completions = [
            _completion(position, prompt, ids, tokenizer, stops)
            for position, (prompt, ids) in enumerate(zip(prompt_rows, completion_ids, strict=True))
        ]
        scores = [scorer(prompt_rows, completions) for scorer in scorers]
        weighted = [column for column, reward in zip(scores, s.rewards, strict=True) if reward.weight]
        rewarded = [_has_reward(scores_of_one) for scores_of_one in zip(*weighted, strict=True)]
        values = [filled([one.value for one in column], [str(index) for index in row]) for column in scores]
        return [[value if has else None for value, has in zip(column, rewarded, strict=True)] for column in values]

    def function(index: int) -> Callable[..., list[float | None]]:
        def reward(completion_ids: Sequence[Sequence[int]], row: Sequence[int], **_: Any) -> list[float | None]:
            if index == 0:
                columns[:] = score(completion_ids, row)
            return columns[index]

        reward.__name__ = s.rewards[index].name
        return reward

    return [function(index) for index in range(len(scorers))]


def _has_reward(scores: Sequence[Score]) -> bool:
    """Whether the weighted scorers give a completion a reward: at least one applies, and no value is unknown."""
    unknown = any(one.value is None and one.status in UNKNOWN for one in scores)
    return not unknown and any(one.value is not None for one in scores)


def _completion(position: int, prompt: Row, ids: Sequence[int], tokenizer: Any, stops: set[int]) -> Row:
    """A sampled answer as a row of COMPLETIONS."""
    return {
        "completion_id": f"online-{position}",
        "prompt_id": prompt["prompt_id"],
        "sample": position,
        "text": tokenizer.decode(ids, skip_special_tokens=True),
        "token_ids": list(ids),
        "logprobs": None,
        "finish_reason": "stop" if stops & set(ids) else "length",
        "seed": None,
        "engine": "online",
    }


def _check_reference(work: Work, trainer: Any) -> None:
    """Compare the weights of TRL's reference with the checkpoint that the round names; with adapters that is the start.

    Raises:
        ReferenceMismatch: they differ.
    """
    import torch

    s: Settings = work.settings
    if s.lora:
        if work.inputs["reference"] != work.inputs["checkpoint"]:
            raise ReferenceMismatch(
                "online training with adapters uses its start as the reference; expected one checkpoint for both, found two. "
                "Set loss.reference and train.start_from to the same checkpoint."
            )
        return
    named = models.load_model(work.inputs["reference"], "cpu", "float32", s.trust_remote_code).state_dict()
    in_memory = trainer.accelerator.unwrap_model(trainer.ref_model).state_dict()
    for name, tensor in named.items():
        if name not in in_memory or not torch.allclose(
            tensor, in_memory[name].float().cpu(), atol=1e-6 if s.precision == "float32" else 1e-2
        ):
            raise ReferenceMismatch(
                f"the reference in memory differs from its checkpoint in {name}. Check the store with `ratchet verify`."
            )
