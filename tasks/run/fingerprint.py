"""A hash of the code that makes a stage's output: its module, its parts, and what they import. Kept in manifests, not in keys.

A changed fingerprint with an unchanged VERSION means that an artifact may be out of date; `tasks/run/stage.py` then warns.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

from tasks.run.parts import TEXTS, find
from tasks.run.work import stage_module

CHECKOUT = Path(__file__).parents[2]
ROOMS = ("data", "tasks")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)  # what may have a docstring
NO_OUTPUT = (  # modules, or folders of them, whose edits cannot change what an unchanged call of a stage writes
    "tasks.run",  # how a stage is found, bound and started; tests/test_stage.py shows equal bytes inline and in a process
    "data.store",  # where artifacts lie; the hashes and seeds that it computes are part of every key
    "data.errors",  # messages
    "data.recipe.recipe",  # what a recipe may contain: its values reach a stage as settings, which are part of the key
    "data.recipe.settings",
)


def fingerprint(stage: str, parts: Iterable[str] = ()) -> str:
    """The hash for a stage and the parts it binds, each "family:name" as in `Job.parts`."""
    return _fingerprint(stage, tuple(sorted(parts)))


def forget() -> None:
    """Drop what was read; the next call reads the sources again. For tests, which edit them."""
    _fingerprint.cache_clear()
    _read.cache_clear()


@functools.cache
def _fingerprint(stage: str, parts: tuple[str, ...]) -> str:
    modules = closure([stage_module(stage).__name__, *(name for part in parts for name in _module_of_part(part))])
    return hashlib.sha256("\n".join(f"{name} {_read(name)[0]}" for name in sorted(modules)).encode()).hexdigest()


def _module_of_part(part: str) -> list[str]:
    """The module of a part of ours. A judge's text and a user's own file are hashed whole in the key already."""
    family, _, name = part.partition(":")
    return [] if family in TEXTS or ":" in name else [find(family, name).__module__]


def closure(roots: Iterable[str]) -> set[str]:
    """The modules named, and those of data/ and tasks/ that they import, directly or through others."""
    reached: set[str] = set()
    waiting = set(roots)
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting |= _read(name)[1] - reached
    return reached


@functools.cache
def _read(module: str) -> tuple[str, frozenset[str]]:
    """The hash of a module's code, and the modules that it imports anywhere, also inside functions."""
    tree = ast.parse(read_source(_file(module)))
    imported = frozenset(name for node in ast.walk(tree) for name in _imported(node) if _counts(name))
    return hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest(), imported


def read_source(file: Path) -> str:
    return file.read_text()


def _imported(node: ast.AST) -> list[str]:
    """The modules that a statement imports: `from package import name` means a module where the package has one so named."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom) or not node.module:
        return []
    inner = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if _exists(name) else node.module for name in inner]


def _counts(module: str) -> bool:
    """Whether a module is ours and can shape output."""
    skipped = any(module == name or module.startswith(f"{name}.") for name in NO_OUTPUT)
    return module.split(".")[0] in ROOMS and not skipped and _exists(module)


def _exists(module: str) -> bool:
    return module.split(".")[0] in ROOMS and _file(module).is_file()


def _file(module: str) -> Path:
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded:
        return Path(loaded)
    place = CHECKOUT.joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return tree
