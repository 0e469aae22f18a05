from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.run.parts import FAMILIES

CHECKOUT = Path(__file__).parents[1]
ROOMS = ("data", "tasks", "registry", "flows")
# The folders of two rooms, in the order in which they may import each other: only what stands before.
LADDERS = {
    "data": ("recipe", "store", "worlds", "rows"),
    "tasks": ("run", "models", "bias", "prompts", "generate", "score", "choose", "train", "evaluate", "gate"),
}
MAY_IMPORT = {"data": set(), "tasks": {"data"}, "registry": {"data"}, "flows": {"data", "tasks", "registry"}}
HEAVY = {"torch", "vllm", "trl", "transformers", "mlflow", "prefect"}
FLOW_FILES = (
    "flows/round/improve.py",
    "flows/round/calls.py",
    "flows/service/scheduled.py",
    "flows/service/campaign_worker.py",
)  # where Prefect's decorators and classes stand


def sources() -> list[Path]:
    return sorted(path for room in ROOMS for path in (CHECKOUT / room).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(CHECKOUT).as_posix()


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """The top-level packages that the import statements among `nodes` name; a relative one names the file's own room."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0] if node.level == 0 else "")
    return found - {""}


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: not in functions, not below `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from (inner for other in child.orelse for inner in (other, *at_import(other)))
            continue
        yield child
        yield from at_import(child)


def tree_in(readme: str) -> dict[str, list[str]]:
    """Python files per room in the README's fenced tree: `room/` on a line, then `  name.py   description` lines."""
    files: dict[str, list[str]] = {}
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", readme, re.MULTILINE | re.DOTALL):
        room = ""
        for line in block.splitlines():
            if heading := re.match(r"(\w+)/(\s|$)", line):
                room = heading[1]
                files.setdefault(room, [])
            elif room and (entry := re.match(r"\s+([\w/]+\.py)\s+\S", line)):
                files[room].append(entry[1])
            elif line.strip() and not line[0].isspace():
                room = ""
    return files


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_imports_form_a_ladder(path: Path) -> None:
    # data imports nothing of ours; tasks and registry only data, not each other; flows all; nobody imports flows or tests
    room = path.relative_to(CHECKOUT).parts[0]
    used = imported(ast.walk(ast.parse(path.read_text()))) & {*ROOMS, "tests"}
    assert used <= {room, *MAY_IMPORT[room]}


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_heavy_libraries_wait_until_they_are_needed(path: Path) -> None:
    # `--help` and `check` answer at once because nothing imports a heavy library while it is being imported itself
    allowed = {"prefect"} if name_of(path) in FLOW_FILES else set()
    assert imported(at_import(ast.parse(path.read_text()))) & HEAVY <= allowed


def test_only_registry_imports_mlflow() -> None:
    # the registry is the one place that knows MLflow
    users = {name_of(path).split("/")[0] for path in sources() if "mlflow" in imported(ast.walk(ast.parse(path.read_text())))}
    assert users == {"registry"}


def test_the_lazy_import_check_sees_what_it_should() -> None:
    # imports in classes, conditions and try blocks run at import; those in functions and below TYPE_CHECKING do not
    code = """
class A:
    import torch
try:
    import trl.x
except ImportError:
    pass
if TYPE_CHECKING:
    import mlflow
def f():
    import vllm
"""
    assert imported(at_import(ast.parse(code))) == {"torch", "trl"}


@pytest.mark.parametrize("folder", ["flows", "flows/round", "flows/service"])
def test_flow_files_bear_no_librarys_name(folder: str) -> None:
    # Prefect puts the folder of a flow's script first on sys.path: a file named like a library would be loaded in its place
    taken = set(sys.stdlib_module_names) | importlib.metadata.packages_distributions().keys()
    assert not {path.stem for path in (CHECKOUT / folder).glob("*.py")} & (taken - {"__init__"})


def test_commands_have_a_file_each() -> None:
    # what a person types is the name of the file that does it; few files hold two commands that belong together
    from flows.commands.all_commands import app

    together = {"resume": "run", "runs": "show", "recipes": "parts", "serve": None}
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    files = {path.stem for path in (CHECKOUT / "flows" / "commands").glob("*.py")}
    assert {together.get(name, name) for name in names} - {None} <= files


def test_the_tests_are_flat() -> None:
    # a package below tests/ could shadow a room (tests/tasks/__init__.py would)
    nested = {path.parent.name for path in (CHECKOUT / "tests").rglob("*.py")} - {"tests"}
    assert not nested & set(ROOMS)


def folders_imported(path: Path, room: str) -> set[str]:
    """The folders of `room` that a file imports from, also inside functions."""
    nodes = ast.walk(ast.parse(path.read_text()))
    modules = [n.module.split(".") for n in nodes if isinstance(n, ast.ImportFrom) and n.module and n.level == 0]
    return {parts[1] for parts in modules if parts[0] == room and len(parts) > 1} & set(LADDERS[room])


LADDER_FILES = [path for path in sources() if name_of(path).split("/")[0] in LADDERS]


@pytest.mark.parametrize("path", LADDER_FILES, ids=name_of)
def test_folders_of_a_room_form_a_ladder(path: Path) -> None:
    # a folder imports only folders before it; a file of the room itself (data/errors.py) imports none of them
    room, folder = path.relative_to(CHECKOUT).parts[:2]
    before = LADDERS[room][: LADDERS[room].index(folder) + 1] if folder in LADDERS[room] else ()
    assert folders_imported(path, room) <= set(before)


@pytest.mark.parametrize("room", LADDERS)
def test_the_ladder_names_every_folder(room: str) -> None:
    # every folder has its place in the order of imports, so a new folder must be added to it
    there = {path.parent.name for path in (CHECKOUT / room).glob("*/__init__.py")}
    assert there == set(LADDERS[room])


def test_only_shelves_lie_two_folders_deep() -> None:
    # every file lies in a room, in a folder of it, or on a shelf of parts in that folder
    deeper = {path.parent.relative_to(CHECKOUT).as_posix() for path in sources() if len(path.relative_to(CHECKOUT).parts) > 3}
    assert deeper == {shelf.replace(".", "/") for shelf in FAMILIES.values()}


def test_the_tree_parser_reads_the_form_the_readme_uses() -> None:
    # headings open a room, entries need a description, other code blocks do not count
    readme = """
```sh
ls x.py
```
```
data/      the nouns
  store.py      the artifact store
  shelf/part.py in a folder
  bare.py
flows/
  cli.py        the command line
ratchet
  no.py         in no room
```
"""
    assert tree_in(readme) == {"data": ["store.py", "shelf/part.py"], "flows": ["cli.py"]}
