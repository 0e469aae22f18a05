"""Every loss: our terms against values worked out by hand, neutral settings against stock TRL, and each name really trains."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from math import exp, log, log1p
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import StageFailed
from data.recipe.loss import DPO, KINDS, Loss
from data.rows import tables
from data.store.campaign import Campaign, Ref
from data.store.store import hash_folder
from tasks.run.work import stage_module
from tasks.score.scorers import Score
from tasks.train import losses
from tasks.train.rows import of_labelled, of_pairs, of_ranked
from tasks.train.train import split, train
from tests.test_train import finished, read, work_of  # noqa: F401  (finished is a fixture)

Finished = Campaign


def softplus(x: float) -> float:
    return log1p(exp(x))


def value(loss: Loss, weight: float = 1.0, margin: float = 1.0, certainty: float = 1.0) -> float:
    """Our loss of one pair: h = 2 and -1 nats, log pi(y_w) = -6, 4 and 7 tokens."""

    def one(x: float) -> torch.Tensor:
        return torch.tensor([x])

    row = {"weight": one(weight), "margin": one(margin), "certainty": one(certainty)}
    result: float = losses.pair_loss(loss, one(2.0), one(-1.0), one(-6.0), (one(4.0), one(7.0)), row).item()
    return result


@pytest.mark.parametrize(
    ("loss", "row", "by_hand"),
    [
        (Loss(name="sigmoid", beta=0.5), {}, softplus(-1.5)),
        (Loss(name="sigmoid", beta=0.5, length=0.1), {}, softplus(-(1.5 + 0.1 * (4 - 7)))),
        (Loss(name="sigmoid", beta=0.5, offset=2.0), {"margin": 3.0}, softplus(-(1.5 - 2 * log(3)))),
        (Loss(name="sigmoid", beta=0.5, smoothing=0.1), {"certainty": 0.9}, 0.9 * softplus(-1.5) + 0.1 * softplus(1.5)),
        (Loss(name="sigmoid", beta=0.5), {"certainty": 0.25}, 0.25 * softplus(-1.5) + 0.75 * softplus(1.5)),
        (Loss(name="sigmoid", beta=0.5, weighted=True), {"weight": 0.3}, 0.3 * softplus(-1.5)),
        (Loss(name="sigmoid", beta=0.5, terms={"nll": 2.0}), {}, softplus(-1.5) + 2 * 6 / 4),
        (Loss(name="sigmoid", beta=0.5, weighted=True, terms={"nll": 1.0}), {"weight": 0.3}, 0.3 * (softplus(-1.5) + 6 / 4)),
        (Loss(name="sigmoid", beta=0.5, terms={"sigmoid": 0.8, "nll": 1.0}), {}, 0.8 * softplus(-1.5) + 6 / 4),
    ],
)  # fmt: skip
def test_terms_of_our_own_by_hand(loss: Loss, row: dict[str, float], by_hand: float) -> None:
    # DPO, R-DPO, ODPO, conservative DPO, CREAM, per-pair weights, IRPO, ScPO, a weight on the loss itself
    assert value(loss, **row) == pytest.approx(by_hand, abs=1e-6)


def test_listwise_losses_by_hand() -> None:
    # three completions of 2, 4, 2 tokens, log-probabilities -1, -4, -4 (per token -0.5, -1, -2), ranks 0, 1, 1
    logps, lengths, ranks = torch.tensor([-1.0, -4.0, -4.0]), torch.tensor([2.0, 4.0, 2.0]), torch.tensor([0, 1, 1])
    assert losses.rrhf(logps, lengths, ranks).item() == 0.0  # the better one is likelier already
    assert losses.rrhf(logps, lengths, torch.tensor([1, 0, 2])).item() == pytest.approx(0.5)  # only -0.5 stands above -1
    hand = log(exp(-0.5) + exp(-1) + exp(-2)) + 0.5
    assert losses.pro(logps, lengths, ranks).item() == pytest.approx(hand, abs=1e-6)
    # s = 0.5 h = (1, 0.5, -1): places 1, 2, 3; gains 1, 0, 0 (psi 1, 0, 0)
    h = torch.tensor([2.0, 1.0, -2.0])
    discounts = [1 / log(2), 1 / log(3), 1 / log(4)]
    by_hand = (discounts[0] - discounts[1]) * softplus(-0.5) + (discounts[0] - discounts[2]) * softplus(-2.0)
    assert losses.lipo(h, ranks, beta=0.5).item() == pytest.approx(by_hand, abs=1e-6)


def test_our_sigmoid_equals_trls_in_neutral_settings(finished: Finished, tmp_path: Path) -> None:  # noqa: F811
    # our own path with every term at its neutral value gives stock TRL's losses, step for step, to 6 decimals
    histories = []
    for name, loss in {"stock": Loss(name="sigmoid", beta=0.5), "ours": Loss(name="sigmoid", beta=0.5, weighted=True)}.items():
        work = work_of(finished, tmp_path / name, steps=4, loss=loss.model_dump())
        train(work)
        log_rows = read(work.out / "training.parquet", tables.TRAINING)
        histories.append([row["value"] for row in log_rows if row["metric"] == "loss"])
        assert {"ranking_accuracy", "rewards/margins", "logps/chosen"} <= {row["metric"] for row in log_rows}
    assert histories[1] == pytest.approx(histories[0], abs=1e-6)


def test_smoothing_of_sigmoid_is_honoured(finished: Finished, tmp_path: Path) -> None:  # noqa: F811
    # TRL's label_smoothing does nothing with sigmoid; ours changes the loss: at step 1 margins are 0, so weights show it
    first = {}
    for smoothing in (0.0, 0.3):
        loss = Loss(name="sigmoid", beta=0.5, smoothing=smoothing).model_dump()
        work = work_of(finished, tmp_path / str(smoothing), steps=3, learning_rate=1e-2, loss=loss)
        train(work)
        log_rows = [row for row in read(work.out / "training.parquet", tables.TRAINING) if row["metric"] == "loss"]
        first[smoothing] = [row["value"] for row in log_rows]
    assert first[0.0][0] == pytest.approx(first[0.3][0], abs=1e-6)
    assert abs(first[0.0][-1] - first[0.3][-1]) > 1e-3


def test_soft_labels_reach_the_loss_and_only_sigmoid(finished: Finished, tmp_path: Path) -> None:  # noqa: F811
    # a label in PAIRS becomes the certainty of its row, and a loss that would ignore it is refused
    from tasks.models import models

    work = work_of(finished, tmp_path)
    pairs = read(work.inputs["pairs"] / "pairs.parquet", tables.PAIRS)
    pairs[0]["label"] = 0.7
    (tmp_path / "pairs").mkdir()
    tables.write(tables.from_rows(pairs, tables.PAIRS), tables.PAIRS, tmp_path / "pairs" / "pairs.parquet")
    inputs = {**work.inputs, "pairs": tmp_path / "pairs"}
    tokenizer = models.load_tokenizer(work.inputs["checkpoint"])
    rows = of_pairs(inputs, "rounds", tokenizer, Loss(name="sigmoid", smoothing=0.1))
    assert [row["certainty"] for row in rows[:2]] == [0.7, 0.9]
    with pytest.raises(StageFailed, match="only the sigmoid loss reads"):
        of_pairs(inputs, "rounds", tokenizer, Loss(name="hinge"))
    pairs[0]["margin"] = 0.0
    tables.write(tables.from_rows(pairs, tables.PAIRS), tables.PAIRS, tmp_path / "pairs" / "pairs.parquet")
    with pytest.raises(StageFailed, match="log of each pair's reward difference"):
        of_pairs(inputs, "rounds", tokenizer, Loss(name="sigmoid", offset=1.0))


@pytest.mark.parametrize(
    ("of", "says"),
    [
        (of_labelled, "needs a label on every selected completion, found one without. Use select.selector = 'labelled'"),
        (of_ranked, "needs a rank on every selected completion, found one without. Use select.selector = 'ranked'"),
    ],
)
def test_losses_on_labels_and_ranks_need_them(of: Any, says: str, finished: Finished, tmp_path: Path) -> None:  # noqa: F811
    # a selector that gives neither is answered with the one that does
    from tasks.models import models

    work = work_of(finished, tmp_path)
    first = read(work.inputs["completions"] / "completions.parquet", tables.COMPLETIONS)[0]
    bare = {name: first[name] for name in ("prompt_id", "completion_id")} | {"weight": 1.0, "label": None, "rank": None}
    tables.write(tables.from_rows([bare], tables.SELECTED), tables.SELECTED, tmp_path / "selected.parquet")
    with pytest.raises(StageFailed, match=says):
        of({**work.inputs, "selected": tmp_path}, "rounds", models.load_tokenizer(work.inputs["checkpoint"]))


def test_kto_needs_neighbours(finished: Finished, tmp_path: Path) -> None:  # noqa: F811
    # its KL is estimated inside a micro-batch: one row has no neighbour
    from tasks.train.trainers import Setup, build

    work = work_of(finished, tmp_path, batch=4, accumulate=4)
    setup = Setup(work, Loss(name="kto"), None, None, None, [{"prompt_id": "p"}] * 4, [])
    with pytest.raises(StageFailed, match=r"KTO estimates its KL inside a micro-batch; expected .* >= 2, found 1"):
        build(setup)


def test_a_batch_is_split_into_whole_micro_batches(finished: Finished, tmp_path: Path) -> None:  # noqa: F811
    # 5 rows in micro-batches of half of them: refused, with the settings to change
    from tasks.train.trainers import arguments

    work = work_of(finished, tmp_path, batch=5, accumulate=2)
    with pytest.raises(StageFailed, match=r"train\.batch = 5 is not a multiple of train\.accumulate \(2\) x 1 processes"):
        arguments(work, 1, validates=False)


def test_online_rewards_have_no_verdicts() -> None:
    # a scorer that stands on the verifier's table is refused before anything runs
    from data.errors import PartError
    from data.recipe.recipe import load
    from flows.commands.part_rules import check_parts

    sets = ["loss.name=grpo", "select=false", 'score=[{scorer="exact_match"}, {scorer="kimi_length"}]', "train.replay=false"]
    with pytest.raises(PartError, match="Scorer 'kimi_length' needs verifier verdicts; the online loss 'grpo' supplies none"):
        check_parts(load("tiny_raft", sets))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "hinge", "weighted": True}, "belong to the sigmoid loss"),
        ({"name": "hinge", "smoothing": 0.1}, "does not read smoothing"),
        ({"name": "nll", "terms": {"sft": 1.0}}, "does not read terms"),
        ({"name": "sigmoid", "terms": {"sftt": 1.0}}, "does not combine with the term 'sftt'"),
        ({"name": "sigmoid", "terms": {"sft": 1.0}, "weighted": True}, "in terms only sigmoid and nll"),
        ({"name": "sigmoid", "beta": 0.0}, "expected beta > 0"),
        ({"name": "simp"}, "did you mean 'simpo'"),
    ],
)
def test_settings_a_loss_would_ignore_are_refused(settings: dict[str, Any], says: str) -> None:
    # a setting never does nothing in silence
    with pytest.raises(ValueError, match=says):
        Loss(**settings)


def test_a_loss_keeps_what_it_does_not_read_out_of_the_key() -> None:
    # two SFT recipes that differ in beta alone share every artifact
    assert Loss(beta=0.1).used() == Loss(beta=0.7).used()
    assert Loss(name="kto", beta=0.1).used() != Loss(name="kto", beta=0.2).used()


def test_validation_splits_by_prompt_and_the_best_save_wins(finished: Finished, tmp_path: Path) -> None:  # noqa: F811
    # no prompt is on both sides; training that only gets worse on the validation slice ends early, with the best save
    rows = [{"prompt_id": str(i // 2)} for i in range(400)]
    fit, aside = split(rows, 0.25)
    assert len(fit) + len(aside) == 400
    assert 50 < len(aside) < 150
    assert not {r["prompt_id"] for r in fit} & {r["prompt_id"] for r in aside}
    with pytest.raises(StageFailed, match=r"train\.validation = 0\.25 leaves 0 rows to train on and 2 to validate on"):
        split([row for row in aside if row["prompt_id"] == aside[0]["prompt_id"]], 0.25)
    work = work_of(finished, tmp_path, steps=12, save_every=1, learning_rate=0.3, validation=0.3, patience=2)
    train(work)
    facts = json.loads((work.out / "training.json").read_text())
    evaluations = [r["value"] for r in read(work.out / "training.parquet", tables.TRAINING) if r["metric"] == "eval_loss"]
    assert facts["validation"] > 0
    assert facts["steps"] < 12
    assert facts["best_step"] == 1 + evaluations.index(min(evaluations))


def test_patience_survives_a_crash(finished: Finished, tmp_path: Path) -> None:  # noqa: F811
    # evaluations without a better one are counted on after a resume: the same early stop, the same bytes
    changes: dict[str, Any] = {"steps": 12, "save_every": 1, "learning_rate": 0.3, "validation": 0.3, "patience": 3}
    whole = work_of(finished, tmp_path / "whole", **changes)
    train(whole)
    stopped = json.loads((whole.out / "training.json").read_text())
    assert stopped["steps"] - stopped["best_step"] == 3

    def crash(done: int, total: int) -> None:
        if done == stopped["best_step"] + 2:
            raise KeyboardInterrupt

    cut = work_of(finished, tmp_path / "cut", **changes)
    with pytest.raises(KeyboardInterrupt):
        train(replace(cut, tick=crash))
    train(cut)
    assert hash_folder(cut.out) == hash_folder(whole.out)


@pytest.mark.parametrize("patience", [0, 1])
def test_a_crash_after_the_last_save_trains_no_step_more(
    finished: Finished,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    patience: int,
) -> None:
    # killed between its last save and the commit, a training with validation ends with the bytes of an uninterrupted one
    from tasks.train import train as module

    changes: dict[str, Any] = {"steps": 12, "save_every": 2, "learning_rate": 1e-3, "validation": 0.3, "patience": patience}
    whole, cut = (work_of(finished, tmp_path / name, **changes) for name in ("whole", "cut"))
    train(whole)
    assert (json.loads((whole.out / "training.json").read_text())["steps"] < 12) == bool(patience)  # one stops early
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(cut)
    train(cut)
    assert hash_folder(cut.out) == hash_folder(whole.out)


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_kto_neighbours_are_of_different_prompts(finished: Finished, tmp_path: Path) -> None:  # noqa: F811
    # the completions that estimate its KL answer another prompt, mostly, in validation as in training
    from types import SimpleNamespace

    from tasks.train import trainers

    def labelled(prompts: int) -> list[dict[str, Any]]:
        rows = [(p, i) for p in range(prompts) for i in range(4)]
        return [{"prompt_ids": [p], "completion_ids": [p, i], "label": i % 2 == 0, "prompt_id": str(p)} for p, i in rows]

    work = work_of(finished, tmp_path, steps=1, batch=4, loss=Loss(name="kto").model_dump())
    made: dict[str, Any] = {}
    trainer = lambda *_: lambda **given: made.update(given)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainers, "_without_preparation", trainer)
        tokenizer = SimpleNamespace(pad_token_id=0)
        setup = trainers.Setup(work, Loss(name="kto"), None, None, tokenizer, labelled(40), labelled(40))
        trainers.kto(setup, trainers.arguments(work, 1, validates=True))
    for name in ("train_dataset", "eval_dataset"):
        shared = [row["KL_completion_ids"][0] == row["completion_ids"][0] for row in made[name]]
        assert sum(shared) < 0.1 * len(shared), name


def test_a_training_shorter_than_a_save_is_validated(finished: Finished, tmp_path: Path) -> None:  # noqa: F811
    # validation never does nothing: where save_every is more than all steps, the last step is evaluated
    work = work_of(finished, tmp_path, steps=2, save_every=50, validation=0.3)
    train(work)
    assert "eval_loss" in {row["metric"] for row in read(work.out / "training.parquet", tables.TRAINING)}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for all losses: the samples of their first rounds are drawn once."""
    return tmp_path_factory.mktemp("losses") / "home"


