"""The recipe: a frozen model of one TOML file that says how a round turns prompts and a checkpoint into better ones.

Unknown keys are refused with a suggestion, `--set a.b=c` changes one value, `[[at]]` changes settings from a round on.
`[hardware]` says where the work runs; it never enters an artifact's key. `[prompts] path` and `[model] path` enter as content.
"""

from __future__ import annotations

import json
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from data.errors import RecipeError, did_you_mean
from data.recipe.loss import NEEDED_TABLE, Loss
from data.recipe.settings import (
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
HINT = "{prompt}\n\nI think the answer is {wrong}, but I'm really not sure."  # form: Sharma et al., arXiv 2310.13548


class Recipe(Strict):
    description: str = ""
    rounds: int = Field(3, ge=1, le=1000)
    seed: int = Field(0, ge=0)
    prompts: Prompts = Prompts()
    model: Model = Model()
    curate: tuple[Curate, ...] = Field((), description="which prompts a round may draw: see the curators")
    generate: Generate = Generate()
    pool: Pool = Pool()
    score: tuple[Score, ...] = (Score(scorer="exact_match"),)
    reward: Reward = Reward()
    fit_reward: FitReward = FitReward()
    select: Select | None = None
    pair: Pair | None = None
    mitigate: tuple[Mitigate, ...] = ()
    loss: Loss = Loss()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    probe: Probe = Probe()
    suites: tuple[Suite, ...] = Field((), description="further files that every checkpoint is measured on")
    health: Health = Health()
    gate: Gate = Gate()
    keep: Keep = Keep()
    hardware: Hardware = Hardware()
    at: tuple[At, ...] = ()

    @field_validator("select", "pair", mode="before")
    @classmethod
    def _switched_off(cls, value: Any) -> Any:
        """TOML has no null: `select = false` in an `[[at]]` ends selecting, so that SFT rounds may warm up DPO rounds."""
        return None if value is False else value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.select and self.pair:
            raise ValueError("give [select] (trains on completions) or [pair] (trains on pairs), not both")
        data, table = self.loss.kind.data, "select" if self.select else "pair" if self.pair else None
        if self.pair and data != "pairs":
            raise ValueError("[pair] needs a pair loss: set loss.name, e.g. 'sigmoid' (DPO)")
        if self.select and NEEDED_TABLE[data] != "select":
            raise ValueError(f"loss.name = '{self.loss.name}' trains on {data}: {_instead(data)}, or set loss.name = 'nll'")
        if table is None and data in ("pairs", "labelled", "ranked"):
            raise ValueError(f"loss.name = '{self.loss.name}' trains on {data}: {_instead(data)}, or set loss.name = 'nll'")
        if data == "online" and (self.generate.n < 2 or self.train.batch % self.generate.n):
            raise ValueError(
                f"online, a batch is whole groups of generate.n completions: expected n >= 2 that divides train.batch "
                f"({self.train.batch}), found n = {self.generate.n}"
            )
        if table is None and data != "online" and not self.train.replay:
            raise ValueError("nothing to train on: add [select] or [pair], or set train.replay = true (seed data only)")
        if self.train.replay and not self.prompts.seed:
            raise ValueError("train.replay = true needs given solutions: set prompts.seed")
        if self.pool.given and self.curate:
            raise ValueError("[[curate]] works on the rounds split, pool.given = true draws from the seed split: not both")
        if self.pool.given and not self.prompts.seed:
            raise ValueError("pool.given = true needs given solutions: set prompts.seed")
        if self.gate.kl_budget and not self.loss.measures_kl:
            raise ValueError(
                f"gate.kl_budget needs a loss that logs its KL to a reference: DPO's kin, kto, or online with loss.beta > 0; "
                f"found loss.name = '{self.loss.name}', loss.beta = {self.loss.beta:g}"
            )
        near = self.loss.reference == self.train.start_from == "previous"
        if self.gate.kl_budget and data != "online" and not near:
            raise ValueError(
                "gate.kl_budget is read from the log of a training on samples near the reference: it needs loss.reference = "
                "'previous' and train.start_from = 'previous'; the ledger's bias/kl_base needs neither"
            )
        if (self.mitigate or self.pool != Pool()) and not self.samples:
            raise ValueError(
                "[[mitigate]] and [pool] act on what [select] or [pair] choose from; a seed-only control and an online loss "
                "have none"
            )
        if self.generate.lengthen and (self.recorded or data == "online"):
            raise ValueError(
                "generate.lengthen gives a round's samples more room; a file of completions and an online loss take none"
            )
        if self.recorded and (self.pool.base or self.pool.contrast):
            raise ValueError("pool.base and pool.contrast sample a checkpoint; generate.engine = 'recorded' samples none")
        if self.generate.engine == "endpoint" and self.pool.base:
            raise ValueError("pool.base samples checkpoint 0, which the server of generate.engine = 'endpoint' does not have")
        if self.train.replay and self.loss.name != "nll":
            raise ValueError(
                "train.replay mixes whole completions in; it works with loss.name = 'nll', not with [pair] or online"
            )
        if self.model.path == "" and self.prompts.source != "addition" and not self.recorded:
            raise ValueError("the tiny model only knows addition: pass --model DIR (or set model.path)")
        if self.prompts.source == "file" and not self.prompts.path:
            raise ValueError("source = 'file' needs prompts of your own: pass --prompts FILE (or set prompts.path)")
        if self.recorded and not self.generate.path and self.prompts.source != "file":
            raise ValueError("generate.engine = 'recorded' needs a file of completions: set generate.path")
        if not self.prompts.held_out and not self.recorded:
            raise ValueError("the gate decides on held-out prompts: set prompts.held_out")
        if not self.score:
            raise ValueError("at least one [[score]] is needed; the first one is the verifier that held-out accuracy uses")
        if not any(score.weight for score in self.score):
            raise ValueError("every [[score]] has weight 0, so nothing makes a reward; give one of them a weight")
        if self.reward.how != "sum" and (sum(bool(score.weight) for score in self.score) < 2 or data == "online"):
            raise ValueError(
                f"reward.how = '{self.reward.how}' is over two [[score]] with a weight or more, and an online loss only sums; "
                "set it to 'sum'"
            )
        names = [score.label for score in self.score]
        if len(set(names)) != len(names):
            raise ValueError(f"each scorer once, or under a name of its own (score.name): found {names}")
        suites = [suite.name for suite in self.suites]
        if len(set(suites)) != len(suites):
            raise ValueError(f"each suite has a name of its own: found {suites}")
        return self

    @property
    def recorded(self) -> bool:
        """Whether completions come from a file. Then neither a model nor held-out prompts are needed to score and pair them."""
        return self.generate.engine == "recorded"

    @property
    def evaluation_engine(self) -> str:
        """What draws from a checkpoint to measure it."""
        elsewhere = self.generate.engine in ("recorded", "endpoint")
        return self.evaluate.engine or ("transformers" if elsewhere else self.generate.engine)

    def engine_settings(self, engine: str) -> dict[str, Any]:
        """The settings are those of generate.engine; another engine runs with its defaults."""
        return self.generate.settings if engine == self.generate.engine else {}

    @property
    def watched(self) -> bool:
        """Whether rounds keep the bias ledger."""
        return self.prompts.probe > 0 and self.probe.samples > 0

    @property
    def samples(self) -> bool:
        """Whether rounds draw completions to train on (a seed-only control does not; an online loss draws its own)."""
        return self.select is not None or self.pair is not None

    @property
    def online(self) -> bool:
        return self.loss.kind.data == "online"

    def at_round(self, number: int) -> Recipe:
        """The recipe as it stands in a round: `[[at]]` entries with round <= number applied in order."""
        values = self.model_dump(mode="json")
        for entry in sorted((e for e in self.at if e.round <= number), key=lambda e: e.round):
            for path, value in entry.set.items():
                set_value(values, path, value)
        return build(values, f"[[at]] of round {number}")

    def plain(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def _instead(data: str) -> str:
    """What to write for a loss that trains on `data`."""
    return {
        "pairs": "add a [pair] table",
        "labelled": "add a [select] table with labels (selector = 'labelled')",
        "ranked": "add a [select] table with ranks (selector = 'ranked')",
        "online": "remove [select] and [pair], it samples for itself",
    }[data]


FROZEN_AFTER_START = (
    "prompts",
    "model",
    "probe",
    "suites",
    "evaluate",
    "seed",
    "rounds",
    "at",
    "hardware",
    "keep",
    "description",
)


def build(values: Mapping[str, Any], where: str) -> Recipe:
    """Validate plain values; one RecipeError names every problem with its place and a suggestion."""
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{where}: " + "; ".join(_explain(e) for e in error.errors())) from error
    for place, value in flatten(recipe.model_dump()).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"{where}: {place}: expected a finite number, found {value}")
    for entry in recipe.at:
        for path in entry.set:
            if path.split(".")[0] in FROZEN_AFTER_START:
                raise RecipeError(f"{where}: [[at]] round {entry.round}: '{path}' cannot change between rounds")
    return recipe


Setting = str | tuple[str, Any]  # "a.b=c", or a place and its value


def load(source: str | Path, sets: Sequence[Setting] = (), overrides: Mapping[str, Any] = types.MappingProxyType({})) -> Recipe:
    """Read a shipped recipe by name or a TOML file by path, apply overrides and then `sets`, validate everything."""
    path = find(source)
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: expected TOML: {error}") from error
    for dotted, value in [*overrides.items(), *(parse_set(item) if isinstance(item, str) else item for item in sets)]:
        set_value(values, dotted, value)
    recipe = build(values, str(path))
    _check_rounds(recipe, str(path))
    return recipe


def _check_rounds(recipe: Recipe, where: str) -> None:
    """An override that breaks a later round is found now, and so is one that would measure it by another verifier."""
    for number in sorted({entry.round for entry in recipe.at}):
        now, then = recipe.at_round(number).score[0], recipe.score[0]
        if (now.scorer, now.settings) != (then.scorer, then.settings):
            raise RecipeError(
                f"{where}: [[at]] round {number}: the first [[score]] measures every checkpoint and cannot change between "
                "rounds; give it weight = 0 and add what is to reward"
            )


def shipped() -> dict[str, Path]:
    return {p.stem: p for p in sorted(SHIPPED.glob("*.toml"))}


def find(source: str | Path) -> Path:
    names = shipped()
    if str(source) in names:
        return names[str(source)]
    path = Path(source)
    if path.suffix != ".toml" or not path.is_file():
        hint = did_you_mean(str(source), names)
        raise RecipeError(f"no recipe '{source}': expected one of {', '.join(names)}, or a .toml file that exists{hint}")
    return path


def parse_set(item: str) -> tuple[str, Any]:
    """`a.b=c`: the value is read as TOML, and as a plain string where it is not TOML."""
    path, found, text = item.partition("=")
    if not found or not path:
        raise RecipeError(f"--set {item}: expected a.b=value")
    try:
        return path, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return path, text


def set_value(values: dict[str, Any], path: str, value: Any) -> None:
    """Set one dotted place, e.g. `loss.beta` or `score.0.weight`; the place must exist in the recipe model."""
    place: Any = values
    *parents, last = path.split(".")
    try:
        for name in parents:
            if isinstance(place, list):
                place = place[int(name)]
            else:
                place[name] = place.get(name) if place.get(name) is not None else {}
                place = place[name]
        if isinstance(place, list):
            place[int(last)] = value
        else:
            place[last] = value
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise RecipeError(f"'{path}' names no place in the recipe") from error


FREE_IN_A_FORK = ("rounds", "keep", "hardware", "description")  # they shape no artifact of a round that is over


def forked(recipe: Recipe, at: int, sets: Sequence[str]) -> Recipe:
    """The recipe of a fork after round `at`: one more `[[at]]` entry, or for what is not of a round, the value itself.

    Raises:
        RecipeError: a setting that rounds 0..at stand on, or that no round would be left to use.
    """
    values, later = recipe.plain(), {}
    for path, value in map(parse_set, sets):
        if path.split(".")[0] in FREE_IN_A_FORK:
            set_value(values, path, value)
        elif path.split(".")[0] in FROZEN_AFTER_START:
            raise RecipeError(f"--set {path}: rounds 0 to {at} stand on it; start another campaign with `run --set {path}=...`")
        else:
            later[path] = value
    if later:
        values["at"].append({"round": at + 1, "set": later})
    made = build(values, f"fork at round {at}")
    if made.rounds <= at:
        raise RecipeError(f"--at {at}: the recipe ends with round {made.rounds}; add --set rounds={at + 1} or more")
    _check_rounds(made, f"fork at round {at}")
    return made


def differences(old: Recipe, new: Recipe) -> list[str]:
    """What differs between two recipes, one line per value; hardware does not count, it may change between runs."""
    before, after = (flatten({k: v for k, v in r.plain().items() if k != "hardware"}) for r in (old, new))
    old_texts, new_texts = ({path: json.dumps(value) for path, value in flat.items()} for flat in (before, after))
    changed = [path for path in sorted(before.keys() | after.keys()) if old_texts.get(path) != new_texts.get(path)]
    return [f"{path}: {before.get(path, '-')} -> {after.get(path, '-')}" for path in changed]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values as dotted paths."""
    if isinstance(value, (Mapping, list, tuple)) and not value:
        return {prefix: value}
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, inner in items:
        flat |= flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    return flat


def _explain(error: Mapping[str, Any]) -> str:
    place = ".".join(str(p) for p in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _fields(error["loc"][:-1])
        return f"unknown key '{place}'{did_you_mean(str(error['loc'][-1]), known)}; known here: {', '.join(known)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if not place or error["type"] == "value_error":
        return f"{place}: {message}" if place else message
    return f"{place}: {message}, found {error['input']!r}"


def _fields(loc: Sequence[Any]) -> list[str]:
    """The keys a place in the recipe accepts, found by walking the models' annotations."""
    model: Any = Recipe
    for step in loc:
        if isinstance(step, int):
            continue
        kind = model.model_fields[step].annotation
        inner = [kind, *typing.get_args(kind)]
        model = next(k for k in inner if isinstance(k, type) and issubclass(k, BaseModel))
    return list(model.model_fields)
