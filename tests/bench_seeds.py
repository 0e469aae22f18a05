"""Does the loop really learn? RAFT, DPO and a control beside each, over seeds, read once on the test split.

    ./ratchet bench seeds [--seeds 21,22,23,24,25] [--home DIR]

Prints every seed, also the bad ones, with the out-of-distribution split beside it, and the checks the project promises.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from data.statistics import in_brackets, t_interval
from data.store.campaign import Campaign


def main() -> int:
    parser = argparse.ArgumentParser(prog="ratchet bench seeds", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", default="21,22,23,24,25")
    parser.add_argument("--home", type=Path)
    options = parser.parse_args()
    home = options.home or Path(tempfile.mkdtemp(prefix="ratchet-seeds-"))
    table: dict[str, list[float]] = {}
    print(f"{'seed':<6}{'campaign':<14}{'round 0':>9}{'last':>9}{'change':>9}{'out-of-distribution':>22}   verdicts")
    for seed in (int(s) for s in options.seeds.split(",")):
        for campaign in run(home, seed):
            arm = campaign.name.removeprefix("demo-").removesuffix(f"-{seed}")
            final = campaign.final()
            assert final is not None
            base, last = final["base"]["accuracy"].value, final["last"]["accuracy"].value
            assert base is not None
            assert last is not None
            table.setdefault(f"{arm} base", []).append(100 * base)
            table.setdefault(arm, []).append(100 * (last - base))
            ood = [final[which]["ood/accuracy"].value or 0.0 for which in ("base", "last")]
            verdicts = " ".join(r.verdict.decision for r in campaign.rounds()[1:])
            print(
                f"{seed:<6}{arm:<14}{100 * base:>9.1f}{100 * last:>9.1f}{100 * (last - base):>+9.1f}"
                f"{100 * ood[0]:>13.1f} ->{100 * ood[1]:>6.1f}   {verdicts}",
                flush=True,
            )
    return report(table)


def run(home: Path, seed: int) -> list[Campaign]:
    from flows.service import environment

    environment.prepare(home)
    from flows.commands.demo import campaigns
    from flows.round.improve import improve

    started = campaigns(home, seed, ("hardware.prefect=false",))
    for campaign in started:
        if campaign.state != "done":
            improve.fn(campaign.name, str(home))
    return started


def report(table: dict[str, list[float]]) -> int:
    """Means over seeds with a t interval, and each promise with what was found."""
    for arm, values in table.items():
        v = np.array(values)
        what = "round 0 accuracy" if arm.endswith("base") else "change over the rounds"
        print(f"{arm:<18}{what:<24}{v.mean():>+8.1f}  95% interval over seeds {in_brackets(t_interval(v))}")
    raft, control = np.array(table["raft"]), np.array(table["raft-control"])
    promises = {
        "base between 30 and 60 on every seed": all(30 <= b <= 60 for b in table["raft base"]),
        "controls move by at most 5 points on average": all(
            abs(np.mean(table[c])) <= 5 for c in ("raft-control", "dpo-control")
        ),
        "RAFT gains more than 15 on average": bool(raft.mean() > 15),
        "RAFT beats its control by more than 15 on average": bool((raft - control).mean() > 15),
        "RAFT gains more than 5 on each seed": bool((raft > 5).all()),
        "DPO gains more than 8 on average": bool(np.mean(table["dpo"]) > 8),
    }
    for promise, kept in promises.items():
        print(f"{'kept  ' if kept else 'BROKEN'} {promise}")
    return 0 if all(promises.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