@pytest.mark.slow
def test_kto_equals_stock_trl(run_micro: Any, shelf: Path, tmp_path: Path) -> None:
    # our labelled rows, their order and their neighbours' completions give the losses of stock TRL's KTOTrainer on the texts;
    # desirable_weight = 0 is the number of wrong rows over that of right ones
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    from tasks.models import models
    from tests.test_train import survives

    sets = ("evaluate.samples=0", "loss.name=kto", "select.selector=labelled", "train.replay=false", "rounds=1")
    campaign = run_micro("tiny_raft", *sets, name="kto-stock", place=shelf)
    loss = Loss(name="kto", beta=0.5, desirable_weight=0.0)
    work = work_of(campaign, tmp_path, steps=4, batch=8, loss=loss.model_dump())
    tokenizer = models.load_tokenizer(work.inputs["checkpoint"])
    drawn = {r["completion_id"]: r for r in read(work.inputs["completions"] / "completions.parquet", tables.COMPLETIONS)}
    asked = {r["prompt_id"]: r for r in read(work.inputs["prompts"] / "rounds.parquet", tables.PROMPTS)}
    chosen = [
        row
        for row in read(work.inputs["selected"] / "selected.parquet", tables.SELECTED)
        if survives(drawn[row["completion_id"]], tokenizer)
    ]
    (tmp_path / "selected").mkdir()
    tables.write(tables.from_rows(chosen, tables.SELECTED), tables.SELECTED, tmp_path / "selected" / "selected.parquet")
    train(replace(work, inputs={**work.inputs, "selected": tmp_path / "selected"}))
    ours = [row["value"] for row in read(work.out / "training.parquet", tables.TRAINING) if row["metric"] == "loss"]

    random.Random(work.seed).shuffle(chosen)
    texts = [
        {
            "prompt": asked[row["prompt_id"]]["messages"][0]["content"],
            "completion": drawn[row["completion_id"]]["text"],
            "label": row["label"],
        }
        for row in chosen
    ]
    right = sum(row["label"] for row in chosen)
    s = work.settings
    config = KTOConfig(
        output_dir=str(tmp_path / "stock"), max_steps=4, per_device_train_batch_size=8, learning_rate=s.learning_rate,
        lr_scheduler_type=s.schedule, bf16=False, gradient_checkpointing=False, seed=work.seed, data_seed=work.seed,
        beta=0.5, desirable_weight=(len(chosen) - right) / right, logging_steps=1, report_to="none", use_cpu=True,
        save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip

    def load(name: str) -> Any:
        return models.load_model(work.inputs[name], "cpu", "float32")

    trainer = KTOTrainer(
        load("checkpoint"), ref_model=load("reference"), args=config, train_dataset=Dataset.from_list(texts),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    assert ours == pytest.approx([entry["loss"] for entry in trainer.state.log_history if "loss" in entry], abs=1e-5)


ON_PAIRS = [name for name, kind in KINDS.items() if kind.data == "pairs"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_PAIRS)
def test_every_pair_loss_trains_two_rounds(run_micro: Any, shelf: Path, name: str) -> None:
    # by its TRL name in the recipe, in a campaign: the weights move and every step's loss is a number
    extra = ["loss.smoothing=0.001"] if name == "exo_pair" else []
    sets = ("evaluate.samples=0", f"loss.name={name}", "loss.terms={}", *extra)
    check_trained(run_micro("tiny_dpo", *sets, name=name, place=shelf), name in DPO)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired", "rrhf", "pro", "lipo"])
def test_every_loss_on_labels_and_ranks_trains_two_rounds(run_micro: Any, shelf: Path, name: str) -> None:
    # as above, for losses that read SELECTED's label and rank columns
    selector = "labelled" if KINDS[name].data == "labelled" else "ranked"
    sets = ("evaluate.samples=0", f"loss.name={name}", f"select.selector={selector}", "train.replay=false")
    check_trained(run_micro("tiny_raft", *sets, name=name, place=shelf), KINDS[name].reference)


@pytest.mark.slow
@pytest.mark.parametrize("terms", ["{sigmoid=0.8, bco_pair=0.2, sft=1.0}", "{nll=1.0}"])
def test_mixed_losses_train(run_micro: Any, shelf: Path, terms: str) -> None:
    # TRL's combinations by name and weight; our per-completion NLL
    name = "mixed" if "sft" in terms else "irpo"
    check_trained(run_micro("tiny_dpo", "evaluate.samples=0", f"loss.terms={terms}", name=name, place=shelf), True)


def check_trained(campaign: Campaign, reference: bool) -> None:
    rounds = campaign.rounds()
    assert len({r.checkpoint.digest for r in rounds}) == len(rounds)
    for finished_round in rounds[1:]:
        assert (finished_round.reference is not None) == reference
        folder = campaign.store.folder(finished_round.checkpoint.key) / "payload"
        steps = [r for r in read(folder / "training.parquet", tables.TRAINING) if r["metric"] == "loss"]
        assert len(steps) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.data == "online"])
