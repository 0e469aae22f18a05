"""Verified completions per second on real outputs, against math-verify called directly: `./ratchet bench verify`.

Both judge the same rows in one run, turn by turn, on one core and on two (direct: a pool of processes that each call it), with
workers started before the clock. Verdicts are compared row by row.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tasks.score import verify_pool

SHARED = Path(__file__).parents[2] / "shared" / "data"
Item = tuple[str, str]


def outputs(shared: Path) -> dict[str, list[Item]]:
    """(gold, completion) of 400 GSM8K problems x 4 systems and of 100 MATH problems x 8 samples."""
    gsm8k = _records(shared / "gsm8k" / "example_model_solutions_first400.jsonl.gz")
    systems = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    maths = _records(shared / "verified_outputs" / "qwen_math_cot_100x8.jsonl.gz")
    return {
        "GSM8K": [(r["ground_truth"].rsplit("A:", 1)[1].strip(), r[s]["solution"]) for r in gsm8k for s in systems],
        "MATH": [(r["answer"], text) for r in maths for text in r["code"]],
    }


def _records(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


def direct(gold: str, text: str) -> float:
    """math-verify as its own page shows it: both sides parsed, then compared; a bare gold is LaTeX."""
    from math_verify import parse, verify

    latex = "$" in gold.replace("\\$", "") or "\\boxed" in gold
    return float(verify(parse(gold if latex else f"${gold}$") or parse(gold), parse(text)))


def _direct(item: Item) -> float:
    return direct(*item)


def _quiet() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    direct("1", "$1$")


def measure(items: Sequence[Item], cores: int, repeats: int) -> tuple[list[float], list[float], int]:
    """Rows per second of math-verify and of ours, turn by turn, and how many verdicts differ."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    verify_pool._close()
    verify_pool.verify_all([("1", "$1$")] * cores, 5.0, cores)
    with multiprocessing.get_context("fork").Pool(cores, _quiet) as pool:
        judges: tuple[Callable[[], list[float | None]], ...] = (
            lambda: pool.map(_direct, items, 16) if cores > 1 else [direct(*item) for item in items],
            lambda: [verdict[0] for verdict in verify_pool.verify_all(items, 5.0, cores)],
        )
        pool.map(_direct, items[:64], 1)
        rates: tuple[list[float], list[float]] = ([], [])
        differ = 0
        for _ in range(repeats):
            said = []
            for judge, rate in zip(judges, rates, strict=True):
                began = time.perf_counter()
                said.append(judge())
                rate.append(len(items) / (time.perf_counter() - began))
            differ = max(differ, sum(a != b for a, b in zip(*said, strict=True)))
    verify_pool._close()
    return *rates, differ


def main() -> None:
    parser = argparse.ArgumentParser(prog="./ratchet bench verify", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder with gsm8k/ and verified_outputs/")
    given = parser.parse_args()
    if not given.shared.exists():
        parser.error(f"needs real outputs in {given.shared} (see --shared)")
    _quiet()
    cores = sorted(os.sched_getaffinity(0))
    table = Table(
        "outputs", "rows", "cores", "math-verify /s", "ratchet /s", "ratio, median (least to most)", "verdicts that differ"
    )
    for name, items in outputs(given.shared).items():
        for count in (1, 2)[: len(cores)]:
            theirs, ours, differ = measure(items, count, given.repeats)
            os.sched_setaffinity(0, cores)
            ratios = sorted(o / t for o, t in zip(ours, theirs, strict=True))
            spread = f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
            rates = [f"{statistics.median(rate):,.0f}" for rate in (theirs, ours)]
            table.add_row(name, f"{len(items):,}", str(count), *rates, spread, str(differ))
    Console().print(table)


if __name__ == "__main__":
    main()
