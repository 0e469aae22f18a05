"""Live progress on stderr: a bar per stage, one line per finished stage and round, and the round's alarms."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from data.store.campaign import Metric, Round
from data.store.store import Artifact
from flows.terminal import Piece, Terminal, line
from tasks.bias.families import Group, by_family
from tasks.run.stage import Notes

MARKS = {"promote": "green", "hold": "yellow", "roll_back": "red", "stop": "bold red", "start": "dim"}


class Reporter:
    """Live progress of one campaign on stderr; plain lines where stderr is no terminal."""

    def __init__(self, name: str, refresh: frozenset[str] = frozenset()) -> None:
        self.name, self.refresh = name, refresh
        self.warned: set[str] = set()  # stages whose changed source was warned about: once per run, not once per artifact
        self.console = Terminal(stderr=True)
        label = TextColumn("{task.description}", markup=False)
        columns = (SpinnerColumn(), label, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.began = time.time()

    def __enter__(self) -> Reporter:
        self.progress.start()
        self._print((self.name, "bold"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        self._print(text)

    def _print(self, *pieces: Piece) -> None:
        self.console.print(line(*pieces), soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, number: int, label: str, use: Callable[[str], None]) -> Iterator[Notes]:
        """Show a bar for one stage; yields the callbacks through which the stage reports."""
        self.began = time.time()
        bar = self.progress.add_task(f"round {number}  {label}", total=None)

        def tick(done: int, total: int) -> None:
            self.progress.update(bar, completed=done, total=total)

        try:
            yield Notes(tick, lambda text: self._print((f"  {text}", "yellow")), use, self.refresh, self.warned)
        finally:
            self.progress.remove_task(bar)

    def done(self, number: int, label: str, artifact: Artifact) -> None:
        how = "reused" if artifact.reused else f"{time.time() - self.began:.1f} s"
        self._print((f"  round {number}  {label:<24} {how}", "dim"))

    def round(self, finished: Round) -> None:
        style = MARKS.get(finished.verdict.decision, "")
        accuracy = percent(finished.metrics.get("accuracy"))
        begin = f"  round {finished.round}: held-out accuracy {accuracy}  "
        self._print(begin, (finished.verdict.decision, style), f": {finished.verdict.reason}")
        for text in [*left_out(finished), *alarm_lines(finished)]:
            self._print("    ", text)


def alarm_lines(finished: Round) -> list[Text]:
    """The alarms of a round, one line a family, coloured by level. Those of the lowest level, watch, are listed by name."""
    grave = by_family(alarm for alarm in finished.alarms if alarm.level != "watch")
    lines = [line((f"{group.first}{_others(group)}", "red")) for group in grave]
    watched = [alarm.name for alarm in finished.alarms if alarm.level == "watch"]
    return lines + ([line(("watch", "yellow"), f" {', '.join(watched)}")] if watched else [])


def _others(group: Group) -> str:
    return f" The same family ({group.family}) also has: {', '.join(group.others)}." if group.others else ""


def left_out(finished: Round) -> list[Text]:
    """A line about completions that training could not read, if there were any."""
    share = finished.metrics.get("too_long")
    if share is None or not share.value:
        return []
    count = round(share.value * share.n)
    rest = f" {count} of {share.n} completions do not fit train.max_length with their prompt"
    return [line(("left out", "yellow"), rest)]


def percent(metric: Metric | None) -> str:
    """`61.2 [58.1, 64.2]`, in percent, or a dash where it does not apply."""
    if metric is None or metric.value is None:
        return "-"
    if metric.low is None or metric.high is None:
        return f"{100 * metric.value:.1f}"
    return f"{100 * metric.value:.1f} [{100 * metric.low:.1f}, {100 * metric.high:.1f}]"
