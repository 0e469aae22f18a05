"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from data.errors import RecipeError
from data.rows import sources

Home = Annotated[
    Path | None,
    typer.Option(
        help="Folder for campaigns, artifacts and MLflow's database (default: RATCHET_HOME, else runs/ in the checkout)."
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a recipe setting, e.g. --set loss.beta=0.2. Can be repeated.", metavar="A.B=C"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Source = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe (see `ratchet recipes`), or a TOML file.")
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a campaign (see `ratchet runs`).")]
Model = Annotated[
    Path | None,
    typer.Option(help="Model to start from: a Hugging Face directory with safetensors (default: the recipe's)."),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        help="Prompts and answers: .jsonl, .jsonl.gz, .parquet, a folder, or hf:name\\[split] (default: the recipe's)."
    ),
]
Refresh = Annotated[
    list[str] | None,
    typer.Option(
        help="Recompute STAGE if its source changed since its artifacts were made (default: reuse them, with a warning). "
        "Can be repeated.",
        metavar="STAGE",
    ),
]
Columns = Annotated[
    str,
    typer.Option(
        "--map",
        help="Columns of the prompts file, e.g. prompt=query,answer=gold (default: the recipe's, or the usual names).",
        metavar="ROLE=COLUMN,...",
    ),
]


def overrides(model: Path | None, prompts: Path | None, columns: str = "") -> dict[str, Any]:
    """`--model`, `--prompts` and `--map` as recipe values. Paths are absolute, so that a resume works from any directory.

    Raises:
        RecipeError: the map does not have the form role=column,role=column.
    """
    values: dict[str, Any] = {}
    if model is not None:
        values["model.path"] = str(model.absolute())
    if prompts is not None:
        values |= {"prompts.source": "file", "prompts.path": sources.absolute(prompts)}
    for item in filter(None, columns.split(",")):
        role, equals, column = item.partition("=")
        if not equals or not role or not column:
            raise RecipeError(f"--map {columns}: expected role=column,role=column, found '{item}'")
        values[f"prompts.map.{role.strip()}"] = column.strip()
    return values
