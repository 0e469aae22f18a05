"""What our generate stage costs beside the bare libraries, and what keeping an engine warm and scoring ahead save.

    ./ratchet bench engines [--pairs 10] [--prompts 64] [--only vllm|transformers|warm|ahead]

Each side lives in a process of its own and draws in turn, A B, B A, ...: CPU seconds of the drawing process, without imports
and, but for `warm`, without loading. Ratios of completion tokens per CPU second (warm: of CPU seconds) with a 95% interval.
The bare sides get the same checkpoint, prompts, lengths and temperature, keep what they return in memory, and write nothing.
`ahead` compares seconds on the clock: an engine that sleeps stands for the GPU or server that draws elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
N, TOKENS, BATCH, SHARD = 8, 96, 256, 512
SIDES: dict[str, dict[str, tuple[str, str]]] = {
    "vllm": {
        "our vllm stage / LLM.generate asked for the same (seeds, log-probabilities)": ("ours_vllm", "bare_vllm"),
        "our vllm stage / LLM.generate asked for texts only": ("ours_vllm", "plain_vllm"),
    },
    "transformers": {
        "our transformers stage / model.generate": ("ours_transformers", "bare_transformers"),
        "our vllm stage / model.generate": ("ours_vllm", "bare_transformers"),
    },
    "warm": {"a round's draw with a warm engine / built anew": ("warm", "cold")},
    "ahead": {"drawing and math_equivalence, scored ahead / in sequence": ("ahead", "sequence")},
}
COST = {"warm": "cpu", "ahead": "seconds"}  # elsewhere the tokens of a CPU second


def main() -> int:
    parser = argparse.ArgumentParser(prog="ratchet bench engines", description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=64, help="of a draw, 8 samples each")
    parser.add_argument("--only", choices=tuple(SIDES))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(options.side, options.place)
        return 0
    with tempfile.TemporaryDirectory(prefix="ratchet-engines-") as place:
        prepare(Path(place), options.prompts)
        for group, ratios in SIDES.items():
            if options.only in (None, group):
                compare(group, ratios, Path(place), options.pairs)
    return 0


def prepare(place: Path, prompts: int) -> None:
    """Two checkpoints of a 3.4M-parameter Qwen3 shape, and prompts of several lengths."""
    from data.recipe.settings import Hardware
    from data.rows import tables
    from tasks.models.tiny_model import Settings, tiny_model
    from tasks.run.work import Work

    for name, seed in (("one", 1), ("two", 2)):
        (place / name).mkdir()
        tiny_model(Work("key", Settings(hidden=256, layers=4), {}, seed, place / name, place / name, Hardware()))
    rows = []
    for i in range(prompts):
        messages = [{"role": "user", "content": f"{10 ** (i % 7) + i}+{997 * i}?"}]
        rows.append({"prompt_id": tables.prompt_id(messages), "messages": messages, "answer": "1", "source": "bench"})
    tables.write(tables.from_rows(rows, tables.PROMPTS), tables.PROMPTS, place / "rounds.parquet")


# -- one side, in a process of its own: a line in asks for a draw, a line out tells its cost ----------------------------------
def serve(side: str, place: Path) -> None:
    draw = make(side, place)
    draw(0)  # what is done once in a process (kernels, caches) is no part of a draw
    for line in sys.stdin:
        before, began = time.process_time(), time.perf_counter()
        tokens = draw(int(line))
        cpu, seconds = time.process_time() - before, time.perf_counter() - began
        print(json.dumps({"cpu": cpu, "seconds": seconds, "tokens": tokens}), flush=True)


def make(side: str, place: Path) -> Callable[[int], int]:
    """A function from the number of a draw (1, 2, ...) to the completion tokens it drew."""
    if side in ("warm", "cold"):
        return lambda number: stage("vllm", place, ("one", "two")[number % 2], number, warm=side == "warm")
    if side in ("ahead", "sequence"):
        return lambda number: draw_and_score(place, number, ahead=side == "ahead")
    kind, _, library = side.partition("_")
    if kind == "ours":
        return lambda number: stage(library, place, "one", number, warm=True)
    return bare_transformers(place) if library == "transformers" else bare_vllm(place, kind)


def stage(engine: str, place: Path, checkpoint: str, seed: int, warm: bool) -> int:
    from data.recipe.settings import Hardware
    from data.rows import tables
    from tasks.generate.generate import Settings, generate
    from tasks.run.work import Work

    values: dict[str, Any] = {"n": N, "temperature": 1.0, "top_p": 1.0, "max_tokens": TOKENS, "batch": BATCH, "shard": SHARD}
    settings = Settings(engine=engine, split="rounds", dtype="float32", trust_remote_code=False, **{"settings": {}, **values})
    inputs = {"prompts": place, "checkpoint": place / checkpoint}
    with tempfile.TemporaryDirectory(dir=place) as folder:
        generate(Work("key", settings, inputs, seed, Path(folder), Path(folder), Hardware(device="cpu", warm=warm)))
        table = tables.read(Path(folder) / "completions.parquet", tables.COMPLETIONS)
        return sum(len(ids) for ids in table["token_ids"].to_pylist())


def draw_and_score(place: Path, seed: int, ahead: bool) -> int:
    """Both stages through a store of their own; shards of 16 completions, math-verify in one worker process."""
    from contextlib import nullcontext

    from data.recipe.settings import Hardware
    from data.store.store import External, Store, digest_of, hash_folder
    from tasks.generate import generate
    from tasks.run.stage import Input, perform
    from tasks.score import score
    from tasks.score.score_while_generating import ScoreWhileGenerating

    drawing = generate.Settings(
        engine="tests.bench_engines:elsewhere", split="rounds", n=N, temperature=1.0, top_p=1.0, max_tokens=TOKENS,
        batch=16, shard=16, dtype="float32", settings={}, trust_remote_code=False,
    )  # fmt: skip
    scoring = score.Settings(scorer="math_equivalence", settings={}, split="rounds")
    beside = ScoreWhileGenerating([scoring] if ahead else [], workers=1)
    given: dict[str, Input] = {
        "prompts": External(digest_of(hash_folder(place)), place),
        "checkpoint": External("one", place / "one"),
    }
    hardware = Hardware(device="cpu", isolation="inline", workers=1)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        store = Store(Path(folder))
        drawn = perform(store, generate.generate, drawing, given, seed=seed << 16, hardware=hardware, around=beside.generating)
        inputs: dict[str, Input] = {"prompts": given["prompts"], "completions": drawn}
        perform(store, score.score, scoring, inputs, hardware=hardware, around=beside.scoring if ahead else nullcontext)
    return 0


def elsewhere(checkpoint: Path) -> Any:
    """An engine whose completions take 40 ms each and no CPU, every one another expression to compare."""

    def sample(batches: Any, decoding: Any) -> Any:
        for index, batch in enumerate(batches):
            seeds = [seed + j for seed in batch.seeds for j in range(decoding.n)]
            time.sleep(0.04 * len(seeds))
            texts = [rf"so \boxed{{\frac{{{s}}}{{{s}+1}}+\sqrt{{{s}}}}}" for s in seeds]
            known = {"token_ids": None, "logprobs": None, "finish_reason": "stop"}
            yield index, [{"text": text, "seed": s, **known} for text, s in zip(texts, seeds, strict=True)]

    return SimpleNamespace(sample=sample, length=lambda prompt: 1, close=lambda: None)


def bare_vllm(place: Path, kind: str) -> Callable[[int], int]:
    from tasks.generate.engines import vllm_engine

    for name, value in {**vllm_engine.DEFAULTS, **vllm_engine.ON_CPU}.items():
        os.environ.setdefault(name, value)
    from vllm import LLM, SamplingParams

    llm = LLM(model=str(place / "one"), dtype="float32", enforce_eager=True)

    def draw(number: int) -> int:
        prompts = [{"prompt_token_ids": ids} for ids in token_ids(place)]
        common: dict[str, Any] = {"n": N, "temperature": 1.0, "max_tokens": TOKENS}
        if kind != "plain":
            parameters = [SamplingParams(**common, logprobs=0, seed=1000 * number + N * i) for i in range(len(prompts))]
        else:
            parameters = [SamplingParams(**common) for _ in prompts]
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        return sum(len(completion.token_ids) for output in outputs for completion in output.outputs)

    return draw


def bare_transformers(place: Path) -> Callable[[int], int]:
    import torch

    from tasks.models import models

    tokenizer, model = models.load_tokenizer(place / "one"), models.load_model(place / "one", "cpu", "float32")
    tokenizer.padding_side = "left"

    def draw(number: int) -> int:
        torch.manual_seed(number)
        rows, total = [ids for ids in token_ids(place) for _ in range(N)], 0
        for start in range(0, len(rows), BATCH):
            batch = tokenizer.pad({"input_ids": rows[start : start + BATCH]}, return_tensors="pt")
            with torch.inference_mode():
                out = model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=TOKENS)
            new = out[:, batch["input_ids"].shape[1] :]
            tokenizer.batch_decode(new, skip_special_tokens=True)
            ends = (new == tokenizer.eos_token_id).int()
            total += int((ends.cumsum(1) - ends == 0).sum())  # an ended row is filled with padding
        return total

    return draw


def token_ids(place: Path) -> list[list[int]]:
    from data.rows import tables
    from tasks.models import models

    tokenizer = models.load_tokenizer(place / "one")
    rows = tables.read(place / "rounds.parquet", tables.PROMPTS).to_pylist()
    return [models.render(tokenizer, row["messages"]) for row in rows]


# -- comparing -------------------------------------------------------------------------------------------------------------
def compare(group: str, ratios: dict[str, tuple[str, str]], place: Path, pairs: int) -> None:
    from tests.bench_cost import interval

    names = sorted({side for sides in ratios.values() for side in sides})
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryFile() as words:
        running = {name: start(name, place, words) for name in names}
        try:
            for pair in range(1, pairs + 1):
                for name in names if pair % 2 else reversed(names):
                    found[name].append(ask(running[name], name, pair))
        finally:
            for child in running.values():
                child.kill()
                child.wait()
    for name, draws in found.items():
        cpu, tokens = np.median([d["cpu"] for d in draws]), np.median([d["tokens"] / d["cpu"] for d in draws])
        seconds = np.median([d["seconds"] for d in draws])
        print(f"{name:<20}{cpu:>8.2f} CPU s{seconds:>8.2f} s a draw{tokens:>10.0f} tokens a CPU second", flush=True)
    for title, (ours, theirs) in ratios.items():
        key: Callable[[dict[str, float]], float] = (
            (lambda d: d[COST[group]]) if group in COST else (lambda d: d["tokens"] / d["cpu"])
        )
        low, middle, high = interval([key(a) / key(b) for a, b in zip(found[ours], found[theirs], strict=True)])
        print(f"{title}: {middle:.3f}, 95% interval {low:.3f} to {high:.3f}, {pairs} pairs", flush=True)


def start(side: str, place: Path, words: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.bench_engines", "--side", side, "--place", str(place)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip


def ask(child: subprocess.Popen[str], name: str, number: int) -> dict[str, float]:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{number}\n")
    child.stdin.flush()
    for line in child.stdout:
        if line.startswith('{"cpu"'):
            cost: dict[str, float] = json.loads(line)
            return cost
    raise RuntimeError(f"the side '{name}' ended; run it alone: python -m tests.bench_engines --side {name} --place FOLDER")


if __name__ == "__main__":
    raise SystemExit(main())
