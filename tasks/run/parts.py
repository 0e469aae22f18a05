"""From a part's name in a recipe to the function: the shelves, binding with checked settings, and what `parts` lists.

A name is a public function or class of its shelf (a module, or a folder of them), or `package.module:name` for a user's own.
Its keyword-only parameters (a class: those of `__init__`) are its settings. A parameter named in SUPPLIED is no setting: the
stage gives it, from the hardware or from an input that the round passes only to parts that want it (`needs`).
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from data.errors import PartError, did_you_mean
from data.recipe import templates

T = TypeVar("T")
FAMILIES = {  # family -> its shelf, a package
    "scorers": "tasks.score.scorers",
    "selectors": "tasks.choose.selectors",
    "pairers": "tasks.choose.pairers",
    "curators": "tasks.prompts.curators",
    "engines": "tasks.generate.engines",
    "features": "tasks.bias.features",
    "prompt_features": "tasks.bias.prompt_features",
    "mitigations": "tasks.choose.mitigations",
}
SUPPLIED = (  # given by the stage, never settings
    *("workers", "device", "dtype", "trust_remote_code", "warm", "checkpoint"),
    *("verdicts", "origins", "against", "prompts", "answers", "own_logprobs", "base_logprobs", "previous_logprobs"),
    *("requests", "scratch", "record", "rollouts"),
)
TEXTS = {"judges": templates.digest}  # what a part may stand on that is no code: family -> hash of the file


def modules(family: str) -> list[ModuleType]:
    """The files of a shelf: a folder whose `__init__` holds what they share."""
    shelf = importlib.import_module(FAMILIES[family])
    names = sorted(found.name for found in pkgutil.iter_modules(shelf.__path__))
    return [shelf, *(importlib.import_module(f"{FAMILIES[family]}.{name}") for name in names)]


def public(family: str) -> dict[str, Callable[..., Any]]:
    """The parts of a shelf: public functions and classes that its own files define, less what a file lists as NOT_PARTS.

    Raises:
        PartError: two files define a part of the same name.
    """
    parts: dict[str, Callable[..., Any]] = {}
    for module in modules(family):
        for name, part in vars(module).items():
            if not callable(part) or getattr(part, "__module__", "") != module.__name__:
                continue
            if name.startswith("_") or name in getattr(module, "NOT_PARTS", ()):
                continue
            if name in parts:
                raise PartError(f"{family}: '{name}' is defined in {parts[name].__module__} and in {module.__name__}")
            parts[name] = part
    return parts


def find(family: str, name: str) -> Callable[..., Any]:
    """The function or class a recipe names.

    Raises:
        PartError: no such part, with the closest name.
    """
    if ":" in name:
        return _users_own(family, name)
    known = public(family)
    if name not in known:
        raise PartError(f"{family}: no '{name}'{did_you_mean(name, known)}; known: {', '.join(known)}, or package.module:name")
    return known[name]


def _users_own(family: str, name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    folders = os.environ.get("RATCHET_PARTS", "").split(os.pathsep)  # of the launcher; workers inherit it
    sys.path += [folder for folder in folders if folder and folder not in sys.path]  # at the end: they hide no other module
    try:
        part = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # it is the user's file: whatever it raises
        raise PartError(
            f"{family}: cannot import '{name}': {type(error).__name__}: {error}; expected package.module:name on PYTHONPATH"
        ) from error
    if not callable(part):
        raise PartError(f"{family}: '{name}' is not a function or class")
    return part  # type: ignore[no-any-return]


def configure(family: str, name: str, settings: Mapping[str, Any], **supplied: Any) -> Callable[..., Any]:
    """The part with its settings checked and filled in; a class is instantiated once here.

    Raises:
        PartError: an unknown setting or a wrong type.
    """
    part = find(family, name)
    checked = check_settings(family, name, settings)
    wanted = inspect.signature(part).parameters
    keywords = checked | {key: value for key, value in supplied.items() if key in wanted}
    if inspect.isclass(part):
        made: Any = part(**keywords)
        return made  # type: ignore[no-any-return]
    return functools.partial(part, **keywords)


def check_settings(family: str, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings validated against the part's keyword-only parameters, defaults left to the part."""
    part = find(family, name)
    hints = get_type_hints(part.__init__ if inspect.isclass(part) else part, include_extras=True)
    fields: dict[str, Any] = {
        key: (hints.get(key, Any), ... if parameter.default is parameter.empty else parameter.default)
        for key, parameter in inspect.signature(part).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and key not in SUPPLIED
    }
    model = create_model(name.replace(":", "_"), __config__=ConfigDict(extra="forbid"), **fields)
    try:
        return model.model_validate(dict(settings)).model_dump()
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise PartError(f"{family} '{name}': {problems}; its settings: {', '.join(fields) or '(none)'}") from error


