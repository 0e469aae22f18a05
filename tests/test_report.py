"""The tables that commands print: whole numbers also in a narrow terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from data.recipe.recipe import load
from data.store.campaign import Campaign, Metric, Ref, Round, Verdict
from flows.commands.report import rounds_table

START = Ref(key="k", digest="d")


@pytest.mark.parametrize(("metric", "shown"), [("length_gap", ["-1.6"]), ("length_gap_characters", ["-1.6", "chars"])])
def test_a_narrow_terminal_cuts_no_number(metric: str, shown: list[str], tmp_path: Path) -> None:
    # at 80 columns a long campaign name wraps; every number, level and verdict of the round is whole
    campaign = Campaign.start(tmp_path, "a-campaign-with-a-long-name", load("tiny_raft"))
    metrics = {
        "accuracy": Metric(value=0.608, low=0.577, high=0.638, n=1000),
        "pass@4": Metric(value=0.607),
        "mean_tokens": Metric(value=33.5),
        metric: Metric(value=-1.6),
    }
    checkpoints = dict.fromkeys(("head_before", "checkpoint", "head", "champion"), START)
    rest = {"artifacts": {}, "metrics": metrics, "facts": {}, "versions": {}, "seconds": 1.0}
    verdict = Verdict(decision="roll_back", reason="by hand")
    campaign.record(Round.model_validate({"round": 0, "verdict": verdict, **checkpoints, **rest}))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rounds_table([campaign]))
    text = console.export_text()
    assert "…" not in text
    row = next(line for line in text.splitlines() if "roll_back" in line)
    assert row.split() == ["0", "60.8", "[57.7,", "63.8]", "60.7", "33.5", *shown, "none", "roll_back"]
