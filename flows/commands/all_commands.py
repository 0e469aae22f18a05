"""All commands of the command line. Each imports heavy libraries when it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.audit import audit
from flows.commands.audit_judge import audit_judge
from flows.commands.check import check
from flows.commands.data import data
from flows.commands.demo import demo
from flows.commands.fork import fork
from flows.commands.gc import gc
from flows.commands.lineage import lineage
from flows.commands.parts import list_parts, list_recipes
from flows.commands.run import resume, run
from flows.commands.show import runs, show
from flows.commands.sweep import sweep
from flows.commands.verify import verify
from flows.service.environment import ratchet_version
from flows.service.serve import serve

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False)


def print_version(wanted: bool) -> None:
    if wanted:
        print(f"ratchet {ratchet_version()}")
        raise typer.Exit


@app.callback(epilog="Also: [bold]ratchet setup[/bold], [bold]ratchet test [--all][/bold], [bold]ratchet bench NAME[/bold].")
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print Ratchet's version.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Ratchet: let a language model improve itself in rounds, safely and repeatably.

    Examples:

      ratchet demo

      ratchet run tiny_raft --name first --set rounds=2

      ratchet run iterative_dpo --model ./Qwen2.5-0.5B --prompts train.jsonl.gz

      ratchet show first --round 1
    """


for command in (run, resume, runs, show, check, verify, demo, data, fork, sweep, lineage, gc, serve, audit, audit_judge):
    app.command()(command)
app.command(name="parts")(list_parts)
app.command(name="recipes")(list_recipes)
