"""The gradient of an optimizer step does not depend on how the device divides it: of every loss that a recipe can name."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from data.recipe.loss import DPO, KINDS, Loss
from data.recipe.notes import FROM_MICRO_BATCHES
from data.recipe.settings import Hardware
from data.rows import tables
from tasks.models import models, tiny_model
from tasks.run.work import Work
from tasks.train import fit_reward, online
from tasks.train.train import Settings
from tasks.train.trainers import Setup, build
from tests.test_reward_model import SETTINGS as OF_REWARD

Row = dict[str, Any]
SAME = 1e-5  # share of a gradient's length that rounding may move it
BATCH, ROWS = 8, 13  # two steps an epoch: a full one, and one of 5 rows, whose micro-batches are not equally long
MIXED = {  # every trainer's mixtures with terms over tokens, and our own terms
    "sigmoid and sft": Loss(name="sigmoid", terms={"sft": 1.0}),
    "sigmoid, bco_pair and sft": Loss(name="sigmoid", terms={"sigmoid": 0.8, "bco_pair": 0.2, "sft": 0.5}),
    "sigmoid and nll": Loss(name="sigmoid", terms={"nll": 1.0}, smoothing=0.1, length=0.01, weighted=True, offset=0.5),
    "cpo and sft": Loss(name="cpo", terms={"sft": 1.0}),
    "simpo and sft": Loss(name="simpo", terms={"sft": 1.0}),
    "lipo and nll": Loss(name="lipo", terms={"nll": 1.0}),
}
OFFLINE = {
    name: Loss(name=name, smoothing=0.1 if name == "exo_pair" else 0.0) for name, k in KINDS.items() if k.data != "online"
}
LOSSES = OFFLINE | MIXED
QUICK = ("nll", "sigmoid and sft", "cpo and sft", "orpo", "rrhf", "apo_zero_unpaired")  # one of each trainer
DIVIDED = {name: loss for name, loss in LOSSES.items() if name not in FROM_MICRO_BATCHES}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights."""
    folder = tmp_path_factory.mktemp("whole_batch")
    tiny_model.tiny_model(work_in(folder, tiny_model.Settings(hidden=32, layers=1), folder))
    return folder


def work_in(folder: Path, settings: Any, out: Path, **inputs: Path) -> Work:
    folder.mkdir(parents=True, exist_ok=True)
    return Work("key", settings, inputs, 3, out, folder, Hardware(device="cpu", workers=1))


def ids(draw: random.Random, least: int, most: int) -> list[int]:
    return [draw.randint(3, 20) for _ in range(draw.randint(least, most))]


def rows_of(loss: Loss) -> list[Row]:
    """Rows of very different lengths: where all are equally long, any average is the same."""
    draw, rows = random.Random(5), []
    for number in range(ROWS):
        row: Row = {"prompt_id": str(number), "prompt_ids": ids(draw, 2, 9)}
        match loss.kind.data:
            case "pairs":
                row |= {"chosen_ids": ids(draw, 1, 30), "rejected_ids": ids(draw, 1, 30)}
                row |= {"weight": draw.random(), "margin": 1 + draw.random(), "certainty": 0.9} if loss.own else {}
            case "labelled":
                row |= {"completion_ids": ids(draw, 1, 30), "label": number % 3 > 0}
            case "ranked":
                row |= {"completions": [ids(draw, 1, 30) for _ in range(3)], "ranks": [0, 1, 2]}
            case _:
                completion = ids(draw, 1, 30)
                row = {"prompt_id": str(number), "input_ids": row["prompt_ids"] + completion}
                row["labels"] = [-100] * (len(row["input_ids"]) - len(completion)) + completion
        rows.append(row)
    return rows


def gradients(trainer: Any) -> list[torch.Tensor]:
    """The gradient of every optimizer step, unclipped, all parameters in one vector."""
    from transformers import TrainerCallback

    found: list[torch.Tensor] = []

    class Gradient(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
            found.append(torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]))

    trainer.args.max_grad_norm = 0.0
    trainer.add_callback(Gradient())
    trainer.train()
    return found


def of_loss(loss: Loss, accumulate: int, start: Path, folder: Path) -> list[torch.Tensor]:
    settings = Settings(
        loss=loss, steps=2, epochs=1.0, batch=BATCH, accumulate=accumulate, learning_rate=0.0, schedule="constant", warmup=0.0,
        weight_decay=0.0, max_length=64, precision="float32", checkpointing=False, lora=None, validation=0.0, patience=1,
        replay=False, save_every=50, split="rounds", trust_remote_code=False,
    )  # fmt: skip
    policy, reference = (models.load_model(start, "cpu", "float32") for _ in range(2))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for weight in policy.parameters():  # away from the reference, where many losses have equal gradients
            weight += 0.05 * torch.randn_like(weight)
    work = work_in(folder / f"{accumulate}", settings, folder)
    tokenizer = models.load_tokenizer(start)
    return gradients(
        build(Setup(work, loss, policy, reference if loss.needs_reference else None, tokenizer, rows_of(loss), []))
    )


