"""The fingerprint: a hash of the code that makes a stage's output (its module, its parts, and what they import).

It is stored in manifests and is not part of keys. If it changed and VERSION did not, an artifact may be out of date;
`tasks/run/stage.py` then warns.
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
PACKAGES = ("data", "tasks")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)  # nodes that may have a docstring
NO_OUTPUT = (  # modules and packages that cannot change what an unchanged stage call writes
    "tasks.run",  # how a stage is found and started; tests/test_stage.py shows equal bytes inline and in a process
    "data.store",  # where artifacts are stored; the hashes and seeds that it computes are part of every key
    "data.errors",  # error types
    "data.recipe.recipe",  # recipes: their values reach a stage as settings, which are part of the key
    "data.recipe.settings",
)


def fingerprint(stage: str, parts: Iterable[str] = ()) -> str:
    """The hash for a stage and its parts, each given as "family:name" as in `Job.parts`."""
    return _fingerprint(stage, tuple(sorted(parts)))


def forget() -> None:
    """Clear the caches, so that the next call reads the sources again. For tests, which edit sources."""
    _fingerprint.cache_clear()
    _read.cache_clear()


@functools.cache
def _fingerprint(stage: str, parts: tuple[str, ...]) -> str:
    modules = closure([stage_module(stage).__name__, *(name for part in parts for name in _module_of_part(part))])
    return hashlib.sha256("\n".join(f"{name} {_read(name)[0]}" for name in sorted(modules)).encode()).hexdigest()


def _module_of_part(part: str) -> list[str]:
    """The module of a shipped part. A judge template or a user's own file is hashed in the key already."""
    family, _, name = part.partition(":")
    return [] if family in TEXTS or ":" in name else [find(family, name).__module__]


def closure(roots: Iterable[str]) -> set[str]:
    """The modules `roots`, and those of data/ and tasks/ that they import, directly or through others."""
    reached: set[str] = set()
    waiting = set(roots)
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting |= _read(name)[1] - reached
    return reached


@functools.cache
def _read(module: str) -> tuple[str, frozenset[str]]:
    """The hash of a module's code, and the modules that it imports, inside functions too."""
    tree = ast.parse(read_source(_file(module)))
    imported = frozenset(name for node in ast.walk(tree) for name in _imported(node) if _counts(name))
    return hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest(), imported


def read_source(file: Path) -> str:
    return file.read_text()


def _imported(node: ast.AST) -> list[str]:
    """The modules that a statement imports. In `from package import name`, the name may be a module of the package."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom) or not node.module:
        return []
    inner = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if _exists(name) else node.module for name in inner]


def _counts(module: str) -> bool:
    """Whether a module belongs to data/ or tasks/ and can change what a stage writes."""
    skipped = any(module == name or module.startswith(f"{name}.") for name in NO_OUTPUT)
    return module.split(".")[0] in PACKAGES and not skipped and _exists(module)


def _exists(module: str) -> bool:
    return module.split(".")[0] in PACKAGES and _file(module).is_file()


def _file(module: str) -> Path:
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded:
        return Path(loaded)
    path = CHECKOUT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return tree
