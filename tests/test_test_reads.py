"""Who read which test split: every checkpoint that counts is measured, and the home says how often a split was read."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import StageFailed
from data.recipe.recipe import forked
from data.recipe.settings import Prompts
from data.rows import prompts
from data.store import test_reads as ledger
from data.store.campaign import Campaign, checkpoints_at_end
from flows.round.stages import Stages
from flows.service import environment
from tests.micro import SETS, micro

Call = Callable[..., int]
QUICK = ("evaluate.samples=0", "train.steps=2", "train.save_every=2")
# Round 1 is promoted whatever it is, and round 2 hardly trains: so the champion is neither base nor head nor last.
PROMOTED_THEN_HELD = (
    'at=[{round=1,set={"gate.rule"="always_promote"}},{round=2,set={"gate.rule"="paired_interval","train.learning_rate"=1e-7}}]'
)


def finish(home: Path, name: str) -> None:
    from flows.round.improve import improve

    improve.fn(name, str(home))


@pytest.fixture(scope="module")
def read_once(known_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one finished campaign, `first`. Tests copy it."""
    home = tmp_path_factory.mktemp("reads")
    environment.prepare(home)
    shutil.copytree(known_store, home / "store")
    Campaign.start(home, "first", micro("tiny_raft", *QUICK, PROMOTED_THEN_HELD))
    finish(home, "first")
    return home


@pytest.fixture
def own(read_once: Path, tmp_path: Path) -> Path:
    shutil.copytree(read_once, tmp_path / "home")
    return tmp_path / "home"


def told(home: Path, name: str) -> str:
    return ledger.in_words(Campaign.open(home, name))["test"]


def of_test_split(campaign: Campaign, stage: str) -> int:
    """How many artifacts of a stage on the test split the campaign used."""
    jobs = [campaign.store.manifest(key)["job"] for key in campaign.used()]
    return sum(job["stage"] == stage and job["settings"].get("split") == "test" for job in jobs)


# -- what is measured -----------------------------------------------------------------------------------------------------
def test_the_champion_is_measured_and_each_checkpoint_once(read_once: Path) -> None:
    # Claim: base, champion, head and last have test numbers, also where the champion is none of the others; of the four
    # roles three are different checkpoints here, and three are sampled.
    campaign = Campaign.open(read_once, "first")
    roles, final = checkpoints_at_end(campaign.rounds()), campaign.final() or {}
    assert [r.verdict.decision for r in campaign.rounds()] == ["start", "promote", "hold"]
    assert roles["champion"].digest not in {roles[which].digest for which in ("base", "head", "last")}
    assert {which: final[which]["accuracy"].n for which in roles} == dict.fromkeys(("base", "champion", "head", "last"), 20)
    assert "accuracy_vs_base" in final["champion"]
    assert "accuracy_vs_base" not in final["base"]
    assert of_test_split(campaign, "generate") == 3


# -- how often it was read ------------------------------------------------------------------------------------------------
def test_a_fork_and_a_second_campaign_are_reads_and_a_resume_is_none(own: Path) -> None:
    # Claim: read once by its campaign; a resume, also one that has to measure again, adds nothing; a fork that goes on, and a
    # campaign that finds every answer in the store, are further reads, with what they measured anew.
    first = Campaign.open(own, "first")
    assert told(own, "first").endswith(", 20 prompts: read once on this home, 3 checkpoints, by first (" + today(first) + ")")
    text = first.final_path.read_text()
    first.final_path.unlink()
    finish(own, "first")
    assert first.final_path.read_text() == text
    assert "read once" in told(own, "first")

    first.fork(2, "longer", forked(first.recipe, 2, ["rounds=3"]))
    assert "read once" in told(own, "longer")  # by another campaign, as far as it is known now
    finish(own, "longer")
    stored = first.store.keys()
    Campaign.start(own, "again", first.recipe)
    finish(own, "again")
    assert first.store.keys() == stored
    dates = {name: f"{name} ({today(first)})" for name in ("again", "first", "longer")}
    assert f"read 3 times on this home, 4 checkpoints, by {dates['first']}, " in told(own, "first")
    assert dates["again"] in told(own, "longer")
    shutil.rmtree(own / "campaigns" / "longer")
    assert "read 3 times" in told(own, "first")  # a deleted campaign has read it nevertheless


