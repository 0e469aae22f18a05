"""The examples in tasks/README.md and data/README.md: each is taken out of the document as it stands there, and run."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data.recipe import recipe as recipes
from data.recipe.settings import Hardware
from data.recipe.templates import Template
from data.rows import tables
from tasks.bias import alarm_rule, overoptimisation
from tasks.choose import mitigations
from tasks.generate.engines import Batch, Decoding
from tasks.prompts.curators import PassRate
from tasks.run import parts
from tasks.run.work import Work
from tasks.score.scorers import Score

CHECKOUT = Path(__file__).parents[1]
DOCUMENTS = ("tasks/README.md", "data/README.md")
MARKED = re.compile(r"<!-- EXAMPLE (\w+) (\w+) ?(\{[^\n]*\})? -->\n```python\n# (\S+)\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A marked block. The marker says family, name and settings; the block's first line says the file it belongs in."""

    family: str
    name: str
    settings: dict[str, Any]
    file: str
    code: str


def examples() -> list[Example]:
    text = (CHECKOUT / "tasks/README.md").read_text()
    return [Example(f, n, json.loads(s or "{}"), file, code) for f, n, s, file, code in MARKED.findall(text)]


PARTS = {example.family: example for example in examples() if example.family != "stage"}


@pytest.fixture
def bind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Put a family's example into its file in a folder `my_parts`; find it and check its settings, as a recipe would."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def bound(family: str) -> Any:
        example = PARTS[family]
        file = tmp_path / "my_parts" / Path(example.file).name
        file.parent.mkdir(exist_ok=True)
        file.write_text(example.code)
        importlib.invalidate_caches()
        name = f"my_parts.{file.stem}:{example.name}"
        return functools.partial(parts.find(family, name), **parts.check_settings(family, name, example.settings))

    yield bound
    for name in [name for name in sys.modules if name.split(".")[0] == "my_parts"]:
        del sys.modules[name]


def prompt(number: int, answer: str | None) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"question {number}"}]
    empty = {"source": "test", "stratum": None, "difficulty": None}
    return {"prompt_id": tables.prompt_id(messages), "messages": messages, "answer": answer, **empty}


def completion(asked: dict[str, Any], sample: int, text: str, finish_reason: str = "stop") -> dict[str, Any]:
    name = tables.completion_id("test", asked["prompt_id"], sample)
    unknown = {"token_ids": None, "logprobs": None, "seed": None, "engine": "given"}
    return {
        "completion_id": name, "prompt_id": asked["prompt_id"], "sample": sample, "text": text,
        "finish_reason": finish_reason, **unknown,
    }  # fmt: skip


FOUR, OPEN = prompt(1, "4"), prompt(2, None)
RIGHT, LONGER, WRONG, CUT = (
    completion(FOUR, sample, text, reason)
    for sample, (text, reason) in enumerate(
        [("4", "stop"), ("Step 1\nStep 2\n4.2", "stop"), ("it is 7", "stop"), ("4", "length")]
    )
)
ROWS = [RIGHT, LONGER, WRONG, CUT]
VERDICTS = {"verifier": {row["completion_id"]: value for row, value in zip(ROWS, (1.0, 1.0, 0.0, 0.0), strict=True)}}


def test_every_family_has_an_example() -> None:
    # one worked example a family, and one of a stage
    assert PARTS.keys() == parts.FAMILIES.keys()
    assert len(examples()) == len(parts.FAMILIES) + 1


def test_no_python_block_is_unmarked() -> None:
    # an example that nobody runs would rot
    for document in DOCUMENTS:
        assert (CHECKOUT / document).read_text().count("```python") == (len(examples()) if document.startswith("tasks") else 0)


def test_the_scorer_reads_the_gold_answer(bind: Any) -> None:
    # right within the tolerance, wrong beyond it, no value where there is no answer, and a cut answer is never right
    no_number = completion(FOUR, 4, "none")
    rows = [*ROWS, no_number, completion(OPEN, 0, "4")]
    scores = bind("scorers")([*[FOUR] * 5, OPEN], rows)
    assert scores == [
        Score(1.0, "ok", "4"), Score(1.0, "ok", "4.2"), Score(0.0, "ok", "7"), Score(0.0, "truncated"),
        Score(0.0, "no_answer_found"), Score(None, "no_answer"),
    ]  # fmt: skip


