"""Kill a small campaign with SIGKILL at random instants, resume it, and compare with one that was never interrupted.

    ./ratchet bench kill [--kills 30] [--seed 0] [--method raft|dpo|both]

Prints one row per campaign: where the kills fell, whether all digests are equal, how many finished artifacts were made again
(must be 0), how many sealed shards and saves were lost (must be 0), what stayed locked or half-written (must be nothing), and
whether MLflow holds every metric once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from data.store.campaign import Campaign
from data.store.locks import LockHeld, locked
from data.store.store import Store
from tests.micro import SETS

ROOT = Path(__file__).parent.parent


@dataclass
class Outcome:
    method: str
    killed_in: list[str] = field(default_factory=list)
    equal: bool = False
    remade: int = 0
    lost: int = 0
    left: list[str] = field(default_factory=list)
    doubled: int = 0

    @property
    def good(self) -> bool:
        return self.equal and not (self.remade or self.lost or self.left or self.doubled)


def start(home: Path, method: str) -> subprocess.Popen[str]:
    sets = [part for item in (*SETS, "hardware.prefect=false") for part in ("--set", item)]
    command = [sys.executable, "-m", "flows.cli", "run", f"tiny_{method}", "--name", "k", "--home", str(home), *sets]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment, start_new_session=True, cwd=home
    )


def finish(home: Path, method: str) -> float:
    """Run to the end; the seconds between the first finished stage and the end."""
    first, tail = 0.0, ""
    with start(home, method) as process:
        assert process.stderr is not None
        for line in process.stderr:
            first = first or (time.time() if "round 0" in line else 0.0)
            tail = (tail + line)[-2000:]
    if process.returncode != 0:
        raise RuntimeError(f"the campaign failed:\n{tail}")
    return time.time() - (first or time.time())


def kill_once(home: Path, method: str, after: float) -> str | None:
    """SIGKILL the process group `after` seconds from its first finished stage; its last line, None if it had ended."""
    with start(home, method) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "round" in line:
                break
        time.sleep(after)
        if process.poll() is not None:
            return None
        os.killpg(process.pid, signal.SIGKILL)
        rest = process.stderr.read().strip().splitlines()
    return rest[-1].strip() if rest else "first stage"


def sealed(store: Path) -> set[str]:
    """Shards and trainer saves that were whole when the kill came."""
    scratch = store / "partial"
    shards = {str(p.relative_to(scratch).with_suffix(".parquet")) for p in scratch.glob("*/scratch/*.sha256")}
    return shards | {str(p.parent.relative_to(scratch)) for p in scratch.glob("*/scratch/checkpoint-*/ratchet-manifest.json")}


def found_again(store: Store) -> set[str]:
    """What the attempts that finished had found in their scratch."""
    found = set()
    for key in store.keys():
        log = json.loads((store.folder(key) / "log.json").read_text())
        found |= {f"{key}/scratch/{name}" for name in log["found"]}
    return found


def digests(home: Path) -> list[dict[str, tuple[str, str]]]:
    rounds = Campaign.open(home, "k").rounds()
    return [{label: (ref.key, ref.digest) for label, ref in r.artifacts.items()} for r in rounds]


def left_over(store: Path) -> list[str]:
    left = [f"partial {p.name[:12]}" for p in (store / "partial").iterdir()]
    for lock in (store / "locks").iterdir():
        try:
            with locked(lock, wait=False):
                pass
        except LockHeld:
            left.append(f"locked {lock.name[:12]}")
    return left


def doubled_metrics(home: Path) -> int:
    """Metric values that MLflow holds twice for a step, plus rounds it lacks."""
    import sqlite3

    with sqlite3.connect(home / "mlflow.db") as database:
        rows = database.execute("select count(*) from metrics group by run_uuid, key, step having count(*) > 1").fetchall()
    return len(rows)


def one_campaign(
    method: str, kills: int, length: float, expected: list[dict[str, tuple[str, str]]], draw: random.Random
) -> Outcome:
    outcome = Outcome(method)
    home = Path(tempfile.mkdtemp(prefix="ratchet-kill-"))
    try:
        promised: set[str] = set()
        before: dict[str, int] = {}
        while len(outcome.killed_in) < kills:
            at = kill_once(home, method, draw.uniform(0, length))
            if at is None and outcome.killed_in:
                break
            if at is None:  # it ended before the first kill: the machine is quicker now, so try again, sooner
                shutil.rmtree(home)
                home.mkdir()
                length /= 2
                continue
            outcome.killed_in.append(at)
            store = Store(home / "store")
            outcome.remade += sum(stamp(store, key) != time_ for key, time_ in before.items())
            before = {key: stamp(store, key) for key in store.keys()}
            promised |= sealed(store.root)
        finish(home, method)
        store = Store(home / "store")
        outcome.remade += sum(stamp(store, key) != time_ for key, time_ in before.items())
        newest = {p for p in promised if "checkpoint-" not in p} | newest_saves(promised)
        outcome.lost = len(newest - found_again(store) - superseded(store, promised))
        outcome.equal = digests(home) == expected and not store.verify()
        outcome.left = left_over(store.root)
        outcome.doubled = doubled_metrics(home)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return outcome


def stamp(store: Store, key: str) -> int:
    path = store.folder(key) / "manifest.json"
    return path.stat().st_mtime_ns if path.exists() else 0


def newest_saves(promised: set[str]) -> set[str]:
    """Of each training's saves only the newest must be found again; older ones are rotated away."""
    newest: dict[str, int] = {}
    for name in promised:
        if "checkpoint-" in name:
            training, step = name.rsplit("-", 1)
            newest[training] = max(newest.get(training, 0), int(step))
    return {f"{training}-{step}" for training, step in newest.items()}


def superseded(store: Store, promised: set[str]) -> set[str]:
    """Promises of attempts that were themselves killed again: a later attempt found at least as much."""
    return {name for name in promised if not (store.folder(name.split("/")[0]) / "log.json").exists()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="ratchet bench kill", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--each", type=int, default=3, help="kills per campaign")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", choices=("raft", "dpo", "both"), default="both")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    methods = ["raft", "dpo"] if options.method == "both" else [options.method]
    expected, length = {}, {}
    for method in methods:
        home = Path(tempfile.mkdtemp(prefix="ratchet-kill-"))
        length[method] = finish(home, method)
        expected[method] = digests(home)
        shutil.rmtree(home)
        print(
            f"uninterrupted {method}: {length[method]:.1f} s from its first stage, {sum(map(len, expected[method]))} artifacts"
        )
    outcomes: list[Outcome] = []
    while (done := sum(len(o.killed_in) for o in outcomes)) < options.kills:
        method = methods[len(outcomes) % len(methods)]
        kills = min(options.each, options.kills - done)
        outcome = one_campaign(method, kills, length[method], expected[method], draw)
        outcomes.append(outcome)
        print(
            f"{'ok ' if outcome.good else 'BAD'} {method}: equal digests {outcome.equal}, artifacts made again "
            f"{outcome.remade}, sealed shards or saves lost {outcome.lost}, left over {outcome.left or 'nothing'}, "
            f"metrics doubled {outcome.doubled}; killed after: {' | '.join(outcome.killed_in)}",
            flush=True,
        )
    good = sum(len(o.killed_in) for o in outcomes if o.good)
    total = sum(len(o.killed_in) for o in outcomes)
    print(f"{total} kills, {good} survived with equal digests and nothing lost, locked or doubled")
    return 0 if all(o.good for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
