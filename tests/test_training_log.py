"""`ratchet audit --training-log`: anybody's log gives the alarms that a campaign's own would; a bad row is a named error."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import LogError
from data.rows.training_logs import read

Ratchet = Callable[..., int]
# a reward that goes up and is lost, while the text turns to noise
STEPS = [
    {"reward": reward, "entropy": entropy, "kl": 0.05, "length": 100.0 + number % 3}
    for number, (reward, entropy) in enumerate([(0.1, 0.5)] * 10 + [(0.8, 0.3)] * 20 + [(0.0, 5.0)] * 20, 1)
]
TRL = {"reward": "reward", "entropy": "entropy", "kl": "kl", "length": "completions/mean_length"}
OLD_TRL = TRL | {"length": "completion_length"}
VERL = {"reward": "critic/score/mean", "entropy": "actor/entropy", "kl": "actor/kl_loss", "length": "response_length/mean"}
OPENRLHF = {"reward": "train/reward", "entropy": "train/entropy_loss", "kl": "train/kl", "length": "train/response_length"}


def records(names: dict[str, str], step: str = "step") -> list[dict[str, Any]]:
    return [{step: 10 * n} | {names[what]: value for what, value in row.items()} for n, row in enumerate(STEPS, 1)]


def lines(rows: list[Any]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def csv_of(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def printed_by_verl(rows: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"(TaskRunner pid=1) step:{row['step']} - "
        + " - ".join(f"{name}:np.float64({value})" for name, value in row.items() if name != "step")
        for row in rows
    )


@pytest.fixture
def logs(tmp_path: Path) -> dict[str, Path]:
    """The same training as each program writes it."""
    end = {"step": 500, "train_runtime": 12.5, "train_loss": 0.1}  # TRL's last entry, without a reward
    texts = {
        "trainer_state.json": json.dumps({"global_step": 500, "log_history": [*records(TRL), end]}),
        "trl.jsonl": lines([*records(OLD_TRL), {"step": 500, "eval_loss": 1.0}]),
        "trl.log": "\n".join(f"  3%| | 1/50 {row}" for row in records(TRL)) + "\n{'broken': nan, x}\n",
        "verl.jsonl": lines([{"step": row.pop("step"), "data": row} for row in records(VERL)]),
        "verl.txt": printed_by_verl(records(VERL)),
        "openrlhf.jsonl": lines(records(OPENRLHF, "train/global_step")),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    csv_of(records(TRL), tmp_path / "trl.csv")
    return {name: tmp_path / name for name in (*texts, "trl.csv")}


FORMATS = ["trainer_state.json", "trl.jsonl", "trl.log", "verl.jsonl", "verl.txt", "openrlhf.jsonl", "trl.csv"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_alarm(logs: dict[str, Path], name: str, ratchet: Ratchet, capsys: Any) -> None:
    # a person reads what was found and why, with the steps, and what the log does not hold. The exit code is 0, as for outputs
    assert ratchet("audit", "--training-log", logs[name]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "ALARM reward collapse" in printed
    best = re.search(r"0\.80 at its best \(steps (\d+) to (\d+)\)", printed)
    assert best is not None
    assert 110 <= int(best[1]) < int(best[2]) <= 300
    assert "the text is turning to noise" in printed
    assert "Not in it: truncated." in printed
    assert printed.count("ALARM") == 1


def test_json_has_the_columns_and_the_alarms(logs: dict[str, Path], ratchet: Ratchet, capsys: Any) -> None:
    # a program reads the same
    assert ratchet("audit", "--training-log", logs["verl.jsonl"], "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [alarm["name"] for alarm in found["alarms"]] == ["reward collapse"]
    assert found["columns"]["reward"] == "critic/score/mean"
    assert found["steps"] == [10, 500]


def test_any_other_program_has_a_map(tmp_path: Path, ratchet: Ratchet, capsys: Any) -> None:
    # its names are unknown, so without a map there is nothing to read; with one it is a log like any
    names = {"reward": "score", "entropy": "H", "kl": "divergence", "length": "tokens"}
    csv_of(records(names, "iteration"), tmp_path / "own.csv")
    assert ratchet("audit", "--training-log", tmp_path / "own.csv") == 2
    assert "found iteration, score, H" in " ".join(capsys.readouterr().err.split())
    by = "step=iteration,reward=score,entropy=H,kl=divergence,length=tokens"
    assert ratchet("audit", "--training-log", tmp_path / "own.csv", "--map", by) == 0
    assert "reward collapse" in capsys.readouterr().out


def test_a_log_of_preferences_is_read_too(tmp_path: Path, ratchet: Ratchet, capsys: Any) -> None:
    # DPO's margins, and what the chosen side lost since the first steps
    rows = [{"step": n, "loss": 0.6 - n / 100, "rewards/margins": n * 1.0, "logps/chosen": -20.0 - n} for n in range(1, 41)]
    (tmp_path / "dpo.jsonl").write_text(lines(rows))
    assert ratchet("audit", "--training-log", tmp_path / "dpo.jsonl") == 0
    printed = capsys.readouterr().out
    assert "ALARM margins exploded" in printed
    assert "ALARM likelihood displacement" in printed


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"reward": 0.5}\n{"reward": "high"}', "row 2: expected a number in 'reward', found 'high'"),
        ("a.jsonl", '{"reward": 0.5}\n\n[1]', "row 3: expected a JSON object, found list"),
        ("a.jsonl", '{"reward": 0.5}\n{"reward":', "row 2: expected one JSON object per line"),
        ("a.jsonl", '{"reward": true}', "row 1: expected a number in 'reward', found 'True'"),
        ("a.jsonl", '{"reward": 1' + "0" * 400 + "}", "row 1: expected a number in 'reward'"),
        ("a.jsonl", '{"step": 1.5, "reward": 1}', "row 1: expected a whole number of steps in 'step', found 1.5"),
        ("a.jsonl", '{"step": 1e300, "reward": 1}', "expected a whole number of steps in 'step', found 1e[+]300"),
        ("a.jsonl", '{"reward": null}', "expected numbers in reward, found none"),
        ("a.jsonl", "", "found no columns"),
        ("a.jsonl", "[" * 100_000, "row 1: expected one JSON object per line"),
        ("a.json", '{"log_history": [{"reward": 1}, 2]}', "row 2: expected a JSON object, found int"),
        ("a.csv", "step,reward\n1,0.5\n2,0.5,7\n", "row 3: expected as many values as the header has names"),
        ("a.csv", "step,reward\n1,0.5\n2,x\n", "row 3: expected a number in 'reward', found 'x'"),
        ("a.csv", "step,loss\n1,0.5\n", "found step, loss. Name them, e.g. --map reward=COLUMN"),
        ("a.log", "nothing of the kind", "found no columns"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    # a log comes from anywhere: every fault is an error that says where, what was expected and what was found
    (tmp_path / name).write_text(text)
    with pytest.raises(LogError, match=message):
        read(tmp_path / name, {})


def test_a_map_that_fits_nothing_is_named(tmp_path: Path) -> None:
    # an unknown role, and a column that is not there
    (tmp_path / "a.jsonl").write_text('{"reward": 0.5}')
    with pytest.raises(LogError, match="found 'rewards' \\(did you mean 'reward'\\?\\)"):
        read(tmp_path / "a.jsonl", {"rewards": "reward"})
    with pytest.raises(LogError, match="expected the column 'score' of --map, found reward"):
        read(tmp_path / "a.jsonl", {"reward": "score"})
    with pytest.raises(LogError, match="expected a readable training log"):
        read(tmp_path / "none.jsonl", {})


def test_steps_logged_again_count_once(tmp_path: Path) -> None:
    # after a resume a program logs steps again: the later value counts. NaN is no value
    rows = [
        {"step": 1, "reward": 0.1},
        {"step": 2, "reward": 0.2},
        {"step": 2, "reward": 0.3},
        {"step": 3, "reward": float("nan")},
    ]
    (tmp_path / "a.jsonl").write_text(lines(rows))
    assert [(row["step"], row["value"]) for row in read(tmp_path / "a.jsonl", {}).rows] == [(1, 0.1), (2, 0.3)]


def test_outputs_and_a_log_are_two_audits(ratchet: Ratchet, capsys: Any) -> None:
    # one of them at a time; and neither is an error as before
    assert ratchet("audit") == 2
    assert ratchet("audit", "a.jsonl", "b.jsonl", "--training-log", "c.csv") == 2
    assert "or --training-log FILE alone" in " ".join(capsys.readouterr().err.replace("│", " ").split())
