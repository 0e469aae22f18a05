"""What our train stage costs over bare TRL on the same rows: interleaved pairs, CPU seconds, ratio with a 95% interval.

    ./ratchet bench train [--method dpo|raft] [--pairs 10] [--steps 40]

Both sides load the same checkpoint, train the same number of steps on the same rows of the tiny world and write a checkpoint;
ours also proves the reference, logs every step and seals a save half-way. Imports are paid before the clock starts.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data.recipe import recipe as recipes
from data.rows import tables
from data.statistics import in_brackets, t_interval
from data.store.campaign import Campaign
from tasks.models import models
from tasks.run.work import Work, stage_module

SMALLER = ("rounds=1", "model.steps=200", "prompts.per_round=300", "prompts.held_out=50", "prompts.test=0", "prompts.ood=0")
PLAIN = ("evaluate.samples=0", "hardware.prefect=false", "train.minimum=1")


def main() -> int:
    parser = argparse.ArgumentParser(prog="ratchet bench train", description=__doc__.split("\n")[0])
    parser.add_argument("--method", choices=("dpo", "raft"), default="dpo")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="ratchet-train-"))
    try:
        work, texts = prepare(place, options.method, options.steps)
        sides: dict[str, Callable[[], None]] = {
            "ours": lambda: ours(work), "bare": lambda: bare(work, texts, options.method, place / "bare"),
        }  # fmt: skip
        seconds: dict[str, list[float]] = {"ours": [], "bare": []}
        for side in sides.values():  # imports and first-use caches
            side()
        for number in range(options.pairs):
            for name in ("ours", "bare") if number % 2 == 0 else ("bare", "ours"):
                began = time.process_time()
                sides[name]()
                seconds[name].append(time.process_time() - began)
            print(f"{number:>3}  ours {seconds['ours'][-1]:6.2f}  bare TRL {seconds['bare'][-1]:6.2f} CPU s", flush=True)
        report(seconds, options.method)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return 0


def report(seconds: dict[str, list[float]], method: str) -> None:
    logs = np.log(np.array(seconds["ours"]) / np.array(seconds["bare"]))
    ends = np.exp(t_interval(logs))
    ratio = f"{np.exp(logs.mean()):.3f} {in_brackets((ends[0], ends[1]), '.3f')}"
    print(f"{method}: ours / bare TRL {ratio} over {len(logs)} interleaved pairs (target 1.05)")


def prepare(place: Path, method: str, steps: int) -> tuple[Work, list[dict[str, str]]]:
    """A train call of a small campaign, on rows that a tokenizer gives back unchanged; and those rows as texts."""
    from flows.service import environment

    environment.prepare(place)
    from flows.round.improve import improve

    campaign = Campaign.start(
        place, "bench", recipes.load(f"tiny_{method}", [*SMALLER, *PLAIN, "train.replay=false", "train.steps=2"])
    )
    improve.fn("bench", str(place))
    ref = campaign.rounds()[1].artifacts["train"]
    manifest = campaign.store.manifest(ref.key)
    settings = stage_module("train").Settings(
        **manifest["job"]["settings"] | {"steps": steps, "save_every": max(1, steps // 2)}
    )
    inputs = {name: campaign.store.folder(key) / "payload" for name, key in manifest["input_keys"].items()}
    tokenizer = models.load_tokenizer(inputs["checkpoint"])
    rows = {
        r["completion_id"]: r
        for r in tables.read(inputs["completions"] / "completions.parquet", tables.COMPLETIONS).to_pylist()
    }
    prompts = {r["prompt_id"]: r for r in tables.read(inputs["prompts"] / "rounds.parquet", tables.PROMPTS).to_pylist()}

    def same(name: str) -> bool:
        return bool(rows[name]["token_ids"] == [*tokenizer(rows[name]["text"])["input_ids"], tokenizer.eos_token_id])

    kind, schema, columns = (
        ("pairs", tables.PAIRS, ("chosen", "rejected")) if method == "dpo" else ("selected", tables.SELECTED, ("completion",))
    )
    chosen = [
        r for r in tables.read(inputs[kind] / f"{kind}.parquet", schema).to_pylist() if all(same(r[f"{c}_id"]) for c in columns)
    ]
    (place / kind).mkdir()
    tables.write(tables.from_rows(chosen, schema), schema, place / kind / f"{kind}.parquet")
    texts = [
        {"prompt": prompts[r["prompt_id"]]["messages"][0]["content"], **{c: rows[r[f"{c}_id"]]["text"] for c in columns}}
        for r in chosen
    ]
    job = manifest["job"]
    work = Work(
        ref.key,
        settings,
        {**inputs, kind: place / kind},
        job["seed"],
        place / "out",
        place / "scratch",
        campaign.recipe.hardware,
    )
    return work, texts


def ours(work: Work) -> None:
    for folder in (work.out, work.scratch):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    stage_module("train").train(replace(work))


def bare(work: Work, texts: list[dict[str, str]], method: str, out: Path) -> None:
    """The same training as a user of TRL would write it."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    s = work.settings
    common: dict[str, Any] = {
        "output_dir": str(out), "max_steps": s.steps, "per_device_train_batch_size": s.batch, "learning_rate": s.learning_rate,
        "lr_scheduler_type": s.schedule, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False, "seed": work.seed,
    }  # fmt: skip
    tokenizer = models.load_tokenizer(work.inputs["checkpoint"])
    policy = models.load_model(work.inputs["checkpoint"], "cpu", "float32")
    data = Dataset.from_list(texts)
    if method == "raft":
        trainer: Any = SFTTrainer(policy, args=SFTConfig(**common), train_dataset=data, processing_class=tokenizer)
    else:
        weights = s.loss.weights
        config = DPOConfig(**common, beta=s.loss.beta, loss_type=list(weights), loss_weights=list(weights.values()))
        reference = models.load_model(work.inputs["reference"], "cpu", "float32")
        trainer = DPOTrainer(policy, ref_model=reference, args=config, train_dataset=data, processing_class=tokenizer)
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(str(out))


if __name__ == "__main__":
    sys.exit(main())