def test_the_selector_selects(bind: Any) -> None:
    # one row of SELECTED: the longest right completion that was not cut
    chosen = tables.from_rows(bind("selectors")(ROWS, VERDICTS["verifier"], VERDICTS), tables.SELECTED)
    assert chosen["completion_id"].to_pylist() == [LONGER["completion_id"]]


def test_the_pairer_pairs(bind: Any) -> None:
    # one row of PAIRS: right against wrong
    pairs = tables.from_rows(bind("pairers")(ROWS, VERDICTS["verifier"], VERDICTS), tables.PAIRS)
    assert pairs.select(["chosen_id", "rejected_id", "margin"]).to_pylist() == [
        {"chosen_id": RIGHT["completion_id"], "rejected_id": WRONG["completion_id"], "margin": 1.0}
    ]


def test_the_curator_curates(bind: Any) -> None:
    # what was never sampled and what is solved at times stay, in order; what is always or never solved goes
    asked = [prompt(number, "1") for number in range(4)]
    history = [{asked[number]["prompt_id"]: PassRate(right, 4) for number, right in ((1, 4), (2, 2), (3, 0))}]
    assert bind("curators")(asked, history) == [asked[0], asked[2]]


def test_the_engine_samples(bind: Any, tmp_path: Path) -> None:
    # n rows a prompt that fit COMPLETIONS, no seed twice
    engine = bind("engines")(tmp_path)
    ((index, rows),) = engine.sample([Batch([FOUR, OPEN], 0, [10, 12])], Decoding(2, 1.0, 1.0, 8))
    engine.close()
    asked = [FOUR, FOUR, OPEN, OPEN]
    full = [{**completion(p, i, ""), **row, "engine": "constant"} for i, (p, row) in enumerate(zip(asked, rows, strict=True))]
    table = tables.from_rows(full, tables.COMPLETIONS)
    assert (index, table["text"].to_pylist(), table["seed"].to_pylist()) == (0, ["4"] * 4, [10, 11, 12, 13])
    assert engine.length(FOUR) == len("question 1")


def test_the_feature_counts(bind: Any) -> None:
    # one number a completion, and the ledger is told that it is a count
    assert bind("features")(ROWS) == [0.0, 2.0, 0.0, 0.0]
    assert {PARTS["features"].name: "length"} == sys.modules["my_parts.features"].KINDS


def test_the_prompt_feature_compares_samples(bind: Any) -> None:
    # one number a prompt, None where it cannot be known
    assert bind("prompt_features")([ROWS, [RIGHT]]) == [4.0, None]


def test_the_mitigation_changes_rewards(bind: Any) -> None:
    # it caps, leaves the unknown unknown, and its module's name makes it one of rewards
    bind("mitigations")
    wanted = [{"mitigation": f"my_parts.rewards:{PARTS['mitigations'].name}", "settings": PARTS["mitigations"].settings}]
    reward = {RIGHT["completion_id"]: 3.0, WRONG["completion_id"]: -1.0, LONGER["completion_id"]: None}
    capped = {RIGHT["completion_id"]: 1.0, WRONG["completion_id"]: -1.0, LONGER["completion_id"]: None}
    assert mitigations.apply("rewards", wanted, reward, ROWS, VERDICTS) == capped
    assert mitigations.apply("chosen", wanted, [], ROWS, VERDICTS) == []


