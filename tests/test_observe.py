"""The stage that observes completions: every feature as a column, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data.errors import FeatureFailed, PartError, TableError
from data.recipe.settings import Hardware
from data.rows import tables
from tasks.bias import observe
from tasks.run.work import Work

Row = dict[str, Any]


def completions(prompts: int, samples: int) -> list[Row]:
    return [
        {
            "completion_id": f"{p}-{s}",
            "prompt_id": f"p{p}",
            "sample": s,
            "text": f"Sure! **{p}** might be {s}",
            "token_ids": [p, s, s],
            "logprobs": [-1.0, -2.0, -3.0],
            "finish_reason": "stop",
            "seed": None,
            "engine": "recorded",
        }
        for p in range(prompts)
        for s in range(samples)
    ]


def run(folder: Path, rows: list[Row], chosen: dict[str, Any], **inputs: Path) -> tuple[list[Row], list[Row]]:
    given, out = folder / "completions", folder / "out"
    given.mkdir(parents=True)
    out.mkdir()
    tables.write(tables.from_rows(rows, tables.COMPLETIONS), tables.COMPLETIONS, given / "completions.parquet")
    settings = observe.Settings(**{"features": {}, "prompt_features": {}, **chosen})
    observe.observe(Work("key", settings, {"completions": given, **inputs}, 0, out, folder, Hardware()))
    return pq.read_table(out / "features.parquet").to_pylist(), pq.read_table(out / "prompt_features.parquet").to_pylist()


def scores(folder: Path, rows: list[Row]) -> Path:
    folder.mkdir()
    made = [
        {
            "completion_id": r["completion_id"],
            "prompt_id": r["prompt_id"],
            "value": float(r["sample"] == 0),
            "status": "ok",
            "detail": str(r["sample"]),
        }
        for r in rows
    ]
    tables.write(tables.from_rows(made, tables.SCORES), tables.SCORES, folder / "scores.parquet")
    return folder


def test_every_feature_has_a_column_and_unknown_ones_are_null(tmp_path: Path) -> None:
    # Claim: without verdicts, prompts and reference log-probabilities, what needs them is null, and nothing else is.
    rows, per_prompt = run(tmp_path, completions(3, 2), observe.everything())
    assert len(rows) == 6
    assert len(per_prompt) == 3
    null = {name for name, value in (rows[0] | per_prompt[0]).items() if value is None}
    assert null == {
        *("mtld", "think_words", "answer_words"),  # too short, and nobody thinks here
        *("script_share", "kl_base", "kl_base_k1", "kl_base_start", "kl_base_token", "kl_previous", "kl_previous_k1"),
        *("answer_collision", "answer_entropy", "coverage_gap", "overconfidence"),
        *(
            "reflection_effect",
            "vote_brier",
            "vote_overconfidence",
        ),
    }


def test_verdicts_reach_the_features_that_ask_for_them(tmp_path: Path) -> None:
    # Claim: SCORES give verdicts and answers, row for row, prompt by prompt.
    rows = completions(3, 2)
    wanted: dict[str, Any] = {"prompt_features": {"coverage_gap": {}, "answer_collision": {}}}
    _, per_prompt = run(tmp_path / "a", rows, wanted, verdicts=scores(tmp_path / "s", rows))
    assert per_prompt == [{"prompt_id": f"p{p}", "coverage_gap": 0.5, "answer_collision": 0.0} for p in range(3)]


def test_scores_of_other_completions_are_refused(tmp_path: Path) -> None:
    # Claim: a table of scores whose rows do not match the completions one by one is an error, never a shifted reading.
    rows = completions(3, 2)
    wrong = scores(tmp_path / "s", rows[::-1])
    with pytest.raises(TableError, match="rows of the completions in their order"):
        run(tmp_path / "a", rows, {"prompt_features": {"coverage_gap": {}}}, verdicts=wrong)


def test_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: however small the batches, the tables are the same, and the samples of a prompt are seen together.
    rows = completions(7, 3)
    whole = run(tmp_path / "a", rows, observe.everything())
    monkeypatch.setattr(observe, "BATCH", 4)
    assert run(tmp_path / "b", rows, observe.everything()) == whole


def own(completions: Sequence[Row], *, digit: str = "1") -> list[float | None]:
    """A user's own feature."""
    return [float(digit in row["text"]) for row in completions]


def broken(completions: Sequence[Row]) -> list[float | None]:
    return [float("nan") for _ in completions]


KINDS = {"own": "rate"}


def test_a_users_own_feature_is_one_function(tmp_path: Path) -> None:
    # Claim: package.module:name with settings is a feature like any other, and its file may say what it measures.
    chosen = {"features": {"tests.test_observe:own": {"digit": "2"}}}
    rows, _ = run(tmp_path, completions(3, 1), chosen)
    assert [row["own"] for row in rows] == [0.0, 0.0, 1.0]
    assert observe.kinds(observe.Settings(**chosen, prompt_features={})) == {"own": "rate"}


def test_a_bad_feature_is_named(tmp_path: Path) -> None:
    # Claim: a value that is no number stops the stage with the feature's name; an unknown setting before anything is read.
    with pytest.raises(FeatureFailed, match="test_observe:broken' gave nan"):
        run(tmp_path / "a", completions(1, 1), {"features": {"tests.test_observe:broken": {}}})
    with pytest.raises(PartError, match="its settings: digit"):
        run(tmp_path / "b", completions(1, 1), {"features": {"tests.test_observe:own": {"digits": "2"}}})
