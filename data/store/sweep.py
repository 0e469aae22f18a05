"""A sweep: one recipe over a grid of settings, with a campaign for each combination. Stages they share are computed once."""

from __future__ import annotations

import itertools
import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import CampaignError, DamagedCampaign, RecipeError
from data.recipe import recipe as recipes
from data.recipe.dotted import parse_set
from data.recipe.recipe import Recipe
from data.store.campaign import Campaign, check_name
from data.store.store import write_atomic


def parse_over(item: str) -> tuple[str, list[Any]]:
    """Split `a.b=v1,v2`: values as in `--set`, separated by commas. Lists as values are written in TOML: `[[1, 2], [3]]`.

    Raises:
        RecipeError: no values, or one of them twice.
    """
    path, equals, text = item.partition("=")
    if not equals or not path or not text.strip(", "):
        raise RecipeError(f"--over {item}: expected a.b=value,value")
    whole = parse_set(item)[1]
    nested = isinstance(whole, list) and text.startswith("[[")
    values = whole if nested else [parse_set(f"{path}={one.strip()}")[1] for one in text.split(",")]
    if len({json.dumps(value) for value in values}) != len(values):
        raise RecipeError(f"--over {item}: expected each value once")
    return path, values


@dataclass(frozen=True)
class Sweep:
    """The content of `<home>/sweeps/<name>.json`: an id for MLflow, the grid, and a campaign for each cell of the grid."""

    name: str
    id: str
    over: dict[str, list[Any]]
    campaigns: dict[str, dict[str, Any]]  # campaign name -> setting -> value

    @classmethod
    def plan(cls, name: str, over: Sequence[str]) -> Sweep:
        """Every combination of values; those of the last `--over` change fastest.

        Raises:
            RecipeError: a setting is swept twice, or none is.
        """
        check_name(name)
        grid = dict(parse_over(item) for item in over)
        if not grid or len(grid) != len(over):
            raise RecipeError(f"expected --over for at least one setting, each once; found {list(over)}")
        cells = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        names = [_cell_name(name, cell) for cell in cells]
        if len(set(names)) != len(names) or max(map(len, names)) > 64:  # values do not make usable names: number them
            names = [f"{name}-{number:03d}" for number in range(len(cells))]
        return cls(name, uuid.uuid4().hex, grid, dict(zip(names, cells, strict=True)))

    @classmethod
    def start(cls, home: Path, name: str, over: Sequence[str]) -> Sweep:
        """Plan a sweep and write it to disk, or open the one of this name.

        Raises:
            CampaignError: the sweep of this name has another grid.
        """
        planned, path = cls.plan(name, over), home / "sweeps" / f"{name}.json"
        if path.exists():
            existing = cls.open(home, name)
            if existing.campaigns != planned.campaigns:
                raise CampaignError(
                    f"sweep '{name}' exists over {existing.over}; pass another --name, or the same --over to resume"
                )
            return existing
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(planned.__dict__, indent=1))
        return planned

    @classmethod
    def open(cls, home: Path, name: str) -> Sweep:
        path = home / "sweeps" / f"{name}.json"
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise DamagedCampaign(
                f"expected {path} as Ratchet wrote it, found it damaged ({error}); delete it and run the same sweep again: "
                "finished campaigns are not run again"
            ) from error

    def recipes(self, source: str | Path, sets: Sequence[str], overrides: dict[str, Any]) -> dict[str, Recipe]:
        """The recipe of each campaign. All are validated before any of them runs.

        Raises:
            RecipeError: a value does not fit the recipe, or a setting is in both --over and --set.
        """
        for path in {parse_set(item)[0] for item in sets}:
            if any(f"{path}.".startswith(f"{swept}.") for swept in self.over):
                raise RecipeError(f"'{path}' is in --over and in --set; leave one out")
        return {name: recipes.load(source, [*sets, *cell.items()], overrides) for name, cell in self.campaigns.items()}

    def member(self, home: Path, name: str, recipe: Recipe) -> Campaign:
        """Start (or open) one campaign of the sweep."""
        campaign = Campaign.start(home, name, recipe)
        if campaign.origin.get("sweep") != self.name:
            campaign.set_origin({"sweep": self.name})
        return campaign

    def mark_chosen(self, campaign: Campaign) -> None:
        """Have this campaign of the sweep read the test split. It stays the chosen one, so that a sweep reads it once."""
        campaign.set_origin({"sweep": self.name, "chosen": True})


def _cell_name(name: str, cell: dict[str, Any]) -> str:
    """The last word and the value of each setting, e.g. `try-beta0.1-seed2`; other characters become `_`."""
    parts = [f"{path.split('.')[-1]}{re.sub(r'[^A-Za-z0-9._]+', '_', str(value))}" for path, value in cell.items()]
    return "-".join([name, *parts])
