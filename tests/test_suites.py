"""Evaluation suites: further files that every checkpoint is measured on, and what is said when it gets worse there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import PromptsError
from data.store.campaign import Metric
from tasks.gate.training_alarms import forgetting


def problems(path: Path, *pairs: tuple[int, int]) -> Path:
    rows = [{"prompt": f"{a}+{b}?", "answer": str(a + b), "completion": f"#{a + b}"} for a, b in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_round_answers_the_suites(run_micro: Callable[..., Any], tmp_path: Path) -> None:
    # accuracy and likelihood of both checkpoints on files of one's own, copied when the campaign began
    pairs = [(a, b) for a in range(50000, 50003) for b in range(60000, 60004)]  # five digits: nobody trains on them
    path = problems(tmp_path / "far.jsonl", *pairs)
    suites = [{"name": "far", "path": str(path)}, {"name": "texts", "path": str(path), "measure": "logprob"}]
    table = ", ".join("{" + ", ".join(f'{k}="{v}"' for k, v in suite.items()) + "}" for suite in suites)
    first, last = run_micro("tiny_control", "rounds=1", f"suites=[{table}]").rounds()
    for measure in ("far/accuracy", "texts/logprob"):
        now, then, difference = (
            m[f"suite/{measure}{end}"] for m, end in ((last.metrics, ""), (first.metrics, ""), (last.metrics, "_vs_base"))
        )
        assert difference.n == now.n == 12
        assert difference.value == pytest.approx(now.value - then.value)
        assert f"suite/{measure}_vs_base" not in first.metrics
    assert last.metrics["suite/texts/logprob"].value < 0
    assert last.metrics["suite/texts/logprob_vs_base"].value != 0


def test_what_is_measured_is_not_trained_on(run_micro: Callable[..., Any], tmp_path: Path) -> None:
    # a suite that shares a prompt with the seed or rounds split is refused before anything is trained, in other words too
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    path = problems(tmp_path / "near.jsonl", *pairs)
    with pytest.raises(Exception, match="expected prompts that are only measured"):
        run_micro("tiny_control", "rounds=1", f'suites=[{{name="near", path="{path}"}}]')
    with pytest.raises(Exception, match="expected prompts that are only measured"):
        run_micro(
            "tiny_control", "rounds=1", f'suites=[{{name="near", path="{path}", template="What is {{prompt}}"}}]', name="b"
        )
    polite = [{**json.loads(line), "system": "Be brief."} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in polite))
    with pytest.raises(Exception, match="expected prompts that are only measured"):
        run_micro("tiny_control", "rounds=1", f'suites=[{{name="near", path="{path}", map={{system="system"}}}}]', name="c")


def test_what_the_system_message_holds_counts(tmp_path: Path) -> None:
    # the same words to the user under different system messages are different prompts
    from types import SimpleNamespace

    from data.recipe.settings import Columns, Prompts
    from data.rows import tables
    from data.rows.prompts import distinct
    from tasks.prompts.read_prompts import Settings, read_prompts

    def texts(name: str, *systems: str) -> Path:
        rows = [{"prompt": "Summarise the text.", "system": text} for text in systems]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    how = Columns(system="system")
    trained = tmp_path / "trained"
    trained.mkdir()
    for split, systems in (("seed", ()), ("rounds", ("Text one.", "Text two."))):
        rows = distinct(Prompts(source="file", path="x", map=how), texts(split, *systems)) if systems else []
        tables.write(tables.from_rows(rows, tables.PROMPTS), tables.PROMPTS, trained / f"{split}.parquet")

    def read(*systems: str) -> None:
        inputs = {"file": texts("suite", *systems), "prompts": trained}
        settings = Settings(map=how, template="{prompt}", answer_after="", trained="{prompt}")
        read_prompts(SimpleNamespace(settings=settings, inputs=inputs, out=tmp_path))  # type: ignore[arg-type]

    read("Text three.", "Text four.")
    with pytest.raises(PromptsError, match="found 1 of 2 in the rounds split"):
        read("Text two.", "Text four.")


def measured(value: float, low: float, high: float) -> dict[str, Metric]:
    now = Metric(value=0.5, n=200, split="all")
    return {
        "suite/far/accuracy": now,
        "suite/far/accuracy_vs_base": Metric(value=value, low=low, high=high, n=200, split="all"),
    }


def test_forgetting_is_an_alarm_when_it_stays() -> None:
    # surely worse by two points: a watch, and an ALARM in the second round running; better, unsure or by less: silence
    worse = measured(-0.1, -0.15, -0.05)
    assert [str(a) for a in forgetting(worse, {})] == [
        "watch suite far: Accuracy fell from 60.0% to 50.0% since round 0, on 200 prompts. To lose less: raise loss.beta, "
        "set gate.kl_budget, or lower train.steps."
    ]
    assert [a.level for a in forgetting(worse, worse)] == ["ALARM"]
    for spared in (measured(0.1, 0.05, 0.15), measured(-0.1, -0.21, 0.01), measured(-0.01, -0.015, -0.005)):
        assert not forgetting(spared, worse)
