"""Online RL through TRL: GRPO and its kin, and RLOO. The trainer samples for itself; the recipe's scorers are its rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel

from data.errors import ReferenceMismatch
from data.rows import tables
from tasks.models import models
from tasks.run import parts as all_parts
from tasks.run.work import Work, device_of
from tasks.score.reward import UNKNOWN
from tasks.score.scorers import Score
from tasks.train.train import Settings as TrainSettings
from tasks.train.train import adapted, run, write_checkpoint, write_log
from tasks.train.train import libraries as libraries  # which adapters take, as there
from tasks.train.trainers import arguments

VERSION = 3  # 3: samples `together` at once; an unknown word of one scorer leaves a completion without a reward
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


CLIP = {"cispo": {"epsilon_high": 5.0}}  # TRL's advice; its default of 0.2 would clip every weight, which is 1 here, to a fifth


def parts(settings: Settings) -> list[tuple[str, str]]:
    return [("scorers", reward.scorer) for reward in settings.rewards]


def online(work: Work) -> None:
    """A checkpoint folder with `training.parquet` and `training.json`, as the train stage leaves.

    Inputs: `checkpoint` (start), `prompts`, and `reference` where loss.beta > 0. A batch is counted in completions.

    Raises:
        ReferenceMismatch: the reference in memory is not the checkpoint the round names.
    """
    s: Settings = work.settings
    tokenizer = models.load_tokenizer(work.inputs["checkpoint"], s.trust_remote_code)
    prompts = tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS).to_pylist()
    four_bit = s.lora is not None and s.lora.four_bit
    policy = models.load_model(work.inputs["checkpoint"], device_of(work.hardware), "float32", s.trust_remote_code, four_bit)
    if "reference" in work.inputs:
        policy.config._name_or_path = str(work.inputs["reference"])  # from where TRL loads its reference
    trainer = _trainer(work, adapted(policy, s.lora, work.seed) if s.lora else policy, tokenizer, prompts)
    if "reference" in work.inputs:
        _prove_reference(work, trainer)
    run(trainer, work)
    write_checkpoint(work, trainer, merge=s.lora is not None)
    write_log(work, trainer, {"rows": len(prompts), "left_out": 0})


def _trainer(work: Work, policy: Any, tokenizer: Any, prompts: Sequence[Row]) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    s: Settings = work.settings
    common = arguments(work, len(prompts) * s.n / s.batch, validates=False) | {
        "num_generations": s.n,
        "max_completion_length": s.max_tokens,
        "temperature": s.temperature,
        "top_p": s.top_p,
        "beta": s.loss.beta,
        "reward_weights": [reward.weight for reward in s.rewards],
    }
    if s.loss.name == "rloo":
        kind, config = RLOOTrainer, RLOOConfig(**common)
    else:  # Dr. GRPO is also the name for not dividing by the group's standard deviation (arXiv 2503.20783)
        scale = "none" if s.loss.name == "dr_grpo" else "group"
        kind, config = (
            GRPOTrainer,
            GRPOConfig(**common, loss_type=s.loss.name, scale_rewards=scale, **CLIP.get(s.loss.name, {})),
        )
    asked = [
        {"prompt": row["messages"] if tokenizer.chat_template else "\n".join(m["content"] for m in row["messages"]), "row": i}
        for i, row in enumerate(prompts)
    ]
    return _in_batches(kind, s.together)(
        model=policy, reward_funcs=_rewards(work, tokenizer, prompts), args=config,
        train_dataset=Dataset.from_list(asked), processing_class=tokenizer,
    )  # fmt: skip


def _in_batches(kind: type[Any], together: int) -> type[Any]:
    """The trainer, sampling so many completions at once: TRL would hold the caches of a whole optimizer step."""

    class InBatches(kind):  # type: ignore[misc]
        def _generate_single_turn(
            self, prompt_ids: Sequence[Any], images: Any, multimodal_fields: Row, *rest: Any, **more: Any
        ) -> Any:
            drawn = []
            for start in range(0, len(prompt_ids), together):
                some = slice(start, start + together)
                fields = {name: values[some] for name, values in multimodal_fields.items()}  # of text: token types, by row
                drawn.append(super()._generate_single_turn(prompt_ids[some], images, fields, *rest, **more))
            if isinstance(drawn[0], tuple):  # GRPO: with log-probabilities, which only vLLM has
                return [ids for those, _ in drawn for ids in those], None
            return [ids for those in drawn for ids in those]

    InBatches.__name__ = kind.__name__
    return InBatches


def _rewards(work: Work, tokenizer: Any, prompts: Sequence[Row]) -> list[Callable[..., list[float | None]]]:
    """The recipe's scorers as TRL's reward functions, one each, called in this order on the same completions.

    None (does not apply) leaves TRL's sum. A completion of which a scorer's word is unknown, or that none applies to, has no
    reward, as in a round (those of weight 0 only watch): all say None of it, and TRL leaves it out of its group's mean and
    gives it no advantage. An answer that was cut is scored as cut.
    """
    s: Settings = work.settings
    scorers = [all_parts.configure("scorers", r.scorer, r.settings, workers=work.hardware.workers) for r in s.rewards]
    stops = set(models.stop_tokens(work.inputs["checkpoint"], tokenizer, s.trust_remote_code))
    columns: list[list[float | None]] = []

    def score(completion_ids: Sequence[Sequence[int]], row: Sequence[int]) -> list[list[float | None]]:
        asked = [prompts[index] for index in row]
        drawn = [
            _completion(place, prompt, ids, tokenizer, stops)
            for place, (prompt, ids) in enumerate(zip(asked, completion_ids, strict=True))
        ]
        said = [scorer(asked, drawn) for scorer in scorers]
        counting = [column for column, reward in zip(said, s.rewards, strict=True) if reward.weight]
        rewarded = [_has_reward(together) for together in zip(*counting, strict=True)]
        return [[one.value if has else None for one, has in zip(column, rewarded, strict=True)] for column in said]

    def function(index: int) -> Callable[..., list[float | None]]:
        def reward(completion_ids: Sequence[Sequence[int]], row: Sequence[int], **_: Any) -> list[float | None]:
            if index == 0:
                columns[:] = score(completion_ids, row)
            return columns[index]

        reward.__name__ = s.rewards[index].name
        return reward

    return [function(index) for index in range(len(scorers))]


def _has_reward(together: Sequence[Score]) -> bool:
    """Whether scorers that make the reward know one: one of them applies, and none of those that do failed to say."""
    unknown = any(one.value is None and one.status in UNKNOWN for one in together)
    return not unknown and any(one.value is not None for one in together)


def _completion(place: int, prompt: Row, ids: Sequence[int], tokenizer: Any, stops: set[int]) -> Row:
    """A sampled answer as a row of COMPLETIONS."""
    return {
        "completion_id": f"online-{place}",
        "prompt_id": prompt["prompt_id"],
        "sample": place,
        "text": tokenizer.decode(ids, skip_special_tokens=True),
        "token_ids": list(ids),
        "logprobs": None,
        "finish_reason": "stop" if stops & set(ids) else "length",
        "seed": None,
        "engine": "online",
    }


def _prove_reference(work: Work, trainer: Any) -> None:
    """The reference TRL holds has the very weights of the checkpoint the round names; with adapters it is the start itself."""
    import torch

    s: Settings = work.settings
    if s.lora:
        if work.inputs["reference"] != work.inputs["checkpoint"]:
            raise ReferenceMismatch(
                "online training with adapters keeps its start as the reference; expected the same checkpoint"
            )
        return
    named = models.load_model(work.inputs["reference"], "cpu", "float32", s.trust_remote_code).state_dict()
    held = trainer.accelerator.unwrap_model(trainer.ref_model).state_dict()
    for name, tensor in named.items():
        if name not in held or not torch.allclose(
            tensor, held[name].float().cpu(), atol=1e-6 if s.precision == "float32" else 1e-2
        ):
            raise ReferenceMismatch(f"the reference in memory differs from its checkpoint in {name}")
