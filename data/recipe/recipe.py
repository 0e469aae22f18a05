"""The recipe: a frozen model of one TOML file that says how a round turns prompts and a checkpoint into better ones.

Unknown keys are refused with a suggestion. `--set a.b=c` changes one value; `[[at]]` changes settings from a round on.
`[hardware]` says where the work runs and never enters an artifact's key. The files at `[prompts] path` and `[model] path` enter
a key by their content, not by their path.
"""

from __future__ import annotations

import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from data.errors import Contradictions, RecipeError, did_you_mean
from data.recipe import rules
from data.recipe.dotted import flatten, parse_set, set_value
from data.recipe.loss import Loss
from data.recipe.rules import FROZEN_AFTER_START
from data.recipe.settings import (
    SERVER_ENGINES,
    At,
    Curate,
    Evaluate,
    FitReward,
    Gate,
    Generate,
    Hardware,
    Health,
    Keep,
    Mitigate,
    Model,
    Pair,
    Pool,
    Probe,
    Prompts,
    Reward,
    Score,
    Select,
    Strict,
    Suite,
    Train,
)

SHIPPED = Path(__file__).parents[1] / "recipes"


class Recipe(Strict):
    """Every setting of a campaign. `data.recipe.rules` holds what the tables must agree on."""

    description: str = Field("", description="one line about the method; `recipes` lists it")
    rounds: int = Field(3, ge=1, le=1000, description="rounds of training; round 0 only measures the model it starts from")
    seed: int = Field(0, ge=0, description="every random choice derives from it; change it for an independent repetition")
    gold: Literal["", "train", "gate", "never"] = Field(
        "",
        description="what the verifier's verdicts and the gold answers may decide: train = what is trained on, and the gate; "
        "gate = the gate alone; never = nothing, they are only recorded. Empty = train if a verifier has a weight, else gate",
    )
    prompts: Prompts = Prompts()
    model: Model = Model()
    curate: tuple[Curate, ...] = Field((), description="filters and weights for the prompts that a round may sample")
    generate: Generate = Generate()
    pool: Pool = Pool()
    score: tuple[Score, ...] = Field(
        (Score(scorer="exact_match"),), description="scorers of the completions; the first is the verifier that accuracy uses"
    )
    reward: Reward = Reward()
    fit_reward: FitReward = FitReward()
    select: Select | None = Field(None, description="chooses completions to train on, for losses that do not train on pairs")
    pair: Pair | None = Field(None, description="chooses pairs of a chosen and a rejected completion, for pair losses")
    mitigate: tuple[Mitigate, ...] = Field((), description="corrections against drift of style and length, in this order")
    loss: Loss = Loss()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    probe: Probe = Probe()
    suites: tuple[Suite, ...] = Field((), description="further files of prompts on which every checkpoint is measured")
    health: Health = Health()
    gate: Gate = Gate()
    keep: Keep = Keep()
    hardware: Hardware = Hardware()
    at: tuple[At, ...] = Field((), description="settings that change from a round on")

    @field_validator("select", "pair", mode="before")
    @classmethod
    def _switched_off(cls, value: Any) -> Any:
        """TOML has no null: `select = false` in an `[[at]]` ends selecting, so that SFT rounds may warm up DPO rounds."""
        return None if value is False else value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if messages := rules.broken(self):
            raise Contradictions(messages)
        return self

    @property
    def recorded(self) -> bool:
        """Whether completions come from a file. They can be scored and paired without a model or held-out prompts."""
        return self.generate.engine == "recorded"

    @property
    def evaluation_engine(self) -> str:
        """The engine that samples a checkpoint to measure it."""
        if self.evaluate.engine:
            return self.evaluate.engine
        return "transformers" if self.generate.engine in ("recorded", *SERVER_ENGINES) else self.generate.engine

    def engine_settings(self, engine: str) -> dict[str, Any]:
        """generate.settings belong to generate.engine; any other engine runs with its defaults."""
        return self.generate.settings if engine == self.generate.engine else {}

    @property
    def watched(self) -> bool:
        """Whether rounds keep the bias ledger."""
        return self.prompts.probe > 0 and self.probe.samples > 0

    @property
    def samples(self) -> bool:
        """Whether a stage samples completions to train on. An online loss samples while it trains; a control never does."""
        return self.select is not None or self.pair is not None

    @property
    def online(self) -> bool:
        return self.loss.kind.data == "online"

    def at_round(self, number: int) -> Recipe:
        """The recipe of one round: every `[[at]]` entry of that round or an earlier one, applied in order of rounds."""
        return build(self._values_at(number), _at(number))

    def _values_at(self, number: int) -> dict[str, Any]:
        values = self.plain()
        for entry in sorted((entry for entry in self.at if entry.round <= number), key=lambda entry: entry.round):
            for path, value in entry.set.items():
                set_value(values, path, value)
        return values

    def plain(self) -> dict[str, Any]:
        """The recipe as JSON holds it."""
        return self.model_dump(mode="json")


