"""Options and arguments that several commands share, and the console they print to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

out = Console(highlight=False)

Home = Annotated[Path | None, typer.Option(help="Where runs live (default: RATCHET_HOME, else runs/ in the checkout).")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Change one setting, e.g. --set loss.beta=0.2", metavar="A.B=C")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Source = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped name (see `recipes`) or a TOML file.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A campaign (see `runs`).")]
Model = Annotated[Path | None, typer.Option(help="Checkpoint 0: a Hugging Face directory with safetensors.")]
Prompts = Annotated[Path | None, typer.Option(help="Prompts and answers: .jsonl, .jsonl.gz or .parquet.")]
Refresh = Annotated[
    list[str] | None, typer.Option(help="Make a stage's artifacts again where its source changed.", metavar="STAGE")
]
