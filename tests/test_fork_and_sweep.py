"""fork and sweep: what campaigns have in common is computed once, and what differs is one entry in a recipe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import CampaignError, RecipeError
from data.recipe.recipe import forked, load
from data.store.campaign import Campaign
from data.store.sweep import Sweep, parse_over
from tasks.run import stage
from tests.micro import SETS, micro

ROOT = Path(__file__).parent.parent
Run = Callable[..., Campaign]
Call = Callable[..., int]
QUICK = ("train.steps=2", "train.save_every=2")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(stage, key) of every stage that is really computed from now on."""
    seen: list[tuple[str, str]] = []
    original = stage._make

    def counted(store: Any, job: Any, *rest: Any) -> Any:
        seen.append((job.stage, job.key))
        return original(store, job, *rest)

    monkeypatch.setattr(stage, "_make", counted)
    return seen


# -- fork -------------------------------------------------------------------------------------------------------------


@pytest.mark.minutes
def test_a_fork_computes_nothing_of_the_rounds_it_shares(
    run_micro: Run, ratchet: Call, home: Path, made: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    # Claim: forking a 4-round campaign at round 2 computes no stage of rounds 0-2, shares their digests, and differs after.
    first = run_micro("tiny_dpo", "rounds=4", *QUICK, name="first")
    shared = {ref.key for finished in first.rounds()[:3] for ref in finished.artifacts.values()}
    made.clear()
    assert ratchet("fork", "first", "--at", 2, "--set", "loss.beta=0.9", "--home", home) == 0
    fork = Campaign.open(home, "first-at-2")
    assert not shared & {key for _, key in made}
    assert not {"prepare", "tiny_model"} & {name for name, _ in made}
    assert fork.rounds()[:3] == first.rounds()[:3]
    assert [r.round for r in fork.rounds()] == [0, 1, 2, 3, 4]
    assert fork.rounds()[3].artifacts["train"].digest != first.rounds()[3].artifacts["train"].digest
    assert fork.rounds()[3].artifacts["generate"] == first.rounds()[3].artifacts["generate"]  # beta is the trainer's alone
    assert fork.recipe.at[-1].model_dump() == {"round": 3, "set": {"loss.beta": 0.9}}
    made.clear()
    assert ratchet("fork", "first", "--at", 2, "--set", "loss.beta=0.9", "--home", home) == 0
    assert made == []
    assert "already" not in capsys.readouterr().err


def test_a_fork_can_go_on_for_longer(run_micro: Run, home: Path) -> None:
    # Claim: what shapes no finished round (how many there are) is changed as a value, not as an [[at]].
    first = run_micro("tiny_raft", "rounds=1", *QUICK, name="first")
    fork = first.fork(1, "longer", forked(first.recipe, 1, ["rounds=2"]))
    assert (fork.recipe.rounds, fork.recipe.at) == (2, ())
    assert [r.round for r in fork.rounds()] == [0, 1]
    assert fork.origin == {"fork": "first", "at": 1}


def test_a_fork_that_was_cut_short_is_made_again(run_micro: Run, home: Path) -> None:
    # Claim: recipe.json is written last, so half a fork is no campaign, and the same call makes it whole.
    first = run_micro("tiny_control", "rounds=1", *QUICK, name="first")
    recipe = forked(first.recipe, 1, ["rounds=2"])
    fork = first.fork(1, "second", recipe)
    (fork.folder / "recipe.json").unlink()
    (fork.folder / "rounds" / "001.json").unlink()
    with pytest.raises(CampaignError, match="found rounds without it; restore it from a copy, run the `ratchet fork` again"):
        Campaign.open(home, "second")
    assert first.fork(1, "second", recipe).rounds() == first.rounds()


@pytest.mark.parametrize(
    ("sets", "at", "says"),
    [
        (["seed=3"], 1, "rounds 0 to 1 depend on it; start another campaign with `run --set seed=...`"),
        (["prompts.held_out=9"], 1, "rounds 0 to 1 depend on it"),
        (["loss.bta=1"], 1, "did you mean 'beta'"),
        ([], 3, "the recipe ends with round 3; add --set rounds=4 or more"),
        (["train.steps"], 1, "expected a.b=value"),
    ],
)
def test_a_fork_that_cannot_be_is_refused(sets: list[str], at: int, says: str) -> None:
    # Claim: a setting that the shared rounds stand on, a typo, or nothing left to do is said before anything is written.
    with pytest.raises(RecipeError) as refused:
        forked(load("tiny_dpo"), at, sets)
    assert says in str(refused.value)


def test_a_fork_needs_a_finished_round_and_a_free_name(run_micro: Run, home: Path) -> None:
    # Claim: a round that is not there, and a name that belongs to another campaign, are refused with what there is.
    first = run_micro("tiny_control", "rounds=1", *QUICK, name="first")
    with pytest.raises(CampaignError, match=r"--at 5: expected a finished round of 'first', which has rounds 0 to 1"):
        first.fork(5, "second", first.recipe)
    Campaign.start(home, "other", first.recipe)
    with pytest.raises(CampaignError, match="'other' exists and is no fork of 'first' at round 1; pass another --name"):
        first.fork(1, "other", first.recipe)
    with pytest.raises(CampaignError, match="no finished round"):
        Campaign.open(home, "other").fork(0, "third", first.recipe)


# -- sweep ------------------------------------------------------------------------------------------------------------


@pytest.mark.minutes
def test_a_sweep_computes_each_stage_once_and_has_one_parent_in_mlflow(
    known_store: Path, ratchet: Call, home: Path, made: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    # Claim: a 3 x 3 sweep computes as many stages as there are distinct keys, and MLflow shows its campaigns below one run.
    sets = [
        part
        for item in (*SETS, "hardware.prefect=false", "rounds=1", *QUICK, "probe.samples=0", "prompts.test=0", "prompts.ood=0")
        for part in ("--set", item)
    ]
    command = ["sweep", "tiny_dpo", "--over", "loss.beta=0.1,0.3,0.5", "--over", "train.learning_rate=1e-4,3e-4,1e-3"]
    assert ratchet(*command, "--name", "try", "--home", home, "--json", *sets) == 0
    told = json.loads(capsys.readouterr().out)
    members = [Campaign.open(home, row["campaign"]) for row in told["campaigns"]]
    keys = set().union(*(member.used() for member in members))
    assert len(members) == 9
    assert len(made) == len({key for _, key in made}) == len(keys) == told["distinct"] == told["made_now"]
    assert sum(name == "train" for name, _ in made) == 9 + 1  # and checkpoint 0
    assert sum(name == "generate" for name, _ in made) == 1 + 3 + 9 * 2  # one sampling, checkpoint 0 measured once
    assert members[4].name == "try-beta0.3-learning_rate0.0003"
    made.clear()
    assert ratchet(*command, "--name", "try", "--home", home, "--json", *sets) == 0
    assert made == []
    assert json.loads(capsys.readouterr().out)["campaigns"] == told["campaigns"]

    from registry.client import experiment, mlflow_client, sweep_run

    with mlflow_client(home) as client:
        place = experiment(client, home)
        parent = sweep_run(client, place, Sweep.open(home, "try").id)
        assert parent is not None
        below = client.search_runs([place], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        assert {run.info.run_name for run in below} == {member.name for member in members}
        assert parent.info.status == "FINISHED"
        assert parent.data.params["over.loss.beta"] == "[0.1, 0.3, 0.5]"


def test_a_campaign_of_a_sweep_that_fails_does_not_stop_the_others(
    ratchet: Call, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Claim: one failing campaign is told with its cause, the others run, and the exit code is that of the failure.
    sets = [part for item in (*SETS, "hardware.prefect=false", "rounds=1", *QUICK) for part in ("--set", item)]
    command = [
        "sweep",
        "tiny_raft",
        "--over",
        "score.0.scorer=tests.micro:ends_even,tests.test_fork_and_sweep:fails",
        "--name",
        "two",
    ]
    assert ratchet(*command, "--home", home, *sets, "--set", "score.0.scorer=exact_match") == 2
    assert "'score.0.scorer' is in --over and in --set; leave one out" in capsys.readouterr().err
    assert ratchet(*command, "--home", home, *sets) == 1
    members = [Campaign.open(home, f"two-scorertests.{which}") for which in ("micro_ends_even", "test_fork_and_sweep_fails")]
    assert [member.state for member in members] == ["done", "new"]
    assert "ScorerFailed" in capsys.readouterr().err


def fails(prompts: Any, completions: Any) -> Any:
    """A scorer that fails."""
    raise RuntimeError("no")


@pytest.mark.parametrize(
    ("item", "found"),
    [
        ("loss.beta=0.1,0.5", ("loss.beta", [0.1, 0.5])),
        ("seed=0, 1,2", ("seed", [0, 1, 2])),
        ("generate.engine=transformers,vllm", ("generate.engine", ["transformers", "vllm"])),
        ("score=[[{scorer='a'}],[{scorer='b'}]]", ("score", [[{"scorer": "a"}], [{"scorer": "b"}]])),
        ("rounds=3", ("rounds", [3])),
    ],
)
def test_values_of_a_sweep(item: str, found: tuple[str, list[Any]]) -> None:
    # Claim: values are read as --set reads them, and may be lists of their own.
    assert parse_over(item) == found


@pytest.mark.parametrize("item", ["loss.beta", "=1,2", "loss.beta=", "loss.beta=1,1", "loss.beta=,"])
def test_no_values_or_the_same_twice_are_refused(item: str) -> None:
    # Claim: a sweep over nothing, or over the same thing twice, is a mistake and is said so.
    with pytest.raises(RecipeError, match="--over"):
        parse_over(item)


def test_names_tell_the_cells_apart(tmp_path: Path) -> None:
    # Claim: campaigns are named by their values; where these cannot be told apart in a name, they are numbered.
    assert list(Sweep.plan("s", ["loss.beta=0.1,0.5", "seed=1,2"]).campaigns) == [
        "s-beta0.1-seed1", "s-beta0.1-seed2", "s-beta0.5-seed1", "s-beta0.5-seed2",
    ]  # fmt: skip
    assert list(Sweep.plan("s", ["a=x/y,x?y"]).campaigns) == ["s-000", "s-001"]
    with pytest.raises(RecipeError, match="each once"):
        Sweep.plan("s", ["seed=1", "seed=2"])
    Sweep.start(tmp_path, "s", ["seed=1,2"])
    with pytest.raises(CampaignError, match=r"sweep 's' exists over .*pass another --name"):
        Sweep.start(tmp_path, "s", ["seed=1,3"])


# -- at the same time -------------------------------------------------------------------------------------------------


@pytest.mark.minutes
def test_two_campaigns_on_one_store_at_the_same_time(known_store: Path, home: Path, run_micro: Run, tmp_path: Path) -> None:
    # Claim: two campaigns that share every stage run side by side, each stage is made once, and the bytes are as if alone.
    calm = run_micro("tiny_raft", *QUICK, name="calm", place=tmp_path / "calm")
    shutil.copytree(known_store, home / "store")
    for name in ("one", "two"):
        Campaign.start(home, name, micro("tiny_raft", *QUICK))
    command = [sys.executable, "-m", "flows.cli", "resume", "--home", str(home)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen([*command, name], env=environment, stderr=subprocess.PIPE, text=True) for name in ("one", "two")]
    said = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    one, two = (Campaign.open(home, name) for name in ("one", "two"))
    for ours, theirs, alone in zip(one.rounds(), two.rounds(), calm.rounds(), strict=True):
        assert ours.artifacts == theirs.artifacts == alone.artifacts
    lines = "".join(said).splitlines()
    trained = [line for line in lines if " train " in line and "reused" not in line and "another process" not in line]
    assert len(trained) == 2  # a round's training once, not once a campaign
