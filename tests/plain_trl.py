"""The peer: iterative RAFT or DPO as one plain TRL script, the way a user would write it. It imports nothing of Ratchet.

python tests/plain_trl.py --method raft --model DIR --prompts FILE --held-out FILE --seed-data FILE --out DIR --rounds 3

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
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

Rows = list[dict[str, Any]]
PER_ROUND, N, BATCH, KEEP = 1000, 8, 500, 4
TRAINING: dict[str, Any] = {"max_steps": 80, "per_device_train_batch_size": 32, "lr_scheduler_type": "cosine"}
TRAINING |= {"bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False}
TRAINING |= {"logging_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True}


def read(path: str) -> Rows:
    kind = "parquet" if path.endswith(".parquet") else "json"
    rows: Rows = datasets.load_dataset(kind, data_files=path, split="train").to_list()
    return rows


def load(folder: Path) -> Any:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").to(device)


def sample(model: Any, tokenizer: Any, rows: Rows, n: int, **decoding: Any) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Each row with n texts, "" where one did not finish; prompts of like length share a batch."""
    model.eval()
    rows = sorted(rows, key=lambda row: len(row["prompt"]))
    for start in range(0, len(rows), BATCH // n):
        batch = rows[start : start + BATCH // n]
        inputs = tokenizer([row["prompt"] for row in batch], return_tensors="pt", padding=True, padding_side="left")
        with torch.inference_mode():
            out = model.generate(**inputs.to(model.device), num_return_sequences=n, max_new_tokens=64, **decoding)
        new = out[:, inputs["input_ids"].shape[1] :]
        finished = (new == tokenizer.eos_token_id).any(1).tolist()
        texts = [t if f else "" for t, f in zip(tokenizer.batch_decode(new, skip_special_tokens=True), finished, strict=True)]
        yield from ((row, texts[i * n : (i + 1) * n]) for i, row in enumerate(batch))


def right(text: str, answer: str) -> bool:
    return "#" in text and text.rsplit("#", 1)[1].strip() == answer


def train(method: str, model: Any, tokenizer: Any, previous: Path, out: Path, prompts: Rows, seed_data: Rows, seed: int) -> int:
    data = [{"prompt": row["prompt"], "completion": row["completion"]} for row in seed_data] if method == "raft" else []
    for row, texts in sample(model, tokenizer, prompts, N, do_sample=True, temperature=1.0, top_k=0):
        unique = [text for text in dict.fromkeys(texts) if text]
        good = [text for text in unique if right(text, row["answer"])][:KEEP]
        bad = [text for text in unique if not right(text, row["answer"])][:KEEP]
        if method == "raft":
            data += [{"prompt": row["prompt"], "completion": text} for text in good]
        else:
            data += [{"prompt": row["prompt"], "chosen": g, "rejected": b} for g, b in zip(good, bad, strict=False)]
    dataset, common = datasets.Dataset.from_list(data), TRAINING | {"output_dir": str(out), "seed": seed}
    if method == "raft":
        sft = SFTConfig(learning_rate=1e-3, **common)
        trainer: Any = SFTTrainer(model, args=sft, train_dataset=dataset, processing_class=tokenizer)
    else:
        dpo = DPOConfig(learning_rate=3e-4, beta=0.5, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 2.0], **common)
        trainer = DPOTrainer(model, ref_model=load(previous), args=dpo, train_dataset=dataset, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(str(out))
    return len(data)


def evaluate(model: Any, tokenizer: Any, rows: Rows) -> dict[str, float]:
    greedy = [right(t[0], row["answer"]) for row, t in sample(model, tokenizer, rows, 1, do_sample=False)]
    twice = sample(model, tokenizer, rows, 2, do_sample=True, temperature=1.0, top_k=0)
    solved = [any(right(text, row["answer"]) for text in texts) for row, texts in twice]
    return {"accuracy": sum(greedy) / len(greedy), "pass_at_2": sum(solved) / len(solved)}


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
    for k in range(args.rounds + 1):  # round 0 only evaluates the model as it came
        began, out, seed, rows = time.process_time(), Path(args.out) / f"round_{k}", 1000 * args.seed + k, 0
        if out.exists():
            previous = out
            continue
        torch.manual_seed(seed)
        model = load(previous)
        if k > 0:
            fresh = [prompts[i % len(prompts)] for i in range((k - 1) * PER_ROUND, k * PER_ROUND)]
            rows = train(args.method, model, tokenizer, previous, out, fresh, seed_data, seed)
            previous = out
        line = {"round": k, **evaluate(model, tokenizer, held_out), "rows": rows}
        print(json.dumps(line | {"cpu_seconds": round(time.process_time() - began, 2)}), flush=True)


if __name__ == "__main__":
    main()
