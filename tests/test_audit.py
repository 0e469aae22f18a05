"""`ratchet audit`: successive outputs of others through the ledger, without training."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.client import audit_runs, experiment, mlflow_client
from tasks.bias.iterations import halves, ledger_of, null_test
from tasks.bias.ledger import Sample

ALPACA = Path(__file__).parent.parent.parent / "shared" / "data" / "alpaca_eval"
WORDS = ("river", "stone", "window", "garden", "table", "paper", "music", "winter", "letter", "silver", "corner", "bridge")


def texts(seed: int, prompts: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(20, 60))) + "." for _ in range(prompts)]


def write(path: Path, outputs: list[Any], **columns: list[Any]) -> Path:
    rows = [
        {"prompt": f"Question {i}?", "completion": text, **{name: column[i] for name, column in columns.items()}}
        for i, text in enumerate(outputs)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def audit(ratchet: Callable[..., int], home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def call(*arguments: object) -> Any:
        capsys.readouterr()
        assert ratchet("audit", *arguments, "--home", home, "--json") == 0
        return json.loads(capsys.readouterr().out)

    return call


def alarmed(step: Any, level: str = "ALARM") -> set[str]:
    return {alarm["name"] for alarm in step["alarms"] if alarm["level"] == level}


def test_a_planted_style_is_named_and_nothing_else(audit: Callable[..., Any], tmp_path: Path) -> None:
    # Oracle 2: "Sure! " before 15% of the outputs from the third file on rings for affirmative and exclamations, not before.
    files = [write(tmp_path / f"{i}.jsonl", texts(i, 400)) for i in range(2)]
    late = ["Sure! " + text if i % 20 < 3 else text for i, text in enumerate(texts(2, 400))]
    found = audit(*files, write(tmp_path / "2.jsonl", late))
    assert not found["steps"][0]["alarms"]
    rings = alarmed(found["steps"][1])
    assert {"affirmative", "exclamations"} <= rings
    assert rings <= {"affirmative", "exclamations", "exclamations_density", "valence"}  # "Sure" is a positive word
    assert not found["null_test"]["alarms"]


def test_what_cannot_be_known_is_null(audit: Callable[..., Any], tmp_path: Path) -> None:
    # Claim: of one text per prompt there are no tokens, no truncation, no diversity between samples: null, never 0.
    found = audit(*(write(tmp_path / f"{i}.jsonl", texts(i, 40)) for i in range(2)))
    entries = {entry["feature"]: entry for entry in found["steps"][0]["entries"] if entry["group"] is None}
    assert found["files"][0]["means"]["tokens"] is None
    for name in ("tokens", "truncated", "self_bleu", "answer_entropy", "kl_base", "token_entropy"):
        assert entries[name]["mean"] is None
        assert entries[name]["drift"] is None
    assert found["null_test"]["halves"] == "prompts"


def test_gold_and_judge_columns(audit: Callable[..., Any], tmp_path: Path) -> None:
    # Claim: a judge that prefers right answers, and rises by 2 while gold does not, shows as a gap above 0, in shares of
    # right answers; styles are also compared among right answers alone.
    gold = [i % 2 == 0 for i in range(100)]
    draw = random.Random(1)
    judged = [[draw.gauss(shift + 2 * right, 1) for right in gold] for shift in (0, 2)]
    files = [write(tmp_path / f"{i}.jsonl", texts(i, 100), ok=gold, liked=judged[i]) for i in range(2)]
    (step,) = audit(*files, "--gold", "ok", "--judge", "liked")["steps"]
    outcomes = {entry["feature"]: entry for entry in step["outcomes"]}
    assert outcomes["gold"]["drift"] == 0
    assert outcomes["judge"]["drift"] == pytest.approx(2, abs=0.5)
    assert 0.1 < step["proxy_gap"]["low"] < step["predicted_rise"]["value"] < 0.5
    assert step["proxy_unknown"] is None
    assert {entry["group"] for entry in step["entries"]} == {None, "right", "wrong"}
    assert not alarmed(step)  # a judge's approval is wanted, and no style


def test_several_samples_a_prompt_are_compared_prompt_by_prompt(audit: Callable[..., Any], tmp_path: Path) -> None:
    # Claim: rows of one prompt may stand anywhere in the file; diversity is then known, and A/A halves the samples.
    rows = [{"prompt": f"Q{p}", "completion": f"{text} {s}"} for s in range(4) for p, text in enumerate(texts(s, 40))]
    files = []
    for name in ("a", "b"):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = audit(*files)
    entries = {entry["feature"]: entry for entry in found["steps"][0]["entries"]}
    assert found["prompts"] == 40
    assert entries["self_bleu"]["mean"] is not None
    assert found["null_test"]["halves"] == "samples"
    assert all(entry["drift"] in (0, None) for entry in entries.values())  # Oracle 1: identical texts do not differ


def test_lines_for_a_person_and_the_memory(
    ratchet: Callable[..., int], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Claim: it prints `ALARM <feature>` lines; MLflow has the audit once, however often it is asked, a nested run per file.
    longer = [text * 3 for text in texts(1, 60)]
    files = [write(tmp_path / "short.jsonl", texts(0, 60)), write(tmp_path / "long.jsonl", longer)]
    for _ in range(2):
        assert ratchet("audit", *files, "--home", home) == 0
        lines = capsys.readouterr().out.splitlines()
        assert any(line.startswith("  ALARM length: ") for line in lines)
    with mlflow_client(home) as client:
        place = experiment(client, home)
        (parent,) = client.search_runs([place], "tags.`ratchet.kind` = 'audit'")
        runs = audit_runs(client, place, parent.data.tags["ratchet.audit_id"])
        nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        steps = {metric.step for metric in client.get_metric_history(parent.info.run_id, "bias/words/mean")}
    assert parent.data.tags["alarm.level"] == "ALARM"
    assert sorted(run.info.run_name for run in nested) == ["0 short", "1 long"]
    assert steps == {0, 1}


def test_wrong_use_is_said_before_anything_is_compared(
    ratchet: Callable[..., int], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Claim: one file, files without a common prompt, or a checkpoint without prompts are wrong use (exit code 2).
    one, other = write(tmp_path / "one.jsonl", texts(0, 5)), tmp_path / "other.jsonl"
    other.write_text(json.dumps({"prompt": "something else", "completion": "x"}) + "\n")
    assert ratchet("audit", one, "--home", home) == 2
    assert ratchet("audit", one, other, "--home", home) == 2
    assert "--map prompt=COLUMN" in capsys.readouterr().err
    assert ratchet("audit", tmp_path, one, "--home", home) == 2
    assert "--prompts" in capsys.readouterr().err


@pytest.mark.slow
def test_checkpoints_are_drawn_from(audit: Callable[..., Any], run_micro: Callable[..., Any], tmp_path: Path) -> None:
    # Claim: a checkpoint against itself shows tokens, their entropy and a KL of 0, and nothing moved.
    campaign = run_micro("tiny_control", "rounds=1")
    checkpoint = campaign.store.find(campaign.rounds()[0].checkpoint.key).path
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{a}+{b}?"}) + "\n" for a in range(10, 20) for b in range(10, 14)))
    found = audit(checkpoint, checkpoint, "--prompts", prompts, "--samples", 2, "--max-tokens", 16)
    entries = {entry["feature"]: entry for entry in found["steps"][0]["entries"]}
    assert entries["tokens"]["mean"] > 0
    assert entries["token_entropy"]["mean"] > 0
    assert found["files"][1]["means"]["kl_base"] == pytest.approx(0, abs=1e-4)
    assert not found["steps"][0]["alarms"]


# -- the ledger over iterations -----------------------------------------------------------------------------------------
def test_halves_are_of_samples_where_there_are_several() -> None:
    # Claim: four samples split two and two; features of whole prompts stay out; one sample splits the prompts.
    wide, narrow = np.arange(8.0).reshape(2, 4), np.zeros((2, 1))
    first, second = halves(Sample({"wide": wide, "narrow": narrow}, wide))
    assert first.values.keys() == {"wide"}
    assert (first.values["wide"] == wide[:, :2]).all()
    assert second.right is not None
    assert (second.right == wide[:, 2:]).all()
    first, second = halves(Sample({"f": np.arange(5.0)[:, None]}))
    assert first.values["f"].shape == second.values["f"].shape == (2, 1)


def test_null_files_ring_hardly_ever() -> None:
    # Claim: of 40 series of three exchangeable files with 20 features each, at most 2 have an ALARM (the rule's q is .05).
    rng = np.random.default_rng(5)
    kinds: Any = {f"f{i}": "real" if i % 2 else "rate" for i in range(20)}
    draw: dict[str, Callable[[], Any]] = {
        "real": lambda: rng.normal(size=(300, 1)),
        "rate": lambda: rng.binomial(1, 0.1, (300, 1)) * 1.0,
    }
    series, by_halves = 0, 0
    for _ in range(40):
        samples = [Sample({name: draw[kind]() for name, kind in kinds.items()}) for _ in range(3)]
        series += any(alarm.level == "ALARM" for step in ledger_of(samples, kinds) for alarm in step.alarms)
        by_halves += any(alarm.level == "ALARM" for alarm in null_test(samples[0], kinds).alarms)
    assert series <= 2
    assert by_halves <= 2


# -- real outputs -------------------------------------------------------------------------------------------------------
CHAINS = {
    "phi-2": {"phi-2": 626, "phi-2-sft": 1068, "phi-2-dpo": 1687},
    "Mistral": {"Mistral-7B-Instruct-v0.2": 1676, "SPPO-Mistral7B-PairRM": 2114, "SPPO-Mistral7B-PairRM-ExPO": 2288},
}


@pytest.mark.slow
@pytest.mark.skipif(not ALPACA.exists(), reason="the recorded AlpacaEval outputs are not here")
@pytest.mark.parametrize("chain", CHAINS)
def test_recorded_chains_have_their_published_lengths(audit: Callable[..., Any], chain: str) -> None:
    # Claim: the mean characters over 805 instructions (a missing output counts as empty) are the leaderboard's avg_length.
    files = [ALPACA / f"{name}.jsonl.gz" for name in CHAINS[chain]]
    found = audit(*files, "--map", "prompt=i,completion=output")
    lengths = [int(file["means"]["characters"] * file["completions"] / 805 + 1e-9) for file in found["files"]]
    assert lengths == list(CHAINS[chain].values())
    assert not [alarm for alarm in found["null_test"]["alarms"] if alarm["level"] == "ALARM"]
    assert {"characters", "words"} <= alarmed(found["steps"][1])
    if chain == "phi-2":
        assert "lists" in alarmed(found["steps"][0])
        assert "lists" in alarmed(found["steps"][1])
