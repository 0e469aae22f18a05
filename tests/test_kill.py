"""SIGKILL in the middle of a campaign, for real; `./ratchet bench kill` does it thirty times."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from data.store.campaign import Campaign
from data.store.store import Store
from tests import bench_kill


def survives(method: str, home: Path, kills: int, seed: int) -> None:
    home.mkdir()
    length = bench_kill.finish(home, method)
    expected = bench_kill.digests(home)
    outcome = bench_kill.one_campaign(method, kills, length, expected, random.Random(seed))
    assert len(outcome.killed_in) >= 1
    assert outcome.good, outcome


@pytest.mark.minutes
def test_killed_campaign_ends_with_equal_digests(home: Path) -> None:
    # Claim: a campaign killed twice at random instants resumes to equal digests; nothing finished is redone, doubled or locked.
    survives("raft", home, kills=2, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", ["raft", "dpo"])
def test_killed_often(method: str, home: Path) -> None:
    # Claim: as above, five kills in one campaign, for both arms.
    survives(method, home, kills=5, seed=2)


@pytest.mark.minutes
def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(home: Path) -> None:
    # Claim: Ctrl-C ends at once with exit code 130 and a plain message, leaves no lock, and loses nothing that was finished.
    home.mkdir()
    with bench_kill.start(home, "raft") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "evaluate/greedy " in line:
                break
        os.kill(process.pid, signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=30) == 130
    assert "Interrupted" in rest
    assert "Traceback" not in rest
    done = set(Store(home / "store").keys())
    assert len(done) >= 4
    bench_kill.finish(home, "raft")
    assert Campaign.open(home, "k").state == "done"
    assert done <= set(Store(home / "store").keys())
    assert bench_kill.left_over(home / "store") == []
