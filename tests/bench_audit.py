"""How fast completions are observed, and whether time and memory grow with them as they should.

    ./ratchet bench audit [--rows 10000,100000,1000000] [--outputs FOLDER]

Completions of 200 words, made of recorded outputs (--outputs, .jsonl.gz with `output`; random words without), one process and
one core a size. Prints completions per CPU second of the whole stage (read, observe, write) with the length, format and tone
features, and with all of them on the smallest size; peak memory; and the exponent of time against rows.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
OUTPUTS = ROOT.parent / "shared" / "data" / "alpaca_eval"
WORDS = 200
FAST = ("length", "format", "tone")
SLOW = {"valence"}  # a lexicon too, but VADER walks every word in Python: timed with the rest


def main() -> int:
    parser = argparse.ArgumentParser(prog="ratchet bench audit", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--outputs", type=Path, default=OUTPUTS)
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "WHICH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(Path(options.child[0]), options.child[1])
    pool = recorded(options.outputs) or made_up()
    print(f"texts from {options.outputs if recorded(options.outputs) else 'random words'}: {len(pool)} different")
    sizes = sorted(int(size) for size in options.rows.split(","))
    results = [measure(pool, size, "fast") for size in sizes]
    everything = measure(pool, min(sizes[0], 10_000), "all")
    for title, result in [*(("length, format, tone", r) for r in results), ("every feature", everything)]:
        rate = result["rows"] / result["seconds"]
        memory = f"{result['memory'] / 2**20:,.0f} MiB at most ({result['idle'] / 2**20:,.0f} before the first row)"
        print(f"{title:<22} {result['rows']:>9,} completions: {rate:>7,.0f} a CPU second, {memory}")
    if len(sizes) > 1:
        print(f"time grows with rows to the power of {exponent(results):.3f}")
    return 0


def recorded(folder: Path) -> list[str]:
    lines = (line for path in sorted(folder.glob("*.jsonl.gz")) for line in gzip.decompress(path.read_bytes()).splitlines())
    texts = (json.loads(line).get("output") or "" for line in lines)
    return [cut(text) for text in texts if text.split()]


def made_up() -> list[str]:
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(5000)]
    return [" ".join(draw.choices(words, k=WORDS)) for _ in range(3000)]


def cut(text: str) -> str:
    """The text repeated to at least 200 words, and cut there; its white space stays as it is."""
    text = (text + "\n") * math.ceil(WORDS / len(text.split()))
    return "".join(itertools.islice((piece + gap for piece, gap in pieces(text)), WORDS))


def pieces(text: str) -> Iterator[tuple[str, str]]:
    import re

    for match in re.finditer(r"(\S+)(\s*)", text):
        yield match[1], match[2]


def measure(pool: list[str], rows: int, which: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="ratchet-audit-") as folder:
        write(pool, rows, Path(folder))
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench_audit", "--child", folder, which], check=True, capture_output=True, text=True
        )
    return {"rows": rows, **json.loads(done.stdout)}


def write(pool: list[str], rows: int, folder: Path) -> None:
    from data.rows import tables

    def batches() -> Iterator[object]:
        for start in range(0, rows, 5000):
            numbers = range(start, min(start + 5000, rows))
            yield tables.from_rows(
                (
                    {
                        "completion_id": f"c{i}", "prompt_id": f"p{i}", "sample": 0, "text": pool[i * 7919 % len(pool)],
                        "token_ids": None, "logprobs": None, "finish_reason": None, "seed": None, "engine": "recorded",
                    }
                    for i in numbers
                ),
                tables.COMPLETIONS,
            )  # fmt: skip

    tables.write_stream(batches(), tables.COMPLETIONS, folder / "completions.parquet")


def child(folder: Path, which: str) -> int:
    import pyarrow

    from data.recipe.settings import Hardware
    from tasks.bias import observe
    from tasks.run import parts
    from tasks.run.work import Work

    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    chosen = observe.everything()
    if which == "fast":
        fast = {n for n, f in parts.public("features").items() if f.__module__.rpartition(".")[2] in FAST} - SLOW
        chosen = {"features": {name: {} for name in sorted(fast)}, "prompt_features": {}}
    settings = observe.Settings(**chosen)
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    out = folder / "out"
    out.mkdir()
    began = time.process_time()
    observe.observe(Work("bench", settings, {"completions": folder}, 0, out, folder, Hardware()))
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "memory": peak, "idle": idle}))
    return 0


def exponent(results: list[dict[str, float]]) -> float:
    """Least-squares slope of log CPU seconds on log rows."""
    import numpy as np

    logs = np.log([[r["rows"], r["seconds"]] for r in results])
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


if __name__ == "__main__":
    sys.exit(main())
