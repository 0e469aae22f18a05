"""Training: our rows in TRL's trainers, equality with stock TRL, resume after a real kill, the reference proved."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.errors import ReferenceMismatch, StageFailed
from data.rows import tables
from data.store.campaign import Campaign
from data.store.store import hash_folder
from tasks.models import models
from tasks.run.work import Work, stage_module
from tasks.train.train import train

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """A micro DPO campaign of one round, whose inputs the tests train on again."""
    from flows.service import environment
    from tests.micro import micro

    home = tmp_path_factory.mktemp("train")
    environment.prepare(home)
    from flows.round.improve import improve

    campaign = Campaign.start(home, "train", micro("tiny_dpo", "rounds=1"))
    improve.fn("train", str(home))
    return campaign


def work_of(campaign: Campaign, folder: Path, **changes: Any) -> Work:
    """The campaign's train (or online) call as plain Work, in folders of the test."""
    ref = campaign.rounds()[1].artifacts["train"]
    manifest = campaign.store.manifest(ref.key)
    settings = stage_module(manifest["job"]["stage"]).Settings(**manifest["job"]["settings"] | changes)
    inputs = {name: campaign.store.folder(key) / "payload" for name, key in manifest["input_keys"].items()}
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    seed = manifest["job"]["seed"]
    return Work(ref.key, settings, inputs, seed, folder / "out", folder / "scratch", campaign.recipe.hardware)


def read(path: Path, schema: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = tables.read(path, schema).to_pylist()
    return rows


def survives(row: dict[str, Any], tokenizer: Any) -> bool:
    """Whether a text gives back its sampled ids: stock TRL tokenises anew and ends texts that were cut."""
    return bool(row["token_ids"] == [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id])


def test_neutral_settings_equal_stock_trl(finished: Campaign, tmp_path: Path) -> None:
    # Claim: our DPO on token ids gives the losses of stock TRL's DPOTrainer on the same texts.
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    work = work_of(finished, tmp_path, steps=4, max_length=128, save_every=1)
    tokenizer = models.load_tokenizer(work.inputs["checkpoint"])
    rows = {r["completion_id"]: r for r in read(work.inputs["completions"] / "completions.parquet", tables.COMPLETIONS)}
    prompts = {r["prompt_id"]: r for r in read(work.inputs["prompts"] / "rounds.parquet", tables.PROMPTS)}
    pairs = [
        pair
        for pair in read(work.inputs["pairs"] / "pairs.parquet", tables.PAIRS)
        if all(survives(rows[pair[side]], tokenizer) for side in ("chosen_id", "rejected_id"))
    ]
    assert len(pairs) >= 8
    (tmp_path / "pairs").mkdir()
    tables.write(tables.from_rows(pairs, tables.PAIRS), tables.PAIRS, tmp_path / "pairs" / "pairs.parquet")
    work = replace(work, inputs={**work.inputs, "pairs": tmp_path / "pairs"})
    train(work)
    ours = [row["value"] for row in read(work.out / "training.parquet", tables.TRAINING) if row["metric"] == "loss"]
    texts = [
        {
            "prompt": prompts[p["prompt_id"]]["messages"][0]["content"],
            "chosen": rows[p["chosen_id"]]["text"],
            "rejected": rows[p["rejected_id"]]["text"],
        }
        for p in pairs
    ]
    s = work.settings
    config = DPOConfig(
        output_dir=str(tmp_path / "stock"), max_steps=4, per_device_train_batch_size=s.batch, learning_rate=s.learning_rate,
        lr_scheduler_type=s.schedule, bf16=False, gradient_checkpointing=False, seed=work.seed, data_seed=work.seed,
        beta=s.loss.beta,
        loss_type=list(s.loss.weights), loss_weights=list(s.loss.weights.values()),
        logging_steps=1, report_to="none", use_cpu=True,
        save_strategy="no", disable_tqdm=True, max_length=128, dataloader_pin_memory=False,
    )  # fmt: skip

    def load(name: str) -> Any:
        return models.load_model(work.inputs[name], "cpu", "float32")

    trainer = DPOTrainer(
        load("checkpoint"), ref_model=load("reference"), args=config, train_dataset=Dataset.from_list(texts),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    stock = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert ours == pytest.approx(stock, abs=1e-5)


def test_wrong_reference_is_noticed(finished: Campaign, tmp_path: Path) -> None:
    # Claim: a reference whose weights are not those of the checkpoint the round names stops the stage.
    work = work_of(finished, tmp_path)
    other = tmp_path / "other"
    shutil.copytree(finished.store.folder(finished.rounds()[1].artifacts["train"].key) / "payload", other)
    with pytest.raises(ReferenceMismatch, match="nats on a token"):
        train(replace(work, inputs={**work.inputs, "reference": other}))


def test_rows_that_do_not_fit(finished: Campaign, tmp_path: Path) -> None:
    # Claim: rows longer than max_length are left out and counted; where none fits the stage says what to raise.
    lengths = work_of(finished, tmp_path / "a", max_length=30, steps=2)
    train(lengths)
    facts = json.loads((lengths.out / "training.json").read_text())
    assert facts["left_out"] > 0
    assert facts["rows"] > 0
    with pytest.raises(StageFailed, match=r"rows fits train.max_length = 8 tokens; .* Raise train\.max_length"):
        train(work_of(finished, tmp_path / "b", max_length=8))


def test_killed_training_resumes_bit_identical(finished: Campaign, tmp_path: Path) -> None:
    # Claim: a training that is really SIGKILLed between saves and started again ends with the bytes of an uninterrupted one.
    whole = work_of(finished, tmp_path / "whole", steps=60, save_every=5)
    train(whole)
    cut = work_of(finished, tmp_path / "cut", steps=60, save_every=5)
    job = {
        "stage": "train", "key": cut.key, "settings": cut.settings.model_dump(), "seed": cut.seed, "parent": os.getpid(),
        "inputs": {name: str(path) for name, path in cut.inputs.items()}, "out": str(cut.out), "scratch": str(cut.scratch),
        "hardware": cut.hardware.model_dump(),
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-m", "tasks.run.worker", str(tmp_path / "job.json")], env=environment)
    deadline = time.time() + 120
    while not list(cut.scratch.glob("checkpoint-*/ratchet-manifest.json")) and time.time() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (cut.out / "model.safetensors").exists()
    train(cut)
    assert hash_folder(cut.out) == hash_folder(whole.out)


def test_checkpoint_opens_with_plain_transformers(finished: Campaign) -> None:
    # Claim: what a round trains is a real Hugging Face directory: config, tokenizer, chat template, safetensors, nothing else.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished.store.folder(finished.rounds()[1].checkpoint.key) / "payload"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("12+34?")["input_ids"]) == "12+34?"
    assert model.config.vocab_size == 32
    assert {p.suffix for p in folder.iterdir()} <= {".json", ".safetensors", ".jinja", ".parquet"}
