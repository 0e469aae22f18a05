"""`ratchet verify`: hash every stored artifact."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.markup import escape

from data.errors import CampaignError
from flows.commands.options import Home, out
from flows.service import environment


def verify(home: Home = None) -> None:
    """Hash every stored artifact. Damage is named and set aside; the next run that needs it makes it again (exit code 1)."""
    from rich.progress import Progress

    from data.store.store import Store

    place = environment.home_of(home)
    if not (place / "store").exists():
        raise CampaignError(f"nothing stored below {place} yet")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("verify", total=None)
        store = Store(place / "store")
        damaged = store.verify(lambda done, total: progress.update(bar, completed=done, total=total))
    for line in damaged:
        out.print(f"[red]damaged[/red] {escape(line)}", soft_wrap=True)
    out.print(f"{len(store.keys())} artifacts checked, {len(damaged)} damaged")
    raise typer.Exit(1 if damaged else 0)
