from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data.errors import CampaignError, HomeError
from data.recipe.recipe import load
from data.store import campaign as campaigns
from data.store.campaign import Campaign, Decision, Metric, Ref, Round, Verdict, check_name, free_bytes, names
from data.store.store import write_atomic

CHECKOUT = Path(__file__).parents[1]

RECIPE = load("tiny_raft")
REF = Ref(key="k", digest="d")
KINDS: list[Any] = [st.text(max_size=4), st.integers(), st.floats(allow_nan=False, allow_infinity=False)]
REFS = st.builds(Ref, key=KINDS[0], digest=KINDS[0])
NUMBER = st.none() | KINDS[2]
METRICS = st.builds(Metric, value=NUMBER, low=NUMBER, high=NUMBER, n=st.integers(0, 999), split=KINDS[0])
ROUNDS = st.builds(
    Round,
    round=st.integers(0, 999),
    head_before=REFS,
    checkpoint=REFS,
    head=REFS,
    champion=REFS,
    reference=st.none() | REFS,
    start_from=st.none() | REFS,
    artifacts=st.dictionaries(KINDS[0], REFS, max_size=2),
    metrics=st.dictionaries(KINDS[0], METRICS, max_size=2),
    facts=st.dictionaries(KINDS[0], st.one_of(st.none(), st.booleans(), *KINDS), max_size=2),
    verdict=st.builds(Verdict, decision=st.sampled_from(get_args(Decision)), reason=KINDS[0]),
    versions=st.dictionaries(KINDS[0], KINDS[0], max_size=2),
    seconds=KINDS[2],
)


def finished(number: int, decision: Decision = "promote") -> Round:
    verdict = Verdict(decision=decision, reason="a test")
    places = {"head_before": REF, "checkpoint": REF, "head": REF, "champion": REF}
    return Round(round=number, **places, artifacts={}, metrics={}, facts={}, verdict=verdict, versions={}, seconds=1.0)


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return Campaign.start(tmp_path, "first", RECIPE)


def ask(campaign: Campaign, number: int = 1) -> None:
    write_atomic(campaign.pending_path, json.dumps({"round": number, "reason": "not clear"}))


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "9lives", "x" * 64])
def test_good_names(name: str) -> None:
    # these names are valid folder names on every file system
    check_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/etc/x", "a\\b", "x" * 65, "-x", ".hidden", "_x", "a b", "a\n", "\na", "ü", "a\0b", "~"],
)
def test_names_that_could_leave_the_home_are_refused(tmp_path: Path, name: str) -> None:
    # no name reaches outside <home>/campaigns, neither when starting nor when opening
    refused = r"expected letters, digits, '.', '_' or '-', at most 64"
    with pytest.raises(CampaignError, match=refused):
        Campaign.start(tmp_path, name, RECIPE)
    with pytest.raises(CampaignError, match=refused):
        Campaign.open(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


@given(st.text(max_size=70))
def test_an_accepted_name_is_one_folder(name: str) -> None:
    # whatever is accepted is a single path component that is not a parent
    try:
        check_name(name)
    except CampaignError:
        return
    assert Path(name).parts == (name,)
    assert name not in (".", "..")
    assert len(name.encode()) <= 64


# -- opening ----------------------------------------------------------------------------------------------------------


def test_the_same_recipe_reopens_a_campaign(tmp_path: Path, campaign: Campaign) -> None:
    # the same command resumes; other hardware is the same campaign and is used, also by what opens it by name, as flows do
    campaign.record(finished(0))
    other = load("tiny_raft", ["hardware.workers=7"])
    again = Campaign.start(tmp_path, "first", other)
    assert again.rounds() == [finished(0)]
    assert again.recipe.hardware.workers == 7
    assert Campaign.open(tmp_path, "first").recipe == other
    assert names(tmp_path) == ["first"]


def test_another_recipe_under_the_same_name_is_refused(tmp_path: Path, campaign: Campaign) -> None:
    # rounds of two recipes never mix; what differs is shown
    with pytest.raises(CampaignError) as caught:
        Campaign.start(tmp_path, "first", load("tiny_raft", ["train.steps=81", "rounds=4"]))
    assert str(caught.value).splitlines() == [
        "campaign 'first' exists with another recipe; pass another --name, or undo the change to resume it:",
        "  rounds: 3 -> 4",
        "  train.steps: 80 -> 81",
    ]
    assert Campaign.open(tmp_path, "first").recipe == RECIPE


def test_an_unknown_name_suggests_one(tmp_path: Path, campaign: Campaign) -> None:
    # a slip costs a second; in an empty home there is nothing to suggest
    with pytest.raises(CampaignError, match=r"no campaign 'frist' in .*: expected one of first \(did you mean 'first'\?\)"):
        Campaign.open(tmp_path, "frist")
    with pytest.raises(CampaignError, match=r"expected one of \(none yet\)"):
        Campaign.open(tmp_path / "elsewhere", "first")


def test_a_home_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    # a file in place of the folder campaigns/ is reported, with its path
    (tmp_path / "campaigns").touch()
    with pytest.raises(HomeError, match=r"expected a writable home, cannot write .*pass another --home"):
        Campaign.start(tmp_path, "first", RECIPE)


def test_room_is_counted_where_the_home_will_be(tmp_path: Path) -> None:
    # free space is read at the nearest parent that exists when the home does not exist yet
    assert free_bytes(tmp_path / "not" / "yet") > 0


# -- running ----------------------------------------------------------------------------------------------------------

RUN = """
import sys, time
from pathlib import Path
from data.store.campaign import Campaign
with Campaign.open(Path(sys.argv[1]), "first").running():
    print("runs", flush=True)
    time.sleep(60)
"""


def test_only_one_process_runs_a_campaign(tmp_path: Path, campaign: Campaign) -> None:
    # a second one is refused at once; when the first is SIGKILLed the campaign is free
    with subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], cwd=CHECKOUT, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"runs\n"
        with pytest.raises(CampaignError, match="'first' is already running in another process"), campaign.running():
            pass
        os.kill(other.pid, signal.SIGKILL)
    with campaign.running():
        pass


