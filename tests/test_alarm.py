"""One list of alarms in every Round, whoever raised them: `show`, the report, the gate and MLflow read that list."""

from __future__ import annotations

import io
from pathlib import Path
from typing import get_args

from rich.console import Console

from data.alarm import LEVELS, Alarm, Level, Source, by_gravity, gravest
from data.recipe.recipe import load
from data.recipe.settings import Gate
from data.store.campaign import Campaign, Metric, Ref, Round, Verdict
from flows.commands.report import rounds_table
from flows.round.reporter import alarm_lines
from registry.projection import note, round_tags
from tasks.gate.gate import DIFFERENCE, SPREAD, P, decide
from tasks.gate.spending import Error

START = Ref(key="k", digest="d" * 64)
STOP = Alarm("STOP", "training", "finish rate", "completions stopped ending")
WATCH = Alarm("watch", "ledger", "tone", "moved")
SUITE = Alarm("ALARM", "suite", "suite far", "accuracy fell")


def finished(*alarms: Alarm, number: int = 1) -> Round:
    return Round(
        round=number, head_before=START, checkpoint=START, head=START, champion=START, artifacts={}, metrics={}, facts={},
        alarms=alarms, verdict=Verdict(decision="hold", reason="by hand"), versions={}, seconds=1.0,
    )  # fmt: skip


def test_levels_are_ordered() -> None:
    # the gravest of nothing is nothing, and sorting keeps the order of equals
    assert LEVELS[1:] == get_args(Level)
    assert (gravest([]), gravest([WATCH, STOP, SUITE])) == ("", "STOP")
    other = Alarm("watch", "judge", "judge", "guesses")
    assert by_gravity([WATCH, other, STOP, SUITE]) == [STOP, SUITE, WATCH, other]
    assert set(get_args(Source)) == {"ledger", "training", "judge", "suite"}


def test_a_round_keeps_its_alarms_as_they_are() -> None:
    # level, source, name and sentence come back from the record; an older record has none
    record = finished(STOP, WATCH)
    assert Round.model_validate_json(record.model_dump_json()).alarms == (STOP, WATCH)
    assert Round.model_validate({k: v for k, v in record.model_dump().items() if k != "alarms"}).alarms == ()


def test_a_stop_of_training_reaches_everybody(tmp_path: Path) -> None:
    # Claim: a STOP that only training knows is shown, is in the table and in MLflow, and the gate rolls back.
    record = finished(STOP, SUITE, WATCH)
    assert [line for line in alarm_lines(record) if "finish rate" in line]
    assert [line for line in alarm_lines(record) if "suite far" in line]
    campaign = Campaign.start(tmp_path, "shown", load("tiny_raft"))
    campaign.record(finished(number=0))
    campaign.record(record)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(rounds_table([campaign]))
    assert "STOP" in console.export_text()
    assert all(str(alarm) in note(record) for alarm in (STOP, SUITE, WATCH))
    assert round_tags(campaign, record, "id", "parent")["alarm.level"] == "STOP"
    assert round_tags(campaign, finished(), "id", "parent")["alarm.level"] == "none"
    better = {
        DIFFERENCE: Metric(value=0.1, low=0.05, high=0.15, n=200),
        P: Metric(value=0.0, n=200),
        SPREAD: Metric(value=0.3, n=200),
    }
    verdict = decide(Gate(), better, Error(promote=0.0125, roll_back=0.00625), None, record.alarms)
    assert verdict.decision == "roll_back"
    assert "STOP finish rate" in verdict.reason