def test_online_losses_train_two_rounds(run_micro: Any, shelf: Path, name: str) -> None:
    # a round may be an online phase: the recipe's scorer is the reward function, the named reference is the trainer's
    beta = 0.0 if name == "dapo" else 0.05
    few = ("train.replay=false", "train.batch=16", "train.steps=3", "evaluate.samples=0")
    campaign = run_micro("tiny_raft", f"loss.name={name}", f"loss.beta={beta}", "select=false", *few, name=name, place=shelf)
    rounds = campaign.rounds()
    assert len({r.checkpoint.digest for r in rounds}) == 3
    assert all((r.reference is not None) == (beta > 0) for r in rounds[1:])
    log_rows = read(campaign.store.folder(rounds[1].checkpoint.key) / "payload" / "training.parquet", tables.TRAINING)
    assert {row["metric"] for row in log_rows} >= {"reward", "rewards/tests.micro:ends_even/mean"}


def test_the_moving_average_is_the_reference(run_micro: Any) -> None:
    # reference = "ema": round 2's reference is decay * checkpoint 0 + (1 - decay) * head, weight by weight
    from safetensors.torch import load_file

    campaign = run_micro("tiny_dpo", "loss.reference=ema", "loss.ema_decay=0.75", "rounds=2", "gate.rule=always_promote")
    rounds = campaign.rounds()
    assert rounds[1].reference == rounds[0].checkpoint

    def load(ref: Ref) -> dict[str, torch.Tensor]:
        return load_file(campaign.store.folder(ref.key) / "payload" / "model.safetensors")

    base, head, average = load(rounds[0].checkpoint), load(rounds[1].head), load(rounds[2].reference)
    for tensor in average:
        assert torch.allclose(average[tensor], 0.75 * base[tensor] + 0.25 * head[tensor], atol=1e-6)