Setting = str | tuple[str, Any]  # "a.b=c", or a dotted path and its value


def load(source: str | Path, sets: Sequence[Setting] = (), overrides: Mapping[str, Any] = types.MappingProxyType({})) -> Recipe:
    """Read a shipped recipe by name or a TOML file by path, apply `overrides`, then `sets`, and validate every round.

    Raises:
        RecipeError: no such recipe, or one with mistakes; all of them are named.
    """
    path = find(source)
    try:
        values = tomllib.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # also of a number of thousands of digits, or thousands of brackets
        raise RecipeError(f"{path}: expected TOML: {error}") from error
    for dotted, value in [*overrides.items(), *(parse_set(item) if isinstance(item, str) else item for item in sets)]:
        set_value(values, dotted, value)
    return _build_with_later_rounds(values, str(path))


def shipped() -> dict[str, Path]:
    """The recipes that come with Ratchet, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}


def find(source: str | Path) -> Path:
    """The file of a shipped recipe or the given TOML file.

    Raises:
        RecipeError: it is neither.
    """
    names = shipped()
    if str(source) in names:
        return names[str(source)]
    path = Path(source)
    if path.suffix != ".toml" or not path.is_file():
        hint = did_you_mean(str(source), names)
        raise RecipeError(f"no recipe '{source}': expected one of {', '.join(names)}, or a .toml file that exists{hint}")
    return path


# -- validation ---------------------------------------------------------------------------------------------------------
def build(values: Mapping[str, Any], where: str) -> Recipe:
    """Validate plain values.

    Raises:
        RecipeError: all mistakes, each with its path and a suggestion; `where` names the file.
    """
    recipe, problems = _validate(values)
    if recipe is None:
        raise _refusal(where, problems)
    return recipe


def _validate(values: Mapping[str, Any]) -> tuple[Recipe | None, list[str]]:
    """The recipe, or None and every problem."""
    try:
        return Recipe.model_validate(values), []
    except ValidationError as error:
        return None, [message for each in error.errors() for message in _explain(each)]


def _refusal(where: str, problems: Sequence[str]) -> RecipeError:
    """One problem on the line of its file, several in a list below it."""
    if len(problems) == 1:
        return RecipeError(f"{where}: {problems[0]}")
    return RecipeError("\n- ".join([f"{where}: {len(problems)} mistakes", *problems]))


def _build_with_later_rounds(values: Mapping[str, Any], where: str) -> Recipe:
    """Validate the recipe of every round, so that a mistake in `[[at]]` is found before round 0 starts."""
    recipe = build(values, where)
    first_round: dict[str, int] = {}  # problem -> round; an entry also applies to later rounds, which repeat its problems
    for number in sorted({entry.round for entry in recipe.at}):
        for problem in _problems_in_round(recipe, number):
            first_round.setdefault(problem, number)
    if first_round:
        raise _refusal(where, [f"{_at(number)}: {problem}" for problem, number in first_round.items()])
    return recipe


def _problems_in_round(recipe: Recipe, number: int) -> list[str]:
    try:
        later, problems = _validate(recipe._values_at(number))
    except RecipeError as error:
        return [str(error)]
    verifier = recipe.score[0]
    if later and (later.score[0].scorer, later.score[0].settings) != (verifier.scorer, verifier.settings):
        problems.append(
            "the first [[score]] measures every checkpoint and cannot change between rounds; give it weight = 0 and add a "
            "[[score]] for the new reward"
        )
    return problems


def _at(number: int) -> str:
    return f"[[at]] of round {number}"


def _explain(error: Mapping[str, Any]) -> list[str]:
    """The messages of one of pydantic's errors: several where several settings contradict each other."""
    path = ".".join(str(step) for step in error["loc"])
    prefix = f"{path}: " if path else ""
    if error["type"] == "extra_forbidden":
        keys = _fields(error["loc"][:-1])
        return [f"unknown key '{path}'{did_you_mean(str(error['loc'][-1]), keys)}; known here: {', '.join(keys)}"]
    if error["type"] != "value_error":
        return [f"{prefix}{error['msg']}, found {error['input']!r}"]
    cause = error["ctx"]["error"]
    return [prefix + message for message in (cause.messages if isinstance(cause, Contradictions) else [str(cause)])]


