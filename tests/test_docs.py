"""The READMEs: generated blocks, links, paths and sentence lengths. `python -m tests.test_docs` writes the blocks anew."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
from pydantic import BaseModel

from data.recipe.recipe import Recipe, shipped
from data.rows import tables
from tasks.run import parts
from tests import prose

ROOT = Path(__file__).parent.parent
ROOM_READMES = tuple(f"{room}/README.md" for room in ("flows", "tasks", "data", "registry", "tests"))
READMES = ("README.md", *ROOM_READMES)


# -- trees, stages, parts ------------------------------------------------------------------------------------------------
def tree(room: str) -> str:
    """A line per file: its place in the room and the first line of its docstring."""
    lines = [f"{room}/"]
    for path in sorted((ROOT / room).rglob("*.py")):
        place = path.relative_to(ROOT / room)
        if place.name != "__init__.py" or len(place.parts) > 1:
            lines.append(f"  {place.as_posix():<30} {_first_line(ast.parse(path.read_text())).rstrip('.')}".rstrip())
    return "```\n" + "\n".join(lines) + "\n```"


def stage_table() -> str:
    """A stage is a function with the name of its file, in a file that has a VERSION."""
    rows = ["| stage | file | what it writes |", "|---|---|---|"]
    for path in sorted((ROOT / "tasks").glob("*/*.py")):
        body = ast.parse(path.read_text()).body
        stage = next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == path.stem), None)
        if stage and any(isinstance(node, ast.Assign) and "VERSION" in ast.unparse(node.targets[0]) for node in body):
            place = path.relative_to(ROOT / "tasks").as_posix()
            rows.append(f"| `{stage.name}` | [{place}]({place}) | {_cell(_first_sentence(stage))} |")
    return "\n".join(rows)


def part_table() -> str:
    rows = ["| family | name | settings | what it does |", "|---|---|---|---|"]
    rows += [
        f"| {family} | `{row['name']}` | {row['settings'] or '-'} | {row['about']} |".replace("|c|", "c")
        for family in parts.FAMILIES
        for row in parts.listing(family)
    ]
    return "\n".join(rows)


def _first_line(node: ast.Module | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").split("\n")[0]


def _first_sentence(node: ast.FunctionDef) -> str:
    """The first paragraph of a docstring, up to its first full stop."""
    paragraph = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    return prose.sentences(paragraph)[0] if paragraph else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# -- commands --------------------------------------------------------------------------------------------------------------
def commands() -> str:
    """A heading per command, as `--help` has it: what it does, examples, arguments and options."""
    import typer.main

    from flows.commands.all_commands import app

    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    about, _, examples = inspect.cleandoc(command.help or "").partition("Example")
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join(["ratchet", name, *(p.metavar or p.name.upper() for p in arguments)])
    lines = [f"### `{usage}`", "", about.strip()]
    examples = "\n".join(line.strip() for line in examples.partition(":")[2].splitlines() if line.strip())
    if examples:
        lines += ["", "```", examples, "```"]
    rows = [_parameter(p) for p in command.params]
    if rows:
        lines += ["", "| argument or option | meaning |", "|---|---|", *rows]
    return "\n".join(lines)


def _parameter(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"| `{_cell(parameter.metavar or parameter.name.upper())}` | {_cell(parameter.help or '')} |"
    value = "" if parameter.is_flag else f" {parameter.metavar or _kind(parameter)}"
    default = f" Default: `{parameter.default}`." if parameter.default not in (None, "", False, ()) else ""
    return f"| `{', '.join(parameter.opts)}{value}` | {_cell(parameter.help or '')}{default} |"


def _kind(option: Any) -> str:
    kinds = {Path: "PATH", int: "NUMBER", float: "NUMBER"}
    return kinds.get(option.type_descriptor.annotation, "TEXT")


# -- recipe reference ------------------------------------------------------------------------------------------------------
def reference() -> str:
    """A heading per table of a recipe, then a row per key."""
    sections: list[str] = []
    _section("", Recipe, None, False, {}, sections)
    return "\n\n".join(sections)


def _section(
    place: str, model: type[BaseModel], table: BaseModel | None, many: bool, listed: dict[type, str], sections: list[str]
) -> None:
    """Append the section of a table and those of the tables in it; `listed` says which heading describes a model already."""
    heading = (f"[[{place}]]" if many else f"[{place}]") if place else "Top level"
    listed[model] = heading
    intro = "" if model is Recipe else " ".join((model.__doc__ or "").split("\n\n")[0].split())
    rows = ["| key | default | meaning |", "|---|---|---|"]
    inner_tables: list[tuple[str, type[BaseModel], Any, bool]] = []
    for key, field in model.model_fields.items():
        value = getattr(table, key) if table else field.get_default(call_default_factory=True)
        inner, several = _nested(field.annotation), typing.get_origin(field.annotation) is tuple
        meaning = _choices(field.annotation, field.description or "")
        default = "required" if field.is_required() else _plain(value)
        if inner:
            where = f"{place}.{key}".lstrip(".")
            new = inner not in listed and all(other is not inner for _, other, *_ in inner_tables)
            if new:
                inner_tables.append((where, inner, value if isinstance(value, BaseModel) else None, several))
            name = (f"[[{where}]]" if several else f"[{where}]") if new else listed.get(inner, "")
            see = f"{'see' if new else 'as'} `{name}`"
            meaning = f"{meaning}; {see}" if meaning else see
            default = "" if isinstance(value, BaseModel) else default
        rows.append(f"| `{key}` | {default} | {_cell(meaning)} |")
    sections.append("\n".join([f"### `{heading}`" if place else f"### {heading}", "", *([intro, ""] if intro else []), *rows]))
    for where, inner, value, several in inner_tables:
        if inner not in listed:
            _section(where, inner, value, several, listed, sections)


def _nested(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation, also in `Model | None` and `tuple[Model, ...]`."""
    kinds = [annotation, *typing.get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _choices(annotation: Any, meaning: str) -> str:
    """The meaning, and behind it the values that a Literal allows."""
    kinds = [annotation, *typing.get_args(annotation)]
    literal = next((kind for kind in kinds if typing.get_origin(kind) is Literal), None)
    allowed = f"{'one' if literal is annotation else 'any'} of {', '.join(typing.get_args(literal))}" if literal else ""
    whole = "; ".join(filter(None, [meaning, allowed]))
    return re.sub(r"<(\w+)>", r"&lt;\1&gt;", whole)  # a word between < and > would be read as HTML


def _plain(value: object) -> str:
    if value in ("", None, ()):
        return ""
    if isinstance(value, tuple):  # what was set of each table, or the plain values as TOML has them
        sets = [list(one.model_dump(exclude_unset=True).values()) if isinstance(one, BaseModel) else one for one in value]
        value = ", ".join(str(one[0]) for one in sets if isinstance(one, list)) or json.dumps(sets)
    return f"`{value}`".replace("\n", "\\n")  # a line break would end the row


# -- Parquet schemas -------------------------------------------------------------------------------------------------------
def schemas() -> str:
    """A heading per table; the meaning of a column is the comment behind it in data/rows/tables.py."""
    found = {name: value for name, value in vars(tables).items() if isinstance(value, pa.Schema)}
    found |= {"FEATURES": tables.features("<feature>"), "PROMPT_FEATURES": tables.prompt_features("<feature>")}
    notes = _comments((ROOT / "data/rows/tables.py").read_text())
    return "\n\n".join(_schema(name, schema, notes.get(name, {})) for name, schema in found.items())


def _schema(name: str, schema: pa.Schema, notes: dict[str, str]) -> str:
    rows = ["| column | type | null allowed | meaning |", "|---|---|---|---|"]
    for field in schema:
        kind = str(field.type).replace(" not null", "")
        note = _cell(notes.get(field.name, ""))
        rows.append(f"| `{field.name}` | `{kind}` | {'yes' if field.nullable else 'no'} | {note} |".replace("|  |", "| |"))
    return f"### {name}\n\n" + "\n".join(rows)


def _comments(source: str) -> dict[str, dict[str, str]]:
    """By schema and column, the comment on the column's lines."""
    found: dict[str, dict[str, str]] = {}
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name):
            notes = found.setdefault(node.targets[0].id, {})
            for keyword in node.value.keywords:
                first, last = keyword.value.lineno - 1, (keyword.value.end_lineno or keyword.value.lineno)
                comment = " ".join(line.partition("  # ")[2].strip() for line in lines[first:last])
                if keyword.arg and comment.strip():
                    notes[keyword.arg] = comment.strip()
    return found