def today(campaign: Campaign) -> str:
    """The date of the campaign's own read."""
    found = ledger.reads(campaign.home, ledger.prompts_of(campaign, "test"))
    return next(read.when for read in found if read.campaign == campaign.name)[:10]


def test_a_split_is_known_by_its_prompts_not_by_its_file(tmp_path: Path) -> None:
    # Claim: the same prompts in another file, in another order and under another name are the same split.
    rows = [json.dumps({"prompt": f"{i}+{i}=", "answer": str(2 * i)}) for i in range(60)]
    splits = []
    for name, lines in (("a.jsonl", rows), ("renamed.jsonl", rows[::-1])):
        (tmp_path / name).write_text("\n".join(lines))
        settings = Prompts(source="file", path=str(tmp_path / name), seed=0, held_out=10, test=10, probe=0, ood=0, rounds=0)
        made, _ = prompts.splits(settings, tmp_path / name, 0)
        splits.append({row["prompt_id"] for row in made["test"]})
    assert ledger.digest(splits[0]) == ledger.digest(splits[1])
    assert ledger.digest(splits[0]) != ledger.digest([*splits[0]][1:])


def test_a_read_of_a_part_of_the_prompts_is_told(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: one prompt more or less does not hide earlier reads: another campaign's split with 15 of the 20 prompts counts.
    shutil.copytree(own / "campaigns" / "first", own / "campaigns" / "fewer")
    ids = ledger.prompts_of(Campaign.open(own, "first"), "test")
    fewer = frozenset(sorted(ids)[:15])
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "prompts_of", lambda campaign, split: fewer)
        ledger.note(Campaign.open(own, "fewer"), "test")
        in_part = told(own, "fewer")
    assert "read 2 times" in told(own, "first")
    assert ", 15 of the 20 prompts)" in told(own, "first")
    assert "15 prompts: read 2 times" in in_part
    assert "of the 15 prompts" not in in_part  # `first` read all of these