def test_the_stage_writes_its_table(tmp_path: Path) -> None:
    # the function has the file's name, and writes METRICS: three of four texts differ
    (example,) = (example for example in examples() if example.family == "stage")
    module: dict[str, Any] = {"__name__": "example"}
    exec(compile(example.code, example.file, "exec"), module)
    for name in ("in", "out", "scratch"):
        (tmp_path / name).mkdir()
    tables.write(tables.from_rows(ROWS, tables.COMPLETIONS), tables.COMPLETIONS, tmp_path / "in" / "completions.parquet")
    settings = module["Settings"](split="held_out")
    inputs = {"completions": tmp_path / "in"}
    module[Path(example.file).stem](Work("key", settings, inputs, 0, tmp_path / "out", tmp_path / "scratch", Hardware()))
    (row,) = tables.read(tmp_path / "out" / "metrics.parquet", tables.METRICS).to_pylist()
    assert (row["metric"], row["value"], row["n"]) == ("unique_share", 0.75, 1)


# -- alarms -------------------------------------------------------------------------------------------------------------
def alarms_named() -> set[str]:
    """The names in calls of Alarm(...): short constants that are neither a level nor a source."""
    calls = [
        node
        for path in (*(CHECKOUT / "tasks/bias").glob("*.py"), *(CHECKOUT / "tasks/gate").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Alarm"
    ]
    constants = {a.value for call in calls for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return {text for text in constants if len(text) < 40} - {"watch", "ALARM", "STOP", "ledger", "training", "suite"}


def test_every_alarm_is_explained() -> None:
    # a new alarm has a row in the tables, with its rule and a remedy
    text = (CHECKOUT / "tasks/README.md").read_text()
    named = alarms_named() | {overoptimisation.ALARM_NAME} | {feature for feature, _ in alarm_rule.LIMITS}
    assert {"loss stuck", "answer collapse", "finish rate", "judge", "pairs"} <= named
    assert not [name for name in named if not re.search(rf"\| `{name}[^|]*\| (watch|ALARM|STOP): ", text)]


def explained_features() -> dict[str, str]:
    """Feature -> the remedies in its row of the table of ledger alarms."""
    section = (CHECKOUT / "tasks/README.md").read_text().partition("### Source: ledger, features")[2].partition("\n### ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| `")]
    return {name: row[3] for row in rows for name in re.findall(r"`([^`]+)`", row[0])}


@pytest.mark.parametrize("family", ["features", "prompt_features"])
def test_every_feature_is_explained_with_its_remedies(family: str) -> None:
    # the table names every feature that can alarm, and what the alarm itself names as acting on it
    explained = explained_features()
    for name, part in parts.public(family).items():
        if not name.startswith("kl_"):  # not known at round 0: never an alarm
            kind = getattr(sys.modules[part.__module__], "KINDS", {}).get(name, "real")
            remedies = explained[name.removesuffix("_density")]
            assert not [remedy for remedy in alarm_rule.mitigations(name, kind) if f"`{remedy}`" not in remedies], name


# -- links --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    # a file that is there, and in these two documents a heading that is there
    for target in re.findall(r"\]\(([^)\s]+)\)", (CHECKOUT / document).read_text()):
        place, _, anchor = target.partition("#")
        file = ((CHECKOUT / document).parent / place).resolve() if place else CHECKOUT / document
        known = file.relative_to(CHECKOUT.resolve()).as_posix()
        assert file.exists() or known in ("flows/README.md", "registry/README.md", "tests/README.md"), target
        if anchor and known in DOCUMENTS:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings], target


# -- recipes ------------------------------------------------------------------------------------------------------------
BLOCKS = [
    (name, block) for name in DOCUMENTS for block in re.findall(r"```toml\n(.*?)```", (CHECKOUT / name).read_text(), re.DOTALL)
]


@pytest.mark.parametrize(("document", "block"), BLOCKS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BLOCKS)])
def test_toml_blocks_are_recipes(document: str, block: str) -> None:
    # each block, put over a recipe for files of one's own, is a recipe that validates; a judge's template is one
    found = tomllib.loads(block)
    if "labels" in found:
        assert Template.model_validate(found)
        return
    values = tomllib.loads(recipes.find("iterative_dpo").read_text()) | {"model": {"path": "my-model"}}
    values["prompts"]["path"] = "train.jsonl.gz"
    if "select" in found:
        values |= {"loss": {}}
        del values["pair"]
    for table, inner in found.items():
        values[table] = {**values.get(table, {}), **inner} if isinstance(inner, dict) else inner
    assert recipes.build(values, document)
