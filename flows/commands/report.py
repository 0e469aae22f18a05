"""What a person sees: a live bar per stage, one line per finished stage and round, and the table at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from data.store.campaign import Campaign, Metric, Round
from data.store.store import Artifact
from tasks.run.stage import Notes

MARKS = {"promote": "green", "hold": "yellow", "roll_back": "red", "stop": "bold red", "start": "dim"}


class Reporter:
    """Live progress of one campaign on stderr; plain lines where stderr is no terminal."""

    def __init__(self, name: str, refresh: frozenset[str] = frozenset()) -> None:
        self.name, self.refresh = name, refresh
        self.warned: set[str] = set()  # stages whose changed source was reported: once per run, not per artifact
        self.console = Console(stderr=True, highlight=False)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.began = time.time()

    def __enter__(self) -> Reporter:
        self.progress.start()
        self._print(f"[bold]{self.name}[/bold]")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        """A line as it stands: it may quote a path or an error, and [brackets] in it are no markup."""
        self.console.print(text, soft_wrap=True, markup=False)

    def _print(self, markup: str) -> None:
        self.console.print(markup, soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, number: int, label: str, use: Callable[[str], None]) -> Iterator[Notes]:
        """A bar for one stage; yields what the stage reports through."""
        self.began = time.time()
        bar = self.progress.add_task(f"round {number}  {label}", total=None)

        def tick(done: int, total: int) -> None:
            self.progress.update(bar, completed=done, total=total)

        try:
            yield Notes(tick, lambda text: self._print(f"  [yellow]{escape(text)}[/yellow]"), use, self.refresh, self.warned)
        finally:
            self.progress.remove_task(bar)

    def done(self, number: int, label: str, artifact: Artifact) -> None:
        how = "reused" if artifact.reused else f"{time.time() - self.began:.1f} s"
        self._print(f"  [dim]round {number}  {label:<24} {how}[/dim]")

    def round(self, finished: Round) -> None:
        style = MARKS.get(finished.verdict.decision, "")
        accuracy = percent(finished.metrics.get("accuracy"))
        self._print(
            f"  round {finished.round}: held-out accuracy {accuracy}  "
            f"[{style}]{finished.verdict.decision}[/{style}]: {escape(finished.verdict.reason)}"
        )
        for alarm in alarm_lines(finished):
            self._print(f"    {alarm}")


def alarm_lines(finished: Round) -> list[str]:
    """The alarms of a round, coloured by level; what is only watched is counted."""
    alarms: list[str] = finished.facts.get("alarms", [])
    watched = [alarm.split()[1].rstrip(":") for alarm in alarms if alarm.startswith("watch ")]
    lines = [f"[red]{escape(alarm)}[/red]" for alarm in alarms if not alarm.startswith("watch ")]
    return lines + ([f"[yellow]watch[/yellow] {escape(', '.join(watched))}"] if watched else [])


def percent(metric: Metric | None) -> str:
    """`61.2 [58.1, 64.2]`, in percent, or a dash where it does not apply."""
    if metric is None or metric.value is None:
        return "-"
    if metric.low is None or metric.high is None:
        return f"{100 * metric.value:.1f}"
    return f"{100 * metric.value:.1f} [{100 * metric.low:.1f}, {100 * metric.high:.1f}]"


def rounds_table(campaigns: list[Campaign]) -> Table:
    """Rounds of one or more campaigns: accuracy with its interval, length, length gap, verdict."""
    table = plain_table(
        "round", "accuracy %", "pass@k %", "tokens", "gap", "bias", "verdict",
        caption="accuracy: greedy, held-out, with its 95% interval; k = samples; gap: chosen minus rejected tokens; "
        "bias: the gravest alarm",
    )  # fmt: skip
    for campaign in campaigns:
        table.add_section()
        table.add_row(f"[bold]{campaign.name}[/bold]")
        for finished in campaign.rounds():
            table.add_row(*_row(finished))
    return table


def plain_table(first: str, *others: str, caption: str) -> Table:
    table = Table(pad_edge=False, caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _row(finished: Round) -> list[str]:
    m = finished.metrics
    ks = sorted((int(key.removeprefix("pass@")) for key in m if key.startswith("pass@")), reverse=True)
    best = m.get(f"pass@{ks[0]}") if ks else None
    style = MARKS.get(finished.verdict.decision, "")
    return [
        f"  {finished.round}",
        percent(m.get("accuracy")),
        percent(Metric(value=best.value)) if best else "-",
        number(m.get("mean_tokens")),
        number(m.get("length_gap"), sign=True),
        finished.facts.get("bias_level", "-") or "none",
        f"[{style}]{finished.verdict.decision}[/{style}]",
    ]


def number(metric: Metric | None, sign: bool = False) -> str:
    if metric is None or metric.value is None:
        return "-"
    return f"{metric.value:{'+' if sign else ''}.1f}"


def final_table(campaigns: list[Campaign]) -> Table | None:
    """Test and out-of-distribution accuracy, read once after the last round; None where no campaign has it."""
    table = plain_table(
        "checkpoint", "test accuracy %", "points over base", "out of distribution",
        caption="read once, at the end. base: round 0, head: what the gate left in front, last: the last round's",
    )  # fmt: skip
    found = False
    for campaign in campaigns:
        results: dict[str, dict[str, Any]] = campaign.final() or {}
        found = found or any(results.values())
        table.add_section()
        table.add_row(f"[bold]{campaign.name}[/bold]")
        for which, metrics in results.items():
            if which != "last" or metrics != results["head"]:
                cells = [percent(metrics.get(key)) for key in ("accuracy", "accuracy_vs_base", "ood/accuracy")]
                table.add_row(f"  {which}", *cells)
    return table if found else None
