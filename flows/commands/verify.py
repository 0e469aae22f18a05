"""`ratchet verify`: check every stored artifact against its hashes."""

from __future__ import annotations

import contextlib
import re
import time
from datetime import datetime
from typing import Annotated

import typer

from data.errors import CampaignError
from flows.commands.options import Home
from flows.service import environment
from flows.terminal import err, line, out


def verify(
    home: Home = None,
    since: Annotated[
        str,
        typer.Option(
            help="Check only what was stored since then: a date such as 2026-11-01, or a number of days.", metavar="DATE|DAYS"
        ),
    ] = "",
) -> None:
    """Check stored artifacts against their hashes. Damaged ones are named and moved to quarantine.

    The next run that needs a damaged artifact computes it again.

    Exit code 0: nothing is damaged. 1: something is.

    Examples:

      ratchet verify --home /data/runs

      ratchet verify --since 7
    """
    from rich.progress import Progress

    from data.store.store import Store

    folder, after = environment.home_of(home), moment(since) if since else 0.0
    if not (folder / "store").exists():
        raise CampaignError(f"nothing is stored in {folder} yet")
    with Progress(console=err, transient=True) as progress:
        bar = progress.add_task("verify", total=None)
        store = Store(folder / "store")
        keys = store.since(after)
        damaged = store.verify(lambda done, total: progress.update(bar, completed=done, total=total), keys)
    for artifact in damaged:
        out.print(line(("damaged", "red"), f" {artifact}"), soft_wrap=True)
    out.print(f"{len(keys)} artifacts checked, {len(damaged)} damaged")
    raise typer.Exit(1 if damaged else 0)


def moment(text: str) -> float:
    """The Unix time that `--since` means: midnight of a date, by the clock of this machine, or so many days ago.

    Raises:
        CampaignError: it is neither.
    """
    with contextlib.suppress(ValueError, OverflowError):
        return datetime.fromisoformat(text).timestamp()
    days = re.fullmatch(r"(\d{1,5})( ?d(ays?)?)?", text)
    if not days:
        raise CampaignError(f"--since {text}: expected a date such as 2026-11-01, or a number of days such as 7")
    return time.time() - 86400 * int(days[1])