# -- the blocks ------------------------------------------------------------------------------------------------------------
BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "flows/README.md": {"COMMANDS": commands, "TREE": lambda: tree("flows")},
    "tasks/README.md": {"STAGES": stage_table, "PARTS": part_table, "TREE": lambda: tree("tasks")},
    "data/README.md": {"REFERENCE": reference, "SCHEMAS": schemas, "TREE": lambda: tree("data")},
    "registry/README.md": {"TREE": lambda: tree("registry")},
}


def rendered(name: str, text: str) -> str:
    """A README with each of its blocks made anew."""
    for block, make in BLOCKS[name].items():
        new = f"<!-- {block} -->\n{make()}\n<!-- /{block} -->"
        text, count = re.subn(rf"<!-- {block} -->.*?<!-- /{block} -->", new.replace("\\", r"\\"), text, flags=re.DOTALL)
        assert count == 1, f"{name}: expected one block <!-- {block} --> ... <!-- /{block} -->, found {count}"
    return text


def existing(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if (ROOT / name).exists()]


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_current(name: str) -> None:
    # Claim: what a README generates from code is what the code says now; `python -m tests.test_docs` renews it.
    if not (ROOT / name).exists():
        pytest.skip(f"{name} is not written yet")
    assert (ROOT / name).read_text() == rendered(name, (ROOT / name).read_text()), "run: python -m tests.test_docs"


