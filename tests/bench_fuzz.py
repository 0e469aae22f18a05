"""Hostile inputs for everything that Ratchet reads: how many end in anything but a result or an error of ours.

    ./ratchet bench fuzz [--inputs 100000] [--seed 0] [--first 0] [--only TARGET,...] [--list]

The targets are in tests/fuzz.py. An input is made from "SEED/TARGET/NUMBER", so `--only TARGET --first NUMBER --inputs 1` makes
one again. Costly targets get a share of --inputs. A row per target:

    inputs    tried
    refused   ended in an error of ours
    bad       ended in another error, a hang (over 60 s), a message that cannot be printed, or an escape: a file written outside
              the folder that the input was given, or a command started. Each is printed with its seed

Exit code 1 where any is bad.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests import fuzz


def prepared(place: Path) -> Path:
    """A folder with a campaign of two rounds in it, `home`, as the target "campaign" changes it."""
    from data.store.campaign import Campaign
    from flows.round.improve import improve
    from flows.service import environment
    from tests.micro import micro

    for name, value in environment.DEFAULTS.items():
        os.environ.setdefault(name, value)
    environment.prepare(place / "home")
    Campaign.start(place / "home", "hurt", micro("tiny_dpo", "rounds=1", "probe.samples=2"))
    improve.fn("hurt", str(place / "home"))
    return place


def main() -> int:
    parser = argparse.ArgumentParser(prog="ratchet bench fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", default="", help="of the targets, by name")
    parser.add_argument("--list", action="store_true", help="print the names of the targets")
    o = parser.parse_args()
    if o.list:
        print("\n".join(fuzz.TARGETS))
        return 0
    sys.dont_write_bytecode = True
    place = Path(tempfile.mkdtemp(prefix="ratchet-fuzz-"))
    try:
        names = [name for name in fuzz.TARGETS if not o.only or name in o.only.split(",")]
        if "campaign" in names:
            prepared(place)
        print(f"{'target':<12}{'inputs':>9}{'refused':>9}{'bad':>6}{'s':>8}")
        return 1 if sum(tried(name, o.seed, o.first, o.inputs, place) for name in names) else 0
    finally:
        shutil.rmtree(place, ignore_errors=True)


def tried(name: str, seed: int, first: int, inputs: int, place: Path) -> int:
    """Try the inputs of one target, print its row, and return how many were bad."""
    from flows import terminal

    count, began, bad, refused = max(1, round(inputs * fuzz.TARGETS[name].weight)), time.monotonic(), 0, 0
    terminal.out.file = Path(os.devnull).open("w")  # noqa: SIM115
    for number in range(first, first + count):
        terminal.err.file = said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        if trouble := fuzz.trouble(name, f"{seed}/{name}/{number}", place):
            bad += 1
            print(f"BAD --only {name} --seed {seed} --first {number} --inputs 1: {trouble}", flush=True)
        said.flush()
        refused += bool(said.buffer.getbuffer().nbytes)
    print(f"{name:<12}{count:>9,}{refused:>9,}{bad:>6}{time.monotonic() - began:>8.0f}", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main())
