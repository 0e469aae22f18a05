"""lineage tells what an artifact was made of; gc deletes what no campaign refers to, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data.errors import CampaignError, HomeError
from data.store import garbage
from data.store.campaign import Campaign
from data.store.lineage import lineage, resolve

Run = Callable[..., Campaign]
Call = Callable[..., int]
QUICK = ("rounds=1", "train.steps=2", "train.save_every=2")


def test_lineage_leads_back_to_the_prompts(
    run_micro: Run, ratchet: Call, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Claim: from a round's checkpoint one reaches its data, its reference, its base and the prompts, by key and digest.
    campaign = run_micro("tiny_dpo", *QUICK, name="first")
    assert ratchet("lineage", "first", "--round", 1, "--json", "--home", home) == 0
    told = json.loads(capsys.readouterr().out)
    last = campaign.rounds()[-1]
    assert (told["key"], told["digest"], told["stage"]) == (last.checkpoint.key, last.checkpoint.digest, "train")
    inputs = {node["name"]: node for node in told["made_of"]}
    assert inputs["reference"]["key"] == last.reference.key if last.reference else None
    assert inputs["pairs"]["key"] == last.artifacts["pair"].key
    nodes, stack = [], [told]
    while stack:
        nodes.append(stack.pop())
        stack += nodes[-1]["made_of"]
    assert {"prepare", "draw", "generate", "score", "reward", "pair", "logprobs", "tiny_model", "train"} <= {
        n["stage"] for n in nodes
    }
    assert any(node["again"] for node in nodes)  # what is shared is told once
    assert ratchet("lineage", last.checkpoint.digest[:10], "--home", home) == 0
    assert "prepare" in capsys.readouterr().out


def test_lineage_of_nothing_is_refused(run_micro: Run, ratchet: Call, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Claim: an unknown name, an ambiguous key or a missing round is reported with exit code 2.
    campaign = run_micro("tiny_control", *QUICK, name="first")
    assert ratchet("lineage", "nothing", "--home", home) == 2
    assert "no artifact's key or digest begins so" in capsys.readouterr().err
    assert ratchet("lineage", "first", "--round", 9, "--home", home) == 2
    with pytest.raises(CampaignError, match="artifacts begin so; give more of it"):
        resolve(campaign.store, "")


def test_lineage_shows_what_is_gone(run_micro: Run) -> None:
    # Claim: an evicted artifact is shown as evicted, and one without a manifest as gone, in their places.
    campaign = run_micro("tiny_raft", *QUICK, name="first")
    train = campaign.rounds()[-1].artifacts["train"]
    campaign.store.evict(train.key)
    assert lineage(campaign.store, train.key).absent == "evicted"
    shutil.rmtree(campaign.store.folder(campaign.rounds()[-1].artifacts["select"].key))
    inputs = {node.name: node for node in lineage(campaign.store, train.key).made_of}
    assert (inputs["selected"].stage, inputs["selected"].absent) == ("gone", "gone")


def test_gc_deletes_what_no_campaign_refers_to_and_nothing_else(
    run_micro: Run, ratchet: Call, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Claim: with one campaign's folder deleted, gc deletes only what no other uses; the other's next run computes nothing.
    one, two = run_micro("tiny_raft", *QUICK, name="one"), run_micro("tiny_dpo", *QUICK, name="two")
    only_one = one.used() - two.used()
    left = one.store.root / "partial" / ("0" * 64)
    (left / "scratch").mkdir(parents=True)
    (left / "scratch" / "shard").write_text("x")
    assert ratchet("gc", "--home", home) == 2  # input is no terminal
    error = capsys.readouterr()
    assert "input is not a terminal; pass --yes to delete" in error.err
    assert "unfinished attempt" in error.out
    shutil.rmtree(one.folder)
    assert ratchet("gc", "--yes", "--home", home) == 0
    said = capsys.readouterr().out
    assert " train " in said
    assert "MB freed" in said
    assert set(two.store.keys()) & only_one == set()
    assert two.used() <= set(two.store.keys())
    assert not left.exists()
    assert two.store.verify() == []
    with garbage.at_rest(home) as used:
        assert garbage.find(home, used).size == 0


def test_gc_keeps_what_an_unfinished_round_has(run_micro: Run, home: Path) -> None:
    # Claim: artifacts of a round that never finished are kept, because a resume starts from them.
    campaign = run_micro("tiny_raft", *QUICK, name="one")
    before = campaign.used()
    (campaign.folder / "rounds" / "001.json").unlink()
    with garbage.at_rest(home) as used:
        found = garbage.find(home, used)
    assert not before & {key for key, _, _ in found.artifacts}


def test_gc_keeps_what_an_artifact_was_made_of(run_micro: Run, home: Path) -> None:
    # Claim: with only Round records left, the inputs of the artifacts they name are kept too: these can be made again.
    campaign = run_micro("tiny_raft", *QUICK, name="one")
    (campaign.folder / "used").unlink()
    (campaign.folder / "final.json").unlink()
    kept = garbage.live(campaign.store, campaign.used())
    assert {ref.key for r in campaign.rounds() for ref in r.artifacts.values()} <= kept
    assert {inner for key in kept for inner in campaign.store.manifest(key)["input_keys"].values() if inner} <= kept


def test_gc_waits_for_nobody(run_micro: Run, ratchet: Call, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Claim: gc refuses while a campaign runs, because nobody knows which artifacts that campaign will use next.
    campaign = run_micro("tiny_control", *QUICK, name="one")
    with campaign.running():
        assert ratchet("gc", "--yes", "--home", home) == 2
    assert "'one' is already running" in capsys.readouterr().err
    with campaign.store.in_use():  # `ratchet data`, say, or a campaign that begins now
        assert ratchet("gc", "--yes", "--home", home) == 2
    assert "another command is running on" in capsys.readouterr().err


def test_nothing_begins_while_gc_deletes(run_micro: Run, home: Path) -> None:
    # Claim: a campaign that starts while gc deletes is refused, because the artifacts it finds might be gone the next moment.
    campaign = run_micro("tiny_control", *QUICK, name="one")
    with (
        garbage.at_rest(home),
        pytest.raises(HomeError, match=r"`ratchet gc` is running on .*run this again when it has finished"),
    ):
        run_micro("tiny_control", *QUICK, name="two")
    with campaign.running(), campaign.store.in_use():  # any number of others at once
        assert Campaign.runs(home, "one")
    assert not Campaign.runs(home, "one")
