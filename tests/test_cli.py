"""The command line as a user meets it: help, JSON, and mistakes (one clear line, exit code 2, nothing half-written)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data.store.campaign import Campaign
from tasks.run.parts import FAMILIES
from tests.micro import SETS

ROOT = Path(__file__).parent.parent
Call = Callable[..., int]


def micro_sets(*more: str) -> list[str]:
    return [part for item in (*SETS, "hardware.prefect=false", *more) for part in ("--set", item)]


def refused(ratchet: Call, capsys: pytest.CaptureFixture[str], home: Path, *arguments: object) -> str:
    """The one line on stderr of a command that must exit 2 and write nothing."""
    assert ratchet(*arguments, "--home", home) == 2
    error = capsys.readouterr().err.strip()
    assert not (home / "campaigns").exists(), "something was half-written"
    assert "Traceback" not in error
    return error


def test_unknown_recipe(ratchet: Call, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    # Claim: a misspelt recipe is refused with the closest name.
    assert "did you mean 'tiny_raft'" in refused(ratchet, capsys, home, "run", "tiny_rft")


def test_unknown_key(ratchet: Call, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    # Claim: an unknown recipe key is refused with its place and the closest key.
    error = refused(ratchet, capsys, home, "run", "tiny_dpo", "--set", "loss.bta=1")
    assert "unknown key 'loss.bta'" in error
    assert "did you mean 'beta'" in error


def test_wrong_type(ratchet: Call, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    # Claim: a value of the wrong type is refused naming the key and what was found.
    assert "rounds: " in (error := refused(ratchet, capsys, home, "run", "tiny_raft", "--set", "rounds=many"))
    assert "'many'" in error


def test_bad_part_setting(ratchet: Call, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    # Claim: a part's settings are checked before anything runs.
    error = refused(ratchet, capsys, home, "run", "tiny_raft", "--set", "select.settings.cop=2")
    assert "cop" in error
    assert "cap" in error


def test_missing_model(ratchet: Call, capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path) -> None:
    # Claim: a model directory that does not exist, or holds pickled weights only, is refused before anything runs.
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("\n".join(json.dumps({"question": f"{i}+1?", "answer": str(i + 1)}) for i in range(800)))
    arguments = ("run", "raft", "--prompts", prompts, "--model")
    assert "expected a model directory" in refused(ratchet, capsys, home, *arguments, tmp_path / "nothing")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"")
    assert "safetensors" in refused(ratchet, capsys, home, *arguments, pickled)


def test_needs_a_model_of_ones_own(ratchet: Call, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    # Claim: a recipe that needs the user's own model names the options to pass.
    assert "--model" in refused(ratchet, capsys, home, "run", "raft")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"text": "a", "answer": "b"}\n', "row 1: expected one of the columns"),
        ('{"question": "1+1?", "answer": "2"}\n{"question": 3}\n', "row 2"),
        ('{"question": "1+1?", "answer": "2"}\nnot json\n', "row 2"),
        ('{"question": "1+1?", "answer": "2"}\n{"question": "1+1?", "answer": "3"}\n', "two answers"),
        ("", "found 0"),
    ],
)
def test_bad_prompts(
    content: str, expected: str, ratchet: Call, capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path
) -> None:
    # Claim: a prompts file with a missing column or a bad row is refused, the row named.
    from tests.tiny_llama import make

    prompts = tmp_path / "bad.jsonl"
    prompts.write_text(content)
    model = make(tmp_path / "model")
    assert expected in refused(ratchet, capsys, home, "run", "raft", "--model", model, "--prompts", prompts)


def test_unwritable_home(ratchet: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    # Claim: a home that cannot be written is refused with what to do.
    place = tmp_path / "file"
    place.write_text("a file where a directory should be")
    assert ratchet("run", "tiny_raft", "--home", place / "home") == 2
    assert "pass another --home" in capsys.readouterr().err


def test_too_little_disk(
    ratchet: Call, capsys: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Claim: a campaign that would not fit is refused before it starts, with what is needed and what is there.
    monkeypatch.setattr("flows.commands.check.free_bytes", lambda place: 1_000_000)
    error = refused(ratchet, capsys, home, "run", "tiny_raft")
    assert "of free space in" in error
    assert "found 1.0 MB" in error


@pytest.mark.parametrize("name", ["../escape", "/abs", "a b", "", "-dash", "x" * 65])
def test_bad_name(name: str, ratchet: Call, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    # Claim: a name cannot leave the home directory.
    code = ratchet("show", name, "--home", home)
    assert code == 2
    assert not (home.parent / "escape").exists()


def test_same_name_other_recipe_shows_the_difference(
    ratchet: Call, capsys: pytest.CaptureFixture[str], home: Path, run_micro: Callable[..., Campaign]
) -> None:
    # Claim: settings changed under the same name are refused with the difference, and the finished campaign stays as it is.
    campaign = run_micro("tiny_raft", "rounds=1")
    before = [r.model_dump() for r in campaign.rounds()]
    command = ("run", "tiny_raft", "--name", "micro", "--home", home, *micro_sets("rounds=1", "train.learning_rate=0.5"))
    assert ratchet(*command) == 2
    assert "train.learning_rate: 0.001 -> 0.5" in capsys.readouterr().err
    assert [r.model_dump() for r in campaign.rounds()] == before


def test_json_of_a_campaign(
    ratchet: Call, capsys: pytest.CaptureFixture[str], home: Path, run_micro: Callable[..., Campaign]
) -> None:
    # Claim: `show --json`, `runs --json`, `parts --json`, `recipes --json` and `check --json` have the promised shape.
    run_micro("tiny_dpo", "rounds=1")
    assert ratchet("show", "micro", "--json", "--home", home) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["name"] == "micro"
    assert shown["recipe"]["rounds"] == 1
    assert [r["round"] for r in shown["rounds"]] == [0, 1]
    for r in shown["rounds"]:
        assert r["metrics"]["accuracy"].keys() == {"value", "low", "high", "n", "split"}
        assert r["metrics"]["accuracy"]["split"] == "held_out"
        assert all(ref.keys() == {"key", "digest"} for ref in r["artifacts"].values())
        assert isinstance(r["verdict"], str)
    assert ratchet("runs", "--json", "--home", home) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "done"
    assert ratchet("parts", "--json") == 0
    assert set(FAMILIES) == json.loads(capsys.readouterr().out).keys()
    assert ratchet("recipes", "--json") == 0
    assert {"tiny_raft", "tiny_dpo", "tiny_control", "raft", "iterative_dpo"} <= {
        r["name"] for r in json.loads(capsys.readouterr().out)
    }
    assert ratchet("check", "tiny_raft", "--json", "--home", home) == 0
    assert json.loads(capsys.readouterr().out)["estimate"]["completions_per_round"] == 8000
    assert ratchet("show", "micro", "--round", 1, "--home", home) == 0
    assert "reference" in capsys.readouterr().out
    assert ratchet("verify", "--home", home) == 0
    assert "0 damaged" in capsys.readouterr().out


def test_help_is_quick_and_has_examples() -> None:
    # Claim: `--help` imports nothing that takes seconds (no torch, no Prefect) and shows examples.
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-X", "importtime", "-m", "flows.cli", "run", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "ratchet run tiny_raft" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "prefect", "mlflow", "transformers", "trl", "vllm"}


SCORER = """
from tasks.score.scorers import Score

