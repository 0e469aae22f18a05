"""Parts: from the name in a recipe to the function, with checked settings; and what `./ratchet parts` lists.

A part's name is the name of a public function or class in the folder of its family, or `package.module:name` for a user's own.
Its keyword-only parameters are its settings (of a class, those of `__init__`). A parameter named in SUPPLIED is not a setting:
the stage passes it. The round passes an input such as `verdicts` only to the parts that have a parameter of that name.
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
FAMILIES = {  # family -> the package that holds its parts
    "scorers": "tasks.score.scorers",
    "selectors": "tasks.choose.selectors",
    "pairers": "tasks.choose.pairers",
    "curators": "tasks.prompts.curators",
    "engines": "tasks.generate.engines",
    "features": "tasks.bias.features",
    "prompt_features": "tasks.bias.prompt_features",
    "mitigations": "tasks.choose.mitigations",
}
SUPPLIED = (  # parameters that the stage passes; never settings
    *("workers", "device", "dtype", "trust_remote_code", "warm", "checkpoint"),
    *("verdicts", "origins", "against", "prompts", "answers", "own_logprobs", "base_logprobs", "previous_logprobs"),
    *("base_kl", "previous_kl"),
    *("requests", "scratch", "record", "rollouts", "marks"),
)
TEXTS = {"judges": templates.digest}  # dependencies that are text files, not code: family -> hash of the file


def modules(family: str) -> list[ModuleType]:
    """The package of a family, whose `__init__` holds what its files share, and the modules in it."""
    package = importlib.import_module(FAMILIES[family])
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return [package, *(importlib.import_module(f"{FAMILIES[family]}.{name}") for name in names)]


def public(family: str) -> dict[str, Callable[..., Any]]:
    """The parts of a family: the public functions and classes that its files define, without those listed in NOT_PARTS.

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
                raise PartError(
                    f"{family}: '{name}' is defined in {parts[name].__module__} and in {module.__name__}; rename one of them"
                )
            parts[name] = part
    return parts


def find(family: str, name: str) -> Callable[..., Any]:
    """The function or class that a recipe names.

    Raises:
        PartError: there is no such part. The message suggests the closest name.
    """
    if ":" in name:
        return _users_own(family, name)
    parts = public(family)
    if name not in parts:
        raise PartError(
            f"{family}: no '{name}'{did_you_mean(name, parts)}; expected one of {', '.join(parts)}, or package.module:name"
        )
    return parts[name]