# -- kills, damage and campaigns at the same time -------------------------------------------------------------------------
def test_a_kill_while_test_is_read_hides_no_read_and_repeats_none(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: killed after the first checkpoint answered, the read counts already; the resume adds none and keeps its time.
    first = Campaign.open(own, "first")
    longer = first.fork(1, "longer", forked(first.recipe, 1, ["train.learning_rate=1e-4"]))
    evaluate, calls = Stages.evaluate, []

    def killed(self: Stages, prompts: Any, checkpoint: Any, against: Any, split: str = "held_out", **more: Any) -> Any:
        calls.extend([split] if split == "test" else [])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(self, prompts, checkpoint, against, split, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Stages, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            finish(own, "longer")
    assert longer.final() is None
    assert "read 2 times" in told(own, "first")
    noted = {path: path.read_text() for path in (own / "test_reads").iterdir()}
    finish(own, "longer")
    assert longer.final() is not None
    assert "read 2 times" in told(own, "first")
    assert {path: path.read_text() for path in noted} == noted


def note(place: tuple[Path, str]) -> None:
    for _ in range(3):
        ledger.note(Campaign.open(*place), "test")


def test_campaigns_that_end_at_the_same_time_all_count(own: Path) -> None:
    # Claim: six processes that note their reads at once, each three times, leave six reads more.
    names = [f"copy.{number}" for number in range(6)]
    for name in names:
        shutil.copytree(own / "campaigns" / "first", own / "campaigns" / name)
    with multiprocessing.get_context("fork").Pool(6) as pool:
        pool.map(note, [(own, name) for name in names], chunksize=1)
    first = Campaign.open(own, "first")
    found = ledger.reads(own, ledger.prompts_of(first, "test"))
    assert sorted(read.campaign for read in found) == [*names, "first"]
    assert ledger.readers(first) == set(names)


def test_a_damaged_file_still_counts(own: Path) -> None:
    # Claim: a read whose file is torn is told with its campaign, and breaks nothing: its name is enough.
    shutil.copytree(own / "campaigns" / "first", own / "campaigns" / "a.b")
    note((own, "a.b"))
    damaged = next(path for path in (own / "test_reads").iterdir() if ".a.b." in path.name)
    damaged.write_text(damaged.read_text()[:40])
    assert "read 2 times" in told(own, "first")
    assert "a.b (20" in told(own, "first")


# -- where it is told -----------------------------------------------------------------------------------------------------
@pytest.mark.minutes
def test_show_and_mlflow_tell_it_also_of_a_campaign_that_ended_before(
    own: Path, ratchet: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    # Claim: MLflow's registered champion has its test number; when a second campaign reads the split, the run of the first
    # says so too, and `show` prints the same words.
    (own / "mlflow.db").unlink(missing_ok=True)  # made for the home's old place
    (own / "campaigns" / "first" / "mlflow.id").unlink(missing_ok=True)
    from registry.client import experiment, known_id, mlflow_client, runs_of
    from registry.sync import sync_campaign

    first = Campaign.open(own, "first")
    sync_campaign(first)
    with mlflow_client(own) as client:
        place = experiment(client, own)
        parent, _ = runs_of(client, place, known_id(first))
        assert parent is not None
        assert parent.data.tags["reads.test"] == told(own, "first")
        assert "read once" in parent.data.tags["reads.test"]
        assert "final_champion_accuracy" in parent.data.metrics
        champion = client.get_model_version_by_alias("ratchet-first", "champion")
        accuracy = (first.final() or {})["champion"]["accuracy"]
        assert champion.tags["test_accuracy"].startswith(f"{100 * (accuracy.value or 0):.1f}% [")
        assert champion.tags["test_accuracy"].endswith(", n = 20")

        Campaign.start(own, "again", first.recipe)
        finish(own, "again")
        parent, _ = runs_of(client, place, known_id(first))
        assert parent is not None
        assert "read 2 times" in parent.data.tags["reads.test"]
    assert ratchet("show", "first", "--home", own) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert told(own, "first") in shown
    assert "champion" in shown
    assert "read 2 times" in json.dumps(ledger.in_words(Campaign.open(own, "again")))


# -- sweeps ---------------------------------------------------------------------------------------------------------------
def swept(home: Path, over: str) -> list[str]:
    sets = [part for item in (*SETS, *QUICK, "hardware.prefect=false", "rounds=1") for part in ("--set", item)]
    return ["sweep", "tiny_raft", "--over", over, "--name", "try", "--home", str(home), "--json", *sets]


@pytest.mark.minutes
def test_a_sweep_reads_test_for_its_chosen_campaign_alone(own: Path, ratchet: Call, capsys: pytest.CaptureFixture[str]) -> None:
    # Claim: of three campaigns the one whose champion is best on held-out is chosen; it alone reads test, once, also when the
    # sweep is run again, and the others are done without; the chosen one's gain has a corrected, wider interval.
    command = swept(own, "train.learning_rate=1e-6,3e-2,1e-5")
    assert ratchet(*command) == 0
    said = json.loads(capsys.readouterr().out)
    members = [Campaign.open(own, row["campaign"]) for row in said["campaigns"]]
    best = max(said["campaigns"], key=lambda row: row["accuracy"])
    assert said["choice"]["best"] == best["campaign"]
    assert [m.name for m in members if m.final() is not None] == [best["campaign"]]
    assert [m.state for m in members] == ["done"] * 3
    assert "read 2 times" in told(own, "first")
    plain = Campaign.open(own, best["campaign"]).rounds()[-1].metrics["accuracy_vs_base"]
    assert best["accuracy_vs_base_low"] < (plain.low if plain.low is not None else 1)
    other = next(m for m in members if m.final() is None)
    assert "This campaign does not read it: sweep 'try' reads it for its best campaign alone" in told(own, other.name)
    assert ratchet(*command) == 0
    assert json.loads(capsys.readouterr().out) == said | {"made_now": 0}
    assert "read 2 times" in told(own, "first")


@pytest.mark.minutes
def test_a_sweep_with_a_campaign_that_failed_reads_nothing_yet(
    own: Path, ratchet: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Claim: while one campaign is not over, none is chosen, since a later choice of another one would be a second read; the
    # same command goes on and reads once.
    from flows.commands import sweep
    from flows.commands.run import run_to_end

    command, run = swept(own, "train.learning_rate=1e-6,1e-5"), run_to_end

    def fails(campaign: Campaign, refresh: list[str]) -> str:
        if "1e_06" in campaign.name:
            raise StageFailed("no")
        return run(campaign, refresh)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "run_to_end", fails)
        assert ratchet(*command) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["choice"] is None
    assert [row["state"] for row in said["campaigns"]] == ["new", "done"]
    assert "read once" in told(own, "first")
    assert ratchet(*command) == 0
    assert json.loads(capsys.readouterr().out)["choice"] is not None
    assert "read 2 times" in told(own, "first")
