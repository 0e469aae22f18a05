"""Hostile inputs to everything that Ratchet reads: a few hundred each. `./ratchet bench fuzz` tries as many as wanted."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data.errors import DamagedArtifact, DamagedCampaign, PromptsError, RecipeError
from data.recipe import recipe as recipes
from data.recipe.dotted import parse_set
from data.store.store import Job, Store
from data.store.sweep import Sweep
from flows.terminal import plain
from tasks.generate import openai_client
from tasks.run import failure
from tests import fuzz

INPUTS = {"recipe": 100, "set": 200, "prompts": 200, "completions": 200, "judge": 500, "endpoint": 250, "verifiers": 300}


@pytest.mark.parametrize("target", INPUTS)
def test_any_input_gives_a_result_or_an_error_of_ours(target: str, tmp_path: Path) -> None:
    # Claim: no input ends in another error, in a hang, in a message that cannot be printed, or outside its folder. Seeds fixed
    # beforehand; a failure names the input's number.
    bad = {n: found for n in range(INPUTS[target]) if (found := fuzz.trouble(target, f"test/{target}/{n}", tmp_path / "in"))}
    assert not bad


def test_any_campaign_file_is_read_or_named(known_store: Path, tmp_path: Path) -> None:
    # Claim: as above, for the files of a real campaign. Its checkpoints are left out, since no question reads them.
    place, home = tmp_path / "in", tmp_path / "in" / "home"
    ignored = shutil.ignore_patterns("*.safetensors", "mlflow.db*", "mlartifacts", "prefect")
    shutil.copytree(known_store.parent, home, ignore=ignored)
    bad = {n: found for n in range(40) if (found := fuzz.trouble("campaign", f"test/campaign/{n}", place))}
    assert not bad


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda draw, place: dict[str, int]()["x"], "KeyError"),
        (lambda draw, place: (place.parent / "outside").write_text("x"), "Escape: open"),
        (lambda draw, place: (place.parent / "outside").mkdir(), "Escape: os.mkdir"),
        (lambda draw, place: os.system("true"), "Escape: os.system"),
        (lambda draw, place: time.sleep(5), "Hang"),
    ],
)
def test_the_laboratory_notices(
    wrong: Callable[[random.Random, Path], object], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Claim: a test that finds nothing would find an error of another kind, an escape, a command and a hang.
    monkeypatch.setitem(fuzz.TARGETS, "wrong", fuzz.Target(wrong))
    monkeypatch.setattr(fuzz, "LIMIT", 0.2)
    assert fuzz.trouble("wrong", "1", tmp_path / "in").startswith(told)


def test_the_laboratory_reads_no_error_of_ours_as_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: our own error counts as good if it says something.
    def refuse(draw: random.Random, place: Path) -> None:
        raise PromptsError(draw.choice(("", "expected a file")))

    monkeypatch.setitem(fuzz.TARGETS, "wrong", fuzz.Target(refuse))
    assert {fuzz.trouble("wrong", str(n), tmp_path) for n in range(9)} == {"", "an empty PromptsError"}


# -- what the first inputs found ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["9" * 5000, "[" * 5000])
def test_toml_that_python_cannot_hold_is_refused(text: str, tmp_path: Path) -> None:
    # Claim: a number of thousands of digits, or thousands of brackets, is no traceback, in a file or in --set.
    assert parse_set(f"loss.beta={text}") == ("loss.beta", text)
    (tmp_path / "r.toml").write_text(f"rounds = {text}")
    with pytest.raises(RecipeError, match="expected TOML"):
        recipes.load(tmp_path / "r.toml")


def test_half_a_character_is_written_out() -> None:
    # Claim: a byte of an argument that is no UTF-8 can be printed, as a message may quote it.
    assert plain(os.fsdecode(b"a\xff.toml")) == "a\\udcff.toml"


def test_a_damaged_journal_keeps_its_sound_replies(tmp_path: Path) -> None:
    # Claim: each line that is a reply is used; noise, half lines and other JSON are skipped.
    journal = tmp_path / "replies.jsonl"
    for name in "ab":
        openai_client._write(journal, openai_client.Reply(name, "four", "stop", "ok", ("500: no",), 3, 2))
    sound = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([sound[0], b"\xff\x94", b"12", b'{"id": []}', sound[1][:20], b"[" * 5000, sound[1]]))
    assert {name: reply.text for name, reply in openai_client._read(journal).items()} == {"a": "four", "b": "four"}
    assert all(reply.journalled and reply.failures == ("500: no",) for reply in openai_client._read(journal).values())


def test_a_torn_failure_hides_no_other(tmp_path: Path) -> None:
    # Claim: the errors of earlier attempts are told, though a full disk cut one.
    for _ in range(2):
        failure.write(tmp_path, ValueError("planted"))
        failure.error_of("train", 1, tmp_path, "")
    path = tmp_path / failure.EARLIER
    path.write_bytes(path.read_bytes()[:-30] + b"\xff")
    assert [one["message"] for one in failure.earlier(tmp_path)] == ["planted"]
    (tmp_path / "error-0.json").write_bytes(b"\xff{")
    assert "ended with exit code 1" in str(failure.error_of("train", 1, tmp_path, ""))


def test_a_damaged_sweep_is_named(tmp_path: Path) -> None:
    # Claim: a sweep's file that is damaged says so, and what to do.
    (tmp_path / "sweeps").mkdir()
    for content in (b"", b"\xff", b"[]", b'{"name": 1}'):
        (tmp_path / "sweeps" / "s.json").write_bytes(content)
        with pytest.raises(DamagedCampaign, match=r"s\.json as Ratchet wrote it.*delete it and run the same sweep again"):
            Sweep.open(tmp_path, "s")


def test_a_damaged_stamp_only_costs_a_hash(tmp_path: Path) -> None:
    # Claim: noise in a stamp is no traceback: the files are hashed again, and the stamp is renewed.
    store, job = made(tmp_path)
    stamp = store._stamp_file(job.key)
    sound = stamp.read_bytes()
    stamp.write_bytes(b"\xbf\x00")
    found = store.find(job.key)
    assert found is not None
    assert not found.absent
    assert stamp.read_bytes() == sound


@pytest.mark.parametrize("keys", [{"a": ["x"]}, {"a": 1}, []])
def test_a_manifest_whose_inputs_are_no_keys_is_damaged(keys: object, tmp_path: Path) -> None:
    # Claim: gc, which follows the keys of inputs, meets text alone.
    store, job = made(tmp_path)
    path = store.folder(job.key) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"input_keys": keys}))
    with pytest.raises(DamagedArtifact):
        store.manifest(job.key)


def made(root: Path) -> tuple[Store, Job]:
    """A store with one artifact."""
    store, job = Store(root / "store"), Job(stage="s", version=1, settings={}, inputs={}, seed=0)
    with store.attempt(job.key) as partial:
        (partial / "payload" / "x").write_text("x")
        store.commit(job, {}, "f", {})
    return store, job
