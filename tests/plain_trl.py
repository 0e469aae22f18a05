"""The peer: iterative RAFT or DPO as one plain TRL script, the way a user would write it. It imports nothing of Ratchet.

python tests/plain_trl.py --method raft --model DIR --prompts FILE --held-out FILE --seed-data FILE --out DIR --rounds 3 --seed 0

Files are JSONL or Parquet with the columns prompt, answer (and completion in --seed-data). It prints JSON lines.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: on a small machine more threads are slower

import datasets
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

PER_ROUND, N, BATCH, KEEP, MAX_NEW_TOKENS = 1000, 8, 2000, 4, 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMMON: dict[str, Any] = {
    "max_steps": 80,
    "per_device_train_batch_size": 32,
    "lr_scheduler_type": "cosine",
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def read(path: str) -> list[dict[str, Any]]:
    kind = "parquet" if path.endswith(".parquet") else "json"
    return datasets.load_dataset(kind, data_files=path, split="train").to_list()


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").to(DEVICE)


@torch.inference_mode()
def sample(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], n: int, greedy: bool
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """(row, its n finished texts; an unfinished one is ""), prompts of like length batched together."""
    model.eval()
    rows = sorted(rows, key=lambda row: len(row["prompt"]))
    for start in range(0, len(rows), BATCH // n):
        batch = rows[start : start + BATCH // n]
        inputs = tokenizer([row["prompt"] for row in batch], return_tensors="pt", padding=True, padding_side="left").to(DEVICE)
        settings = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        out = model.generate(**inputs, num_return_sequences=n, max_new_tokens=MAX_NEW_TOKENS, **settings)
        new = out[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        texts = [text if finished else "" for text, finished in zip(texts, (new == tokenizer.eos_token_id).any(1), strict=True)]
        yield from ((row, texts[i * n : (i + 1) * n]) for i, row in enumerate(batch))


def right(text: str, answer: str) -> bool:
    return "#" in text and text.rsplit("#", 1)[1].strip() == answer


def make_data(
    method: str, sampled: Iterator[tuple[dict[str, Any], list[str]]], seed_data: list[dict[str, Any]]
) -> datasets.Dataset:
    data = [{"prompt": row["prompt"], "completion": row["completion"]} for row in seed_data] if method == "raft" else []
    for row, texts in sampled:
        finished = list(dict.fromkeys(text for text in texts if text))
        good = [text for text in finished if right(text, row["answer"])][:KEEP]
        bad = [text for text in finished if not right(text, row["answer"])][:KEEP]
        if method == "raft":
            data += [{"prompt": row["prompt"], "completion": text} for text in good]
        else:
            data += [{"prompt": row["prompt"], "chosen": g, "rejected": b} for g, b in zip(good, bad, strict=False)]
    return datasets.Dataset.from_list(data)


def train(method: str, model: Any, tokenizer: Any, data: datasets.Dataset, previous: Path, out: Path, seed: int) -> None:
    common = COMMON | {"output_dir": str(out), "seed": seed}
    if method == "raft":
        config = SFTConfig(learning_rate=1e-3, **common)
        trainer = SFTTrainer(model, args=config, train_dataset=data, processing_class=tokenizer)
    else:
        config = DPOConfig(learning_rate=3e-4, beta=0.5, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 2.0], **common)
        trainer = DPOTrainer(model, ref_model=load(previous), args=config, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(out))


def evaluate(model: Any, tokenizer: Any, held_out: list[dict[str, Any]]) -> dict[str, float]:
    greedy = [right(texts[0], row["answer"]) for row, texts in sample(model, tokenizer, held_out, 1, greedy=True)]
    four = [
        any(right(text, row["answer"]) for text in texts) for row, texts in sample(model, tokenizer, held_out, 4, greedy=False)
    ]
    return {"accuracy": sum(greedy) / len(greedy), "pass_at_4": sum(four) / len(four)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", choices=["raft", "dpo"], required=True)
    for name in ("model", "prompts", "held-out", "seed-data", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    datasets.disable_progress_bars()
    prompts, held_out, seed_data = read(args.prompts), read(args.held_out), read(args.seed_data)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    print(json.dumps({"startup_cpu_seconds": round(time.process_time(), 2)}), flush=True)

    previous = Path(args.model)
    for k in range(args.rounds + 1):
        began, out = time.process_time(), Path(args.out) / f"round_{k}"
        if out.exists():
            previous = out
            continue
        seed = 1000 * args.seed + k
        torch.manual_seed(seed)
        model, rows = load(previous), 0
        if k > 0:
            fresh = [prompts[i % len(prompts)] for i in range((k - 1) * PER_ROUND, k * PER_ROUND)]
            data = make_data(args.method, sample(model, tokenizer, fresh, N, greedy=False), seed_data)
            rows = len(data)
            train(args.method, model, tokenizer, data, previous, out, seed)
            previous = out
        result = evaluate(model, tokenizer, held_out)
        print(
            json.dumps({"round": k, **result, "rows": rows, "cpu_seconds": round(time.process_time() - began, 2)}), flush=True
        )


if __name__ == "__main__":
    main()