def _users_own(family: str, name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    folders = os.environ.get("RATCHET_PARTS", "").split(os.pathsep)  # set by the launcher, inherited by workers
    sys.path += [folder for folder in folders if folder and folder not in sys.path]  # last, so that they hide no other module
    try:
        part = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a user's file may raise anything
        raise PartError(
            f"{family}: cannot import '{name}': {type(error).__name__}: {error}; expected package.module:name on PYTHONPATH"
        ) from error
    if not callable(part):
        raise PartError(f"{family}: expected '{name}' to be a function or class, found {type(part).__name__}")
    return part  # type: ignore[no-any-return]


def configure(family: str, name: str, settings: Mapping[str, Any], **supplied: Any) -> Callable[..., Any]:
    """The part, ready to be called: its settings are checked and bound. A class is instantiated here, once.

    Args:
        supplied: values for parameters in SUPPLIED. Those that the part has no parameter for are left out.

    Raises:
        PartError: an unknown setting or a wrong type.
    """
    part = find(family, name)
    checked = check_settings(family, name, settings)
    parameters = inspect.signature(part).parameters
    keywords = checked | {key: value for key, value in supplied.items() if key in parameters}
    if inspect.isclass(part):
        instance: Any = part(**keywords)
        return instance  # type: ignore[no-any-return]
    return functools.partial(part, **keywords)


def check_settings(family: str, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, validated against the part's keyword-only parameters, with the part's defaults filled in.

    Raises:
        PartError: an unknown setting or a wrong type.
    """
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
    """The SUPPLIED parameters that a part has. For a class these are the ones of `__init__` and of `__call__`."""
    part = find(family, name)
    calls: list[Any] = [part, part.__call__] if inspect.isclass(part) else [part]
    return {parameter for call in calls for parameter in inspect.signature(call).parameters} & set(SUPPLIED)


def inputs_for(family: str, name: str, available: Mapping[str, T]) -> dict[str, T]:
    """The available inputs that a part has a parameter for. Only these enter the key of its stage."""
    return {parameter: available[parameter] for parameter in needs(family, name) if parameter in available}


def dependencies(family: str, name: str, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The part and everything that its output depends on, as (family, name): a judge depends on its template and its engine.

    A part with dependencies names them in a static method `parts(settings)`.
    """
    part = find(family, name)
    further = part.parts(check_settings(family, name, settings)) if hasattr(part, "parts") else []
    return [(family, name), *further]


def lists(attribute: str, family: str, name: str) -> bool:
    """Whether the file of a part names it in the tuple `attribute`, such as VERIFIERS or NEEDS_GOLD."""
    return name.rpartition(":")[2] in getattr(sys.modules[find(family, name).__module__], attribute, ())


def verifies(name: str) -> bool:
    """Whether a scorer can be the first one: it judges each completion by itself as right (1.0) or wrong (0.0).

    Those that do are in VERIFIERS of their file. In a file of a user's own without VERIFIERS every scorer counts that takes no
    verdicts, no rollouts and no model.
    """
    module = sys.modules[find("scorers", name).__module__]
    if ":" in name and not hasattr(module, "VERIFIERS"):
        return not needs("scorers", name) & {"verdicts", "rollouts", "checkpoint"}
    return lists("VERIFIERS", "scorers", name)


def version_of(family: str, name: str) -> str:
    """The version that enters a key: the part's entry in VERSIONS of its file (else 1), or the hash of a user's own file."""
    if family in TEXTS:
        return TEXTS[family](name)
    part = find(family, name)
    if ":" in name:
        return hashlib.sha256(Path(inspect.getfile(part)).read_bytes()).hexdigest()
    return str(getattr(sys.modules[part.__module__], "VERSIONS", {}).get(name, 1))


def kind(family: str, name: str) -> Any:
    """The kind of a feature: its entry in KINDS of its file, "rate" or "length", else "real"."""
    return getattr(sys.modules[find(family, name).__module__], "KINDS", {}).get(name.rpartition(":")[2], "real")


def facts_about(family: str, name: str) -> Callable[..., dict[str, Any]] | None:
    """The function with further facts about what a selector or pairer chooses: its entry in FACTS of its file.

    It is called as `(completions, reward, *, settings)`.
    """
    facts: Callable[..., dict[str, Any]] | None = getattr(sys.modules[find(family, name).__module__], "FACTS", {}).get(name)
    return facts


def takes_device(family: str, name: str) -> bool:
    """Whether a part loads a model of its own, which it does if it has a parameter `device`."""
    return family not in TEXTS and "device" in inspect.signature(find(family, name)).parameters


def asks_server(family: str, name: str) -> bool:
    """Whether a part is an engine that sends requests to a server, which it does if it has a parameter `requests`."""
    return family == "engines" and "requests" in inspect.signature(find(family, name)).parameters


def libraries_of(family: str, name: str) -> dict[str, str]:
    """The libraries, with versions, that shape what the part returns: its entry in LIBRARIES of its file.

    Raises:
        PartError: a library is not installed.
    """
    if family in TEXTS:
        return {}
    libraries = getattr(sys.modules[find(family, name).__module__], "LIBRARIES", {}).get(name, ())
    try:
        return {library: importlib.metadata.version(library) for library in libraries}
    except importlib.metadata.PackageNotFoundError as error:
        raise PartError(f"{family} '{name}' needs {error.name}, which is not installed; see ./ratchet setup --help") from error


def listing(family: str) -> list[dict[str, str]]:
    """One row per part: its name, its settings, the first line of its docstring, and where it is defined."""
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