def test_every_setting_is_in_the_reference() -> None:
    # Claim: each key of each table of a recipe has a row below a heading of its own table, and no table is described twice.
    text = reference()
    headings = re.findall(r"^### (.*)$", text, flags=re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert {"`[generate]`", "`[[score]]`", "`[train.lora]`", "`[gate.on_alarm]`", "`[[at]]`"} <= set(headings)
    generate = text.split("### `[generate]`")[1].split("###")[0]
    assert "| `n` | `8` | completions per prompt" in generate


def test_every_stage_is_in_the_table() -> None:
    # Claim: the table of stages has the stages that a round can call, each with what it writes.
    rows = stage_table().splitlines()[2:]
    assert len(rows) > 25
    assert not [row for row in rows if row.endswith("|  |")]


# -- the glossary of metrics -------------------------------------------------------------------------------------------------
# calls whose first text is the name of a metric
NAMING = {"_metric", "_average", "_share", "_found", "_row", "_mean", "mean", "paired", "Metric"}


def metric_names() -> set[str]:
    """Names of metrics in the source: texts in calls that make one, what the ledger shows, and columns of counterfactuals.

    What an f-string fills in is left out: `prefers_{edit}` is known as `prefers_`.
    """
    found: set[str] = set()
    for path in (ROOT / "tasks/evaluate").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in NAMING:
                found |= {text for argument in node.args if (text := _leading_text(argument))}
            if isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                found |= {_leading_text(value) for key, value in pairs if key and _leading_text(key) == "metric"}
    for path in (ROOT / "flows/round").glob("*.py"):
        found |= set(re.findall(r"""metrics\[f?"([\w/@]+)""", path.read_text()))
    probe = importlib.import_module("flows.round.probe")
    return (found | set(probe.SHOWN) | {"level", "round_seconds"}) - {""}


def _leading_text(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]):
            return text
    return ""


def test_every_metric_is_in_the_glossary() -> None:
    # Claim: registry/README.md has a line for each metric that a stage or a round makes, and for each fact about chosen data.
    glossary = (ROOT / "registry/README.md").read_text()
    names = metric_names()
    assert {"accuracy", "within_prompt_auroc", "logprob", "truncated", "length_gap", "d0"} <= names
    facts = ast.parse((ROOT / "tasks/choose/chosen_facts.py").read_text())
    functions = [node for node in facts.body if isinstance(node, ast.FunctionDef) and node.name.endswith("_facts")]
    keys = {key.value for f in functions for node in ast.walk(f) if isinstance(node, ast.Dict) for key in node.keys if key}  # type: ignore[attr-defined]
    assert not sorted(name for name in names if f"`{name}" not in glossary and f"/{name}" not in glossary)
    assert not sorted(key for key in keys if f"`facts.{key}" not in glossary)


