from __future__ import annotations

import ast
import time
from collections.abc import Iterator

import pytest

from tasks.run import fingerprint as fingerprints
from tasks.run.fingerprint import CHECKOUT, closure, fingerprint

STAGES = sorted(path.stem for path in (CHECKOUT / "tasks").glob("*/*.py") if "\nVERSION = " in path.read_text())
FUTURE = "from __future__ import annotations\n"  # in every file, once


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    fingerprints.forget()
    yield
    fingerprints.forget()


def edit(monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str) -> None:
    """Let the fingerprint read `file` with `old`, which must be there, replaced."""
    assert old in (CHECKOUT / file).read_text()
    read = fingerprints.read_source
    monkeypatch.setattr(
        fingerprints, "read_source", lambda path: read(path).replace(old, new) if path == CHECKOUT / file else read(path)
    )
    fingerprints.forget()


EDITS = {  # what is done -> file, before, after, the stage whose output it shapes
    "the DPO loss is doubled": (
        *("tasks/train/losses.py", '(row["weight"] * each).mean()', '2 * (row["weight"] * each).mean()', "train"),
    ),
    "Benjamini-Hochberg in place of -Yekutieli": (
        *("tasks/bias/ledger.py", 'method="by"', 'method="bh"', "bias"),
    ),
    "the alarm floor is .90": (
        *("tasks/bias/alarm_rule.py", "floor: float = 0.10", "floor: float = 0.90", "bias"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_of_an_import_changes_the_stage_that_imports_it(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # what makes the output is not in the stage's own file alone; a stage that does not import the file stays as it was
    file, old, new, stage = EDITS[what]
    before, unrelated = fingerprint(stage), fingerprint("prepare")
    edit(monkeypatch, file, old, new)
    assert fingerprint(stage) != before
    assert fingerprint("prepare") == unrelated


def test_a_part_counts_where_it_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    # a scorer's code changes the scores made with it, and no others; nor does a user's own file or a judge's text, which the
    # key holds whole
    def all_three() -> list[str]:
        own = ("scorers:tests.micro:ends_even", "judges:tiny_verdict")
        return [fingerprint("score", [part]) for part in ("scorers:exact_match", "scorers:judge")] + [fingerprint("score", own)]

    before = all_three()
    assert len(set(before)) == 3
    assert before[2] == fingerprint("score")
    edit(monkeypatch, "tasks/score/scorers/judge.py", FUTURE, f"{FUTURE}CHANGED = 1\n")
    exact, judge, neither = all_three()
    assert [exact, neither] == [before[0], before[2]]
    assert judge != before[1]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    from torch.nn.functional import logsigmoid\n", "    # why\n\n    from torch.nn.functional import logsigmoid\n"),
        ("The sigmoid loss with our terms", "Our sigmoid loss"),
        ('"""Losses that TRL lacks', '"""The losses that TRL lacks'),
        ("long, short = lengths", "(long,\n     short) = lengths"),
    ],
)
def test_words_and_layout_change_nothing(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # comments, docstrings and formatting may be edited without a warning about old artifacts
    before = fingerprint("train")
    edit(monkeypatch, "tasks/train/losses.py", old, new)
    assert fingerprint("train") == before


@pytest.mark.parametrize("file", ["data/errors.py", "tasks/run/parts.py", "data/recipe/settings.py", "data/store/store.py"])
def test_files_that_shape_no_output_are_left_out(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # a new message, recipe key or lock would otherwise warn about every artifact of a home
    before = [fingerprint(stage) for stage in STAGES]
    edit(monkeypatch, file, FUTURE, f"{FUTURE}CHANGED = 1\n")
    assert [fingerprint(stage) for stage in STAGES] == before


def test_imports_are_followed() -> None:
    # directly, through others, inside functions, and as `from package import module`
    trained = closure(["tasks.train.train"])
    assert {"tasks.train.losses", "tasks.train.trainers", "data.recipe.loss", "data.rows.tables"} <= trained
    assert "tasks.train.fit_reward" not in trained
    assert closure(["tasks.train.training_log"]) == {"tasks.train.training_log"}


def test_no_import_is_relative() -> None:
    # the fingerprint would not follow it
    files = [path for package in fingerprints.PACKAGES for path in (CHECKOUT / package).rglob("*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text())))
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes)


def test_it_costs_a_run_little() -> None:
    # a file is read once a process, and a stage asked for again costs microseconds
    for stage in STAGES:
        fingerprint(stage)
    reads = fingerprints._read.cache_info()
    assert reads.misses == reads.currsize
    began = time.perf_counter()
    for stage in STAGES:
        fingerprint(stage)
    assert time.perf_counter() - began < 0.001 * len(STAGES)
    assert fingerprints._read.cache_info() == reads