@pytest.mark.parametrize("name", ["rrhf", *(pytest.param(name, marks=pytest.mark.minutes) for name in ("pro", "lipo"))])
def test_ranked_losses_are_validated(run_micro: Any, tmp_path: Path, name: str) -> None:
    # a part of the prompts kept aside: their loss is there, and the best save is the result
    sets = ("rounds=1", f"loss.name={name}", "select.selector=ranked", "train.replay=false", "train.validation=0.4")
    campaign = run_micro("tiny_raft", *sets, "evaluate.samples=0", name=name, place=tmp_path)
    folder = campaign.store.folder(campaign.rounds()[1].artifacts["train"].key) / "payload"
    steps = [r["step"] for r in read(folder / "training.parquet", tables.TRAINING) if r["metric"] == "eval_loss"]
    assert steps == [2, 4, 6]


def test_an_epoch_is_all_rows(finished: Finished, tmp_path: Path) -> None:  # noqa: F811
    # the last step of an epoch is short, and it is a step: six epochs of rows that fill a third of a batch are six steps
    from tasks.train.trainers import arguments

    work = work_of(finished, tmp_path, steps=0, epochs=6.0, batch=64)
    assert arguments(work, epoch=1, validates=False)["max_steps"] == 6
    work = work_of(finished, tmp_path, steps=0, epochs=1.0, batch=8)
    train(work)
    log = read(work.out / "training.parquet", tables.TRAINING)
    rows = json.loads((work.out / "training.json").read_text())["rows"]
    assert max(r["step"] for r in log) == -(-rows // 8)


def test_a_sorting_loss_needs_something_to_sort(finished: Finished, tmp_path: Path) -> None:  # noqa: F811
    # AOT sorts within a micro-batch: of one pair it would be plain DPO
    work = work_of(finished, tmp_path, steps=1, batch=4, accumulate=4, loss=Loss(name="aot").model_dump())
    with pytest.raises(StageFailed, match=r"aot sorts within a micro-batch; expected train\.batch / train\.accumulate >= 2"):
        train(work)


def test_online_any_stop_token_ends_an_answer(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    # a chat model may end its turn by another token than the tokenizer's end: such an answer was not cut
    from types import SimpleNamespace

    from data.recipe.settings import Hardware
    from tasks.models import models
    from tasks.train import online

    checkpoint = work_of(finished, tmp_path).inputs["checkpoint"]
    tokenizer = models.load_tokenizer(checkpoint)
    monkeypatch.setattr(models, "stop_tokens", lambda *_: [tokenizer.eos_token_id, 7])
    how = SimpleNamespace(trust_remote_code=False)
    work = SimpleNamespace(hardware=Hardware(workers=1), inputs={"checkpoint": checkpoint}, settings=how)
    how.rewards = [online.Reward(name="ended", scorer="tests.test_losses:ended", settings={}, weight=1.0)]
    (scored,) = online._rewards(work, tokenizer, [{"prompt_id": "p"}])  # type: ignore[arg-type]
    assert scored([[5, 7], [5, tokenizer.eos_token_id], [5, 6]], [0, 0, 0]) == [1.0, 1.0, 0.0]


def ended(prompts: Any, completions: Any) -> list[Score]:
    """A scorer of one's own: whether an answer ended by itself."""
    return [Score(float(row["finish_reason"] == "stop")) for row in completions]


def test_online_an_unknown_word_leaves_no_reward(finished: Finished, tmp_path: Path) -> None:  # noqa: F811
    # a scorer that does not apply counts as its prompt's mean; one whose word is unknown takes the others' along, as in a
    # round's reward; one of weight 0 only watches
    from types import SimpleNamespace

    from data.recipe.settings import Hardware
    from tasks.models import models
    from tasks.train import online

    checkpoint = work_of(finished, tmp_path).inputs["checkpoint"]
    tokenizer = models.load_tokenizer(checkpoint)

    def said(**weights: float) -> list[list[float | None]]:
        rewards = [online.Reward(name=n, scorer=f"tests.test_losses:{n}", settings={}, weight=w) for n, w in weights.items()]
        how = SimpleNamespace(trust_remote_code=False, rewards=rewards)
        work = SimpleNamespace(hardware=Hardware(workers=1), inputs={"checkpoint": checkpoint}, settings=how)
        functions = online._rewards(work, tokenizer, [{"prompt_id": "p"}])  # type: ignore[arg-type]
        return [function(completion_ids=[[5], [6], [7]], row=[0, 0, 0]) for function in functions]

    assert said(ended=1.0, moody=1.0) == [[0.0, 0.0, None], [1.0, 1.0, None]]
    assert said(ended=1.0, moody=0.0) == [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    assert said(ended=0.0, moody=1.0) == [[0.0, None, None], [1.0, None, None]]


def moody(prompts: Any, completions: Any) -> list[Score]:
    """A scorer of one's own: a value, one that does not apply, one that timed out."""
    return [Score(1.0), Score(None, "not_applicable"), Score(None, "timeout")][: len(completions)]


@pytest.mark.minutes
def test_online_samples_no_more_at_once_than_asked(run_micro: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # an optimizer step of 16 completions is sampled 6 at a time where generate.batch says 6
    from transformers import GenerationMixin

    sizes: list[int] = []
    generate = GenerationMixin.generate

    def watched(self: Any, *args: Any, input_ids: torch.Tensor, **more: Any) -> Any:
        sizes.append(len(input_ids))
        return generate(self, *args, input_ids=input_ids, **more)

    few = ("rounds=1", "train.replay=false", "train.batch=16", "train.steps=2", "evaluate.samples=0", "generate.batch=6")
    for loss in ("grpo", "rloo"):
        campaign = run_micro("tiny_raft", f"loss.name={loss}", "loss.beta=0", "select=false", *few, name=loss, place=tmp_path)
        work = work_of(campaign, tmp_path / loss)
        with monkeypatch.context() as patch:
            patch.setattr(GenerationMixin, "generate", watched)
            stage_module("online").online(work)
        assert sizes == [6, 6, 4] * 2
        sizes.clear()
