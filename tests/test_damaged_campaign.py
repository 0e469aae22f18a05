"""A campaign's files may be cut, emptied, overwritten, deleted or replaced by a folder: each is named, and harms no other."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data.errors import DamagedCampaign
from data.store import garbage
from data.store.campaign import Campaign
from data.store.store import Store
from flows.round.finish import evict

DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_text(""),
    "garbage": lambda path: path.write_bytes(bytes(range(256))),
    "other JSON": lambda path: path.write_text("[1, null]"),
    "a folder": lambda path: path.rename(path.with_name("aside")).parent.joinpath(path.name).mkdir(),
}
FILES = ("recipe.json", "rounds/001.json", "final.json", "pending.json")


@pytest.fixture
def two(run_micro: Callable[..., Campaign]) -> Campaign:
    """A campaign of two rounds, "hurt", beside a sound one, "sound"."""
    run_micro("tiny_control", "rounds=1", name="sound")
    return run_micro("tiny_control", "rounds=2", "keep.checkpoints=best+last", name="hurt")


def test_every_damage_is_named_and_hides_no_other_campaign(
    two: Campaign, ratchet: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # Claim: for each file and each kind of damage, `show` and `runs` name the file and what to do, without a traceback. The
    # other campaign is listed as it is; gc deletes nothing that the damaged one used. (`show` needs no pending.json.)
    (two.folder / "pending.json").write_text(json.dumps({"round": 2, "reason": "x", "decision": "hold"}))
    whole = tmp_path / "whole"
    shutil.copytree(two.home / "campaigns", whole)
    kept = set(Store(two.home / "store").keys())
    for file in FILES:
        for damage, harm in DAMAGE.items():
            shutil.rmtree(two.home / "campaigns")
            shutil.copytree(whole, two.home / "campaigns")
            harm(two.folder / file)
            assert ratchet("show", "hurt", "--home", two.home) == (0 if file == "pending.json" else 2), (file, damage)
            error = capsys.readouterr().err
            assert file == "pending.json" or (file in error and " delete " in error), (file, damage)
            assert ratchet("runs", "--home", two.home, "--json") == 0
            hurt, sound = json.loads(capsys.readouterr().out)
            assert (hurt["state"], sound["state"]) == ("damaged", "done")
            assert re.search(rf"expected .*{file} as Ratchet wrote it, found it damaged \(.*\); .*delete", hurt["error"])
            assert ratchet("gc", "--home", two.home, "--yes") == (2 if file.startswith("rounds") else 0), (file, damage)
            assert set(Store(two.home / "store").keys()) == kept, (file, damage)
            capsys.readouterr()


def test_a_record_missing_between_others_is_no_end(two: Campaign, ratchet: Callable[..., int]) -> None:
    # Claim: round 1's record deleted between 0 and 2 is not "done": show, run and gc say which is missing.
    (two.folder / "rounds" / "001.json").unlink()
    with pytest.raises(DamagedCampaign, match=r"every round from 0 to 2, found none of round 1 in .*rounds; restore it"):
        two.rounds()
    for command in (("show", "hurt"), ("resume", "hurt"), ("gc", "--yes")):
        assert ratchet(*command, "--home", two.home) == 2


def test_what_can_be_made_again_is(two: Campaign, ratchet: Callable[..., int]) -> None:
    # Claim: as the messages say: a deleted final.json, or the last records deleted, are made again, equal, from what is stored.
    before = [json.loads(r.model_dump_json(exclude={"seconds"})) for r in two.rounds()]
    final = two.final_path.read_text()
    two.final_path.unlink()
    (two.folder / "rounds" / "002.json").unlink()
    assert ratchet("resume", "hurt", "--home", two.home) == 0
    assert [json.loads(r.model_dump_json(exclude={"seconds"})) for r in two.rounds()] == before
    assert two.final_path.read_text() == final


def test_a_campaign_whose_recipe_is_deleted_keeps_its_artifacts(two: Campaign, ratchet: Callable[..., int]) -> None:
    # Claim: without recipe.json it is shown as damaged, and gc does not take its artifacts for garbage.
    (two.folder / "recipe.json").unlink()
    with pytest.raises(DamagedCampaign, match="found rounds without it"):
        Campaign.open(two.home, "hurt")
    with garbage.at_rest(two.home) as used:
        assert garbage.find(two.home, used).size == 0


def test_weights_are_kept_where_it_is_unknown_who_needs_them(two: Campaign) -> None:
    # Claim: with a damaged neighbour no weights are deleted, and the error names it.
    sound = Campaign.open(two.home, "sound")
    (two.folder / "rounds" / "001.json").write_text("")
    before = {key for key in Store(two.home / "store").keys() if not Store(two.home / "store").manifest(key).get("evicted")}
    with pytest.raises(DamagedCampaign, match="hurt"):
        evict(sound)
    assert {k for k in Store(two.home / "store").keys() if not Store(two.home / "store").manifest(k).get("evicted")} == before
