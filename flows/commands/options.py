"""Options and arguments that several commands share, and the console they print to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from data.errors import RecipeError
from data.rows import sources

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Home = Annotated[Path | None, typer.Option(help="Where runs live (default: RATCHET_HOME, else runs/ in the checkout).")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Change one setting, e.g. --set loss.beta=0.2", metavar="A.B=C")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Source = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped name (see `recipes`) or a TOML file.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A campaign (see `runs`).")]
Model = Annotated[Path | None, typer.Option(help="Checkpoint 0: a Hugging Face directory with safetensors.")]
Prompts = Annotated[
    Path | None, typer.Option(help="Prompts and answers: .jsonl, .jsonl.gz, .parquet, a folder, or hf:name[split].")
]
Refresh = Annotated[
    list[str] | None, typer.Option(help="Make a stage's artifacts again where its source changed.", metavar="STAGE")
]


Columns = Annotated[
    str,
    typer.Option("--map", help="Which column of the file is what, e.g. prompt=query,answer=gold.", metavar="ROLE=COLUMN,..."),
]


def overrides(model: Path | None, prompts: Path | None, columns: str = "") -> dict[str, Any]:
    """`--model`, `--prompts` and `--map` as recipe values; absolute, so that a resume works from anywhere.

    Raises:
        RecipeError: a map that is not of the form role=column,role=column.
    """
    values: dict[str, Any] = {}
    if model is not None:
        values["model.path"] = str(model.absolute())
    if prompts is not None:
        values |= {"prompts.source": "file", "prompts.path": sources.absolute(prompts)}
    for item in filter(None, columns.split(",")):
        role, found, column = item.partition("=")
        if not found or not role or not column:
            raise RecipeError(f"--map {columns}: expected role=column,role=column, found '{item}'")
        values[f"prompts.map.{role.strip()}"] = column.strip()
    return values