def needs(family: str, name: str) -> set[str]:
    """The SUPPLIED parameters of a part, whether it takes them when it is bound or (a class) when it is called."""
    part = find(family, name)
    calls: list[Any] = [part, part.__call__] if inspect.isclass(part) else [part]
    return {parameter for call in calls for parameter in inspect.signature(call).parameters} & set(SUPPLIED)


def inputs_for(family: str, name: str, available: Mapping[str, T]) -> dict[str, T]:
    """The inputs that a part asks for by the name of a parameter: only then do they enter its stage's key."""
    return {parameter: available[parameter] for parameter in needs(family, name) if parameter in available}


def dependencies(family: str, name: str, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A part, and what it stands on besides: what its own `parts(settings)` names, where it has one (a judge its template)."""
    part = find(family, name)
    inner = part.parts(check_settings(family, name, settings)) if hasattr(part, "parts") else []
    return [(family, name), *inner]


def version_of(family: str, name: str) -> str:
    """What enters a key: the VERSIONS entry of the part's file (1 where none), or the hash of a user's own file."""
    if family in TEXTS:
        return TEXTS[family](name)
    part = find(family, name)
    if ":" in name:
        return hashlib.sha256(Path(inspect.getfile(part)).read_bytes()).hexdigest()
    return str(getattr(sys.modules[part.__module__], "VERSIONS", {}).get(name, 1))


def takes_device(family: str, name: str) -> bool:
    """Whether a part loads a model of its own: it asks for the device."""
    return family not in TEXTS and "device" in inspect.signature(find(family, name)).parameters


def asks_server(family: str, name: str) -> bool:
    """Whether a part is an engine whose model stands elsewhere: it asks for the limits of requests."""
    return family == "engines" and "requests" in inspect.signature(find(family, name)).parameters


def libraries_of(family: str, name: str) -> dict[str, str]:
    """Libraries beyond the stage's own that shape what the part returns, with their versions: the LIBRARIES entry of its file.

    Raises:
        PartError: one is not installed.
    """
    if family in TEXTS:
        return {}
    wanted = getattr(sys.modules[find(family, name).__module__], "LIBRARIES", {}).get(name, ())
    try:
        return {library: importlib.metadata.version(library) for library in wanted}
    except importlib.metadata.PackageNotFoundError as error:
        raise PartError(f"{family} '{name}' needs {error.name}, which is not installed; ./ratchet setup --help") from error


def listing(family: str) -> list[dict[str, str]]:
    """One row per part: name, settings, first line of its docstring, where it is defined."""
    rows = []
    for name, part in public(family).items():
        keywords = [
            p for p in inspect.signature(part).parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in SUPPLIED
        ]
        settings = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in keywords)
        file, line = part.__module__.replace(".", "/") + ".py", inspect.getsourcelines(part)[1]
        about = (inspect.getdoc(part) or "").split("\n")[0]
        rows.append({"name": name, "settings": settings, "about": about, "source": f"{file}:{line}"})
    return rows