# -- rounds -----------------------------------------------------------------------------------------------------------


@given(ROUNDS)
def test_a_round_comes_back_from_its_json(record: Round) -> None:
    # a Round read back from JSON is equal to the last digit, and null is not 0.0
    assert Round.model_validate_json(record.model_dump_json(indent=1)) == record


def test_a_round_cannot_be_changed_and_knows_its_fields() -> None:
    # a record is evidence: frozen, complete, nothing unknown in it
    record = finished(1)
    with pytest.raises(ValidationError, match="frozen"):
        record.round = 2  # type: ignore[misc]  # the mistake that is to be refused
    with pytest.raises(ValidationError, match="extra"):
        Round.model_validate(record.model_dump() | {"more": 1})
    with pytest.raises(ValidationError, match="missing"):
        Round.model_validate({k: v for k, v in record.model_dump().items() if k != "champion"})


def test_rounds_come_back_in_order(campaign: Campaign) -> None:
    # by number, also past 999; a half-written file of a killed process is none
    assert campaign.record(finished(1000)) == finished(1000)
    for number in range(1000):
        (campaign.folder / "rounds" / f"{number:03d}.json").write_text(finished(number).model_dump_json())
    (campaign.folder / "rounds" / ".004.json.77.tmp").write_text("{")
    assert [record.round for record in campaign.rounds()] == list(range(1001))


# -- states -----------------------------------------------------------------------------------------------------------


def test_the_states_of_a_campaign(campaign: Campaign) -> None:
    # new, unfinished, waiting, unfinished again once answered, done: each state follows from the files on disk alone
    def state() -> str:
        return campaign.state

    assert state() == "new"
    campaign.record(finished(0, "start"))
    assert state() == "unfinished"
    ask(campaign)
    assert state() == "waiting"
    campaign.decide("hold")
    assert campaign.pending() == {"round": 1, "reason": "not clear", "decision": "hold"}
    assert state() == "unfinished"
    campaign.record(finished(1))
    assert campaign.pending() is None
    assert state() == "unfinished"
    write_atomic(campaign.final_path, json.dumps({"base": {"accuracy": {"value": 0.5, "n": 9}}, "head": {}}))
    assert state() == "done"
    assert campaign.final() == {"base": {"accuracy": Metric(value=0.5, n=9)}, "head": {}}
    assert Campaign.open(campaign.home, "first").state == "done"


def test_a_stopped_campaign_stays_stopped(campaign: Campaign) -> None:
    # the gate's stop is the end, also after the test split was read
    campaign.record(finished(0, "start"))
    campaign.record(finished(1, "stop"))
    assert campaign.state == "stopped"
    write_atomic(campaign.final_path, "{}")
    assert campaign.state == "stopped"


@pytest.mark.parametrize("decision", ["promote", "hold", "roll_back", "stop"])
def test_a_question_takes_the_four_answers(campaign: Campaign, decision: str) -> None:
    # if several answers are given before the run goes on, the last one counts
    ask(campaign)
    campaign.decide("hold")
    campaign.decide(decision)
    assert (campaign.pending() or {})["decision"] == decision


@pytest.mark.parametrize("decision", ["ask", "start", "rollback", ""])
def test_other_answers_are_refused(campaign: Campaign, decision: str) -> None:
    # any other answer is refused, and the question stays open
    ask(campaign)
    with pytest.raises(CampaignError, match=f"--decide {decision}: expected promote, hold, roll_back or stop"):
        campaign.decide(decision)
    assert campaign.state == "waiting"


def test_an_answer_without_a_question_is_refused(campaign: Campaign) -> None:
    # an answer is refused while the gate has asked no question
    with pytest.raises(CampaignError, match="'first' waits for no decision; leave --decide out"):
        campaign.decide("promote")


def test_delivery_is_of_what_is_there_now(campaign: Campaign) -> None:
    # a receipt is for the rounds it was given for; each new round, and the final reading, is undelivered again
    assert not campaign.delivered
    for act in (
        lambda: campaign.record(finished(0, "start")),
        lambda: campaign.record(finished(1)),
        lambda: write_atomic(campaign.final_path, "{}"),
    ):
        act()
        assert not campaign.delivered
        campaign.mark_delivered()
        assert Campaign.open(campaign.home, "first").delivered


def test_names_lists_only_campaigns(tmp_path: Path, campaign: Campaign) -> None:
    # a folder without a recipe is none
    (tmp_path / "campaigns" / "stray").mkdir()
    Campaign.start(tmp_path, "another", RECIPE)
    assert campaigns.names(tmp_path) == ["another", "first"]
    assert campaigns.names(tmp_path / "nowhere") == []
