"""Live progress on stderr: a bar per stage, one line per finished stage and round, and the round's alarms."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from data.store.campaign import Metric, Round
from data.store.store import Artifact
from tasks.run.stage import Notes

MARKS = {"promote": "green", "hold": "yellow", "roll_back": "red", "stop": "bold red", "start": "dim"}


class Reporter:
    """Live progress of one campaign on stderr; plain lines where stderr is no terminal."""

    def __init__(self, name: str, refresh: frozenset[str] = frozenset()) -> None:
        self.name, self.refresh = name, refresh
        self.warned: set[str] = set()  # stages whose changed source was warned about: once per run, not once per artifact
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
        """Print a line as it is: it may quote a path or an error, so [brackets] are no markup."""
        self.console.print(text, soft_wrap=True, markup=False)

    def _print(self, markup: str) -> None:
        self.console.print(markup, soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, number: int, label: str, use: Callable[[str], None]) -> Iterator[Notes]:
        """Show a bar for one stage; yields the callbacks through which the stage reports."""
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
        for line in [*left_out(finished), *alarm_lines(finished)]:
            self._print(f"    {line}")


def alarm_lines(finished: Round) -> list[str]:
    """The alarms of a round, coloured by level. Those of the lowest level, watch, are listed by name only."""
    lines = [f"[red]{escape(str(alarm))}[/red]" for alarm in finished.alarms if alarm.level != "watch"]
    watched = [alarm.name for alarm in finished.alarms if alarm.level == "watch"]
    return lines + ([f"[yellow]watch[/yellow] {escape(', '.join(watched))}"] if watched else [])


def left_out(finished: Round) -> list[str]:
    """A line about completions that training could not read, if there were any."""
    share = finished.metrics.get("too_long")
    if share is None or not share.value:
        return []
    count = round(share.value * share.n)
    return [f"[yellow]left out[/yellow] {count} of {share.n} completions do not fit train.max_length with their prompt"]


def percent(metric: Metric | None) -> str:
    """`61.2 [58.1, 64.2]`, in percent, or a dash where it does not apply."""
    if metric is None or metric.value is None:
        return "-"
    if metric.low is None or metric.high is None:
        return f"{100 * metric.value:.1f}"
    return f"{100 * metric.value:.1f} [{100 * metric.low:.1f}, {100 * metric.high:.1f}]"
