"""The slow tier's question: does the model measurably get better, and better than its control?"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench_seeds import run


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_raft_and_dpo_beat_their_controls(home: Path) -> None:
    # Claim: on the tiny world both arms gain on the test split, and more than the same training on seed data alone.
    change = {}
    for campaign in run(home, seed=21):
        final = campaign.final()
        assert final is not None
        base, last = final["base"]["accuracy"].value, final["last"]["accuracy"].value
        assert base is not None
        assert last is not None
        change[campaign.name.removeprefix("demo-").removesuffix("-21")] = 100 * (last - base)
        low = final["last"]["accuracy_vs_base"].low
        if "control" not in campaign.name:
            assert low is not None
            assert low > 0
    assert change["raft"] > change["raft-control"] + 5, change
    assert change["dpo"] > change["dpo-control"] + 3, change
