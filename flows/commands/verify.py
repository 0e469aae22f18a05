"""`ratchet verify`: check every stored artifact against its hashes."""

from __future__ import annotations

import typer

from data.errors import CampaignError
from flows.commands.options import Home
from flows.service import environment
from flows.terminal import err, line, out


def verify(home: Home = None) -> None:
    """Check every stored artifact against its hashes. Damaged ones are named and moved to quarantine.

    The next run that needs a damaged artifact computes it again.

    Exit code 0: nothing is damaged. 1: something is.

    Example: ratchet verify --home /data/runs
    """
    from rich.progress import Progress

    from data.store.store import Store

    folder = environment.home_of(home)
    if not (folder / "store").exists():
        raise CampaignError(f"nothing is stored in {folder} yet")
    with Progress(console=err, transient=True) as progress:
        bar = progress.add_task("verify", total=None)
        store = Store(folder / "store")
        damaged = store.verify(lambda done, total: progress.update(bar, completed=done, total=total))
    for artifact in damaged:
        out.print(line(("damaged", "red"), f" {artifact}"), soft_wrap=True)
    out.print(f"{len(store.keys())} artifacts checked, {len(damaged)} damaged")
    raise typer.Exit(1 if damaged else 0)