def _fields(loc: Sequence[Any]) -> list[str]:
    """The keys of one table of the recipe, found by walking the models' annotations."""
    model: Any = Recipe
    for step in loc:
        if isinstance(step, int):
            continue
        annotation = model.model_fields[step].annotation
        kinds = [annotation, *typing.get_args(annotation)]
        model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)


# -- forks and differences ----------------------------------------------------------------------------------------------
FREE_IN_A_FORK = ("rounds", "keep", "hardware", "description")  # no artifact of a finished round depends on them


def forked(recipe: Recipe, at: int, sets: Sequence[str]) -> Recipe:
    """The recipe of a fork after round `at`.

    Settings of a round become one more `[[at]]` entry of round `at + 1`. Those in FREE_IN_A_FORK are changed in place.

    Raises:
        RecipeError: a setting that rounds 0..at depend on, or no round left after `at`.
    """
    changes, where = dict(map(parse_set, sets)), f"fork at round {at}"
    free = {path: value for path, value in changes.items() if path.split(".")[0] in FREE_IN_A_FORK}
    later = {path: value for path, value in changes.items() if path not in free}
    if frozen := [path for path in later if path.split(".")[0] in FROZEN_AFTER_START]:
        names, new_sets = ", ".join(frozen), " ".join(f"--set {path}=..." for path in frozen)
        raise RecipeError(f"--set {names}: rounds 0 to {at} depend on it; start another campaign with `run {new_sets}`")
    values = recipe.plain()
    for path, value in free.items():
        set_value(values, path, value)
    if later:
        values["at"].append({"round": at + 1, "set": later})
    fork = _build_with_later_rounds(values, where)
    if fork.rounds <= at:
        raise RecipeError(f"--at {at}: the recipe ends with round {fork.rounds}; add --set rounds={at + 1} or more")
    return fork


def differences(old: Recipe, new: Recipe) -> list[str]:
    """What differs between two recipes, one line per value. Hardware does not count, since it may change between runs."""
    before, after = (flatten({k: v for k, v in recipe.plain().items() if k != "hardware"}) for recipe in (old, new))
    old_texts, new_texts = ({path: json.dumps(value) for path, value in flat.items()} for flat in (before, after))
    changed = [path for path in sorted(before.keys() | after.keys()) if old_texts.get(path) != new_texts.get(path)]
    return [f"{path}: {before.get(path, '-')} -> {after.get(path, '-')}" for path in changed]