def brief(prompts, completions, *, characters: int = 30):
    return [Score(float(len(row["text"]) <= characters)) for row in completions]
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with a scorer of the user's, and files named like modules of the standard library that raise when imported."""
    for name in ("dis", "random", "types", "collections"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('this is not the standard library')\n")
    (tmp_path / "mine.py").write_text(SCORER)
    return tmp_path


def outside() -> dict[str, str]:
    """The environment of a shell that nobody prepared for Ratchet."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH", "RATCHET_PARTS")}


def wanted_hash(root: Path) -> str:
    """What the launcher compares with the hash of the last set-up, by its own function."""
    function = re.search(r"^wanted_hash\(\) \{.*?^\}", (ROOT / "ratchet").read_text(), re.MULTILINE | re.DOTALL)
    assert function is not None
    done = subprocess.run(["sh", "-c", f"root={root}; {function[0]}\nwanted_hash"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_only_dependencies_make_the_launcher_install(tmp_path: Path) -> None:
    # a dependency, an extra or a pin changes the hash; a tool's settings or the version of Ratchet do not
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    before, text = wanted_hash(tmp_path), (tmp_path / "pyproject.toml").read_text()
    hashes = []
    for old, new in (('"trl==', '"trl>='), ('"bitsandbytes>=', '"bitsandbytes=='), ("line-length = 128", "line-length = 99")):
        assert old in text
        (tmp_path / "pyproject.toml").write_text(text.replace(old, new))
        hashes.append(wanted_hash(tmp_path))
    assert before not in hashes[:2]
    assert hashes[2] == before


def test_the_version_is_printed_and_recorded(ratchet: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    # `--version` and every Round say which Ratchet it was
    from flows.service.environment import ratchet_version

    assert ratchet("--version") == 0
    assert capsys.readouterr().out == f"ratchet {ratchet_version()}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", ratchet_version())


def test_the_launcher_works_beside_files_named_like_modules(hostile: Path, home: Path) -> None:
    # Claim: in a folder with dis.py, random.py, types.py every command works, and a user's own scorer there is still found.
    state = ROOT / ".venv" / "ratchet-setup"
    if not state.exists() or state.read_text().split(maxsplit=1)[1].strip() != wanted_hash(ROOT):
        pytest.skip("the launcher would set up .venv first")

    def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / "ratchet"), *map(str, arguments)]
        return subprocess.run(command, cwd=hostile, env=outside(), capture_output=True, text=True, check=False)

    assert "ratchet demo" in launch("--help").stdout
    assert "tiny_raft" in launch("recipes").stdout
    with_settings = ("check", "tiny_raft", "--home", home, "--set", "score.0.scorer=mine:brief", "--set")
    bound = launch(*with_settings, "score.0.settings={characters = 20}")
    assert bound.returncode == 0, bound.stderr
    refused = launch(*with_settings, "score.0.settings={word = 20}")
    assert refused.returncode == 2
    assert "its settings: characters" in refused.stderr


def test_a_process_started_elsewhere_finds_a_users_part(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    # Claim: a worker's process, whose directory is another one, finds the part by RATCHET_PARTS, behind the standard library.
    code = (
        "import sys; from tasks.run.parts import configure; import random, types; "
        "print(configure('scorers', 'mine:brief', {})([{}], [{'text': 'short'}])[0].value, sys.path[-1])"
    )
    environment = outside() | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "RATCHET_PARTS": str(hostile)}
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1.0", str(hostile)]


def test_what_a_line_of_progress_quotes_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    # an error or a path with [brackets] is shown as it is, and does not end the run that reports it
    from flows.round.reporter import Reporter

    quoted = "lost: [/tmp/x] of folder[train] [bold]"
    with Reporter("quoting") as report, report.stage(1, "generate", lambda key: None) as notes:
        notes.warn(quoted)
        report.say(quoted)
    assert capsys.readouterr().err.count(quoted) == 2