def furthest(one: list[torch.Tensor], two: list[torch.Tensor]) -> float:
    """The largest distance between the gradients of a step, as a share of their length."""
    assert len(one) == len(two) == 2
    return max(float((a - b).norm() / a.norm()) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.minutes) for name in DIVIDED])
def test_a_gradient_does_not_depend_on_accumulation(name: str, start: Path, tmp_path: Path) -> None:
    # Claim: 1 x 8, 2 x 4 and 8 x 1 rows give one gradient, and so does a step that does not divide into equal parts.
    whole = of_loss(DIVIDED[name], 1, start, tmp_path)
    for accumulate in (2, 8):
        assert furthest(whole, of_loss(DIVIDED[name], accumulate, start, tmp_path)) < SAME, accumulate


@pytest.mark.parametrize("name", FROM_MICRO_BATCHES)
def test_the_losses_that_depend_on_it_are_the_listed_ones(name: str, start: Path, tmp_path: Path) -> None:
    # Claim: KTO's KL and AOT's order are of a micro-batch by their definition; the list that `check` reads has no other loss.
    loss = Loss(name=name, beta=1.0)
    assert furthest(of_loss(loss, 1, start, tmp_path), of_loss(loss, 4, start, tmp_path)) > 10 * SAME


def test_a_reward_models_gradient_does_not_depend_on_accumulation(start: Path, tmp_path: Path) -> None:
    # Claim: as above, of Bradley-Terry pairs with a margin and centring.
    def of(accumulate: int) -> list[torch.Tensor]:
        from datasets import Dataset
        from trl import RewardConfig, RewardTrainer

        from tasks.train.trainers import arguments
        from tasks.train.whole_batch import over_whole_batches

        changes = {"steps": 2, "batch": BATCH, "accumulate": accumulate, "learning_rate": 0.0}
        work = work_in(
            tmp_path / f"reward-{accumulate}", fit_reward.Settings(**OF_REWARD | changes), tmp_path, checkpoint=start
        )
        tokenizer, draw = models.load_tokenizer(start), random.Random(2)
        pairs = [{"chosen_ids": ids(draw, 3, 30), "rejected_ids": ids(draw, 3, 30), "margin": 0.5} for _ in range(ROWS)]
        config = RewardConfig(**arguments(work, 2, validates=False), max_length=None, center_rewards_coefficient=0.1)
        return gradients(
            over_whole_batches(RewardTrainer, "reward")(
                model=fit_reward._with_reward_output(work, tokenizer),
                args=config,
                train_dataset=Dataset.from_list(pairs),
                processing_class=tokenizer,
            )
        )

    whole = of(1)
    assert all(furthest(whole, of(accumulate)) < SAME for accumulate in (2, 8))


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.data == "online"])
def test_an_online_gradient_does_not_depend_on_accumulation(name: str, start: Path, tmp_path: Path) -> None:
    # Claim: the same samples in 1 x 16, 2 x 8 and 4 x 4 give one gradient.
    (tmp_path / "prompts").mkdir()
    asked = [{"prompt_id": str(i), "messages": [{"role": "user", "content": f"{i}+1="}], "source": "x"} for i in range(8)]
    tables.write(tables.from_rows(asked, tables.PROMPTS), tables.PROMPTS, tmp_path / "prompts" / "rounds.parquet")

    def of(accumulate: int) -> list[torch.Tensor]:
        settings = online.Settings(
            loss=Loss(name=name, beta=0.0), steps=2, epochs=1.0, batch=16, accumulate=accumulate, learning_rate=0.0,
            schedule="constant", warmup=0.0, weight_decay=0.0, max_length=64, precision="float32", checkpointing=False,
            lora=None, validation=0.0, patience=1, replay=False, save_every=50, split="rounds", trust_remote_code=False,
            rewards=[online.Reward(name="many", scorer="tests.test_whole_batch:many_digits", settings={}, weight=1.0)],
            n=4, temperature=1.0, top_p=1.0, max_tokens=24, together=16,
        )  # fmt: skip
        inputs = {"checkpoint": start, "prompts": tmp_path / "prompts"}
        work = work_in(tmp_path / f"{accumulate}", settings, tmp_path, **inputs)
        policy, tokenizer = models.load_model(start, "cpu", "float32"), models.load_tokenizer(start)
        return gradients(online._trainer(work, policy, tokenizer, asked))

    whole = of(1)
    assert all(float(gradient.norm()) > 0 for gradient in whole)
    assert all(furthest(whole, of(accumulate)) < SAME for accumulate in (2, 4))


def many_digits(prompts: Any, completions: Any) -> Any:
    """A scorer that differs among the samples of a random model."""
    from tasks.score.scorers import Score

    return [Score(float(sum(c.isdigit() for c in row["text"]))) for row in completions]


def test_every_loss_is_asked() -> None:
    # Claim: a loss that is added is in one of the lists above.
    assert set(OFFLINE) == {name for name, kind in KINDS.items() if kind.data != "online"}
    assert set(DPO) <= set(OFFLINE)