# -- links, paths, sentences -----------------------------------------------------------------------------------------------
def anchors(text: str) -> set[str]:
    """The anchors of a file's headings, as Git hosts make them."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(name: str) -> Iterator[str]:
    here = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", here.read_text()):
        place, _, anchor = target.partition("#")
        path = (here.parent / place).resolve() if place else here
        waits = place.endswith("README.md") and path.relative_to(ROOT).as_posix() in ROOM_READMES
        if "://" in target or (waits and not path.exists()):
            continue
        if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
            yield f"{name}: {target}"


def test_links_lead_somewhere() -> None:
    # Claim: every link from one of our Markdown files to another finds its file and its heading.
    names = existing((*READMES, "CONTRIBUTING.md", "CHANGELOG.md"))
    assert not [link for name in names for link in broken_links(name)]


def test_named_files_exist() -> None:
    # Claim: a path to a source file that a Markdown file names in `code` is there.
    named = re.compile(r"`((?:data|tasks|registry|flows|tests)/[a-z0-9_/]+\.(?:py|toml|json))`")
    names = existing((*READMES, "CONTRIBUTING.md"))
    paths = {path for name in names for path in named.findall((ROOT / name).read_text())}
    assert not sorted(path for path in paths if not (ROOT / path).exists())


def test_the_top_page_is_a_page() -> None:
    # Claim: README.md has at most 200 lines.
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_every_recipe_is_on_the_top_page() -> None:
    # Claim: README.md names each shipped recipe, but for those of the tiny world.
    text = (ROOT / "README.md").read_text()
    assert not [name for name in shipped() if not name.startswith("tiny_") and f"`{name}`" not in text]


@pytest.mark.parametrize("name", [*READMES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_sentences_are_short(name: str) -> None:
    # Claim: half of a README's sentences have at most 15 words, at most 2% more than 30, and none more than 35.
    if not (ROOT / name).exists():
        pytest.skip(f"{name} is not written yet")
    text = (ROOT / name).read_text()
    found = prose.of_markdown(text)
    assert found.median <= 15
    assert found.over(30) <= 0.02, prose.longest(text, 30)
    assert not prose.longest(text, 35)


def test_a_long_sentence_is_counted() -> None:
    # Claim: prose is measured without code, tables and headings, and a sentence of 36 words counts as over 35.
    long = "Word" + " word" * 35 + "."
    text = f"# A heading\n\nOne two three. {long}\n\n```\n{long}\n```\n\n| {long} |\n\n- An item\n- Another, e.g. this one.\n"
    assert prose.of_markdown(text).lengths == (3, 36, 2, 4)


@pytest.fixture(scope="module")
def printed() -> dict[str, list[str]]:
    return prose.printed({name: text for name, text in prose.here().items() if name.endswith(".py")})


@pytest.mark.parametrize("kind", prose.PRINTED)
def test_printed_sentences_are_short(kind: str, printed: dict[str, list[str]]) -> None:
    # Claim: what the program prints keeps the limits of the READMEs: median 15 words, 2% above 30, none above 35.
    counted = prose.of_texts(printed[kind])
    assert counted.median <= 15
    assert counted.over(30) <= 0.02, [long for text in printed[kind] for long in prose.longest(text, 30)]
    assert not [long for text in printed[kind] for long in prose.longest(text, 35)]


def test_every_command_is_counted(printed: dict[str, list[str]]) -> None:
    # Claim: the docstrings that are counted are those of the command line: each of its commands, and itself.
    import typer.main

    from flows.commands.all_commands import app

    group: Any = typer.main.get_command(app)
    helps = [group.help, *(command.help for command in group.commands.values())]
    firsts = {inspect.cleandoc(text).split("\n")[0] for text in helps}
    assert {text.split("\n")[0] for text in printed["docstrings of commands"]} == firsts
    assert len(printed["docstrings of commands"]) == len(helps) > 15


def test_messages_are_counted() -> None:
    # Claim: a raised text, one that a rule yields and the help of an option are found; a name or a path is no sentence.
    source = """
def rule(recipe) -> Messages:
    yield f"found {recipe.name}, expected another one; remove it"
def check(name: Annotated[str, typer.Option(help="Name of the thing.")]) -> None:
    raise KeyError(name)
    raise PartError(f"no {name}, " + "choose another")
"""
    texts = prose.printed({"a.py": source})
    assert texts["error messages"] == ["no X, choose another", "found X, expected another one; remove it"]
    assert texts["help of options"] == ["Name of the thing."]


def test_every_command_has_examples() -> None:
    # Claim: `--help` of every command shows how it is called.
    import typer.main

    from flows.commands.all_commands import app

    group: Any = typer.main.get_command(app)
    lacking = [
        name for name, command in group.commands.items() if f"ratchet {name}" not in command.help.partition("Example")[2]
    ]
    assert not lacking


def test_no_package_index_is_named() -> None:
    # Claim: no file that is shipped names the host of a package index.
    hosts = re.compile(r"https?://[a-z0-9.-]*(pypi|pythonhosted|debian|npmjs)", re.IGNORECASE)
    places = [ROOT, *(ROOT / room for room in ("data", "data/recipes", "tasks", "flows", "registry", "tests", ".ci"))]
    files = [path for place in places for path in place.iterdir() if path.is_file()]
    assert not [path.name for path in files if hosts.search(path.read_text(errors="replace"))]


if __name__ == "__main__":
    for readme in existing(tuple(BLOCKS)):
        (ROOT / readme).write_text(rendered(readme, (ROOT / readme).read_text()))
        print(f"wrote {readme}")
