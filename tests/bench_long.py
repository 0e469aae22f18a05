"""A campaign of many micro rounds in one process: what grows with the rounds, and must not.

    ./ratchet bench long [--rounds 50] [--recipe tiny_raft]

After every round it measures this process: memory, open files, threads, child processes, and the CPU seconds of the round with
its delivery to MLflow. After every tenth it measures the CPU seconds of `ratchet show` and `ratchet runs`, which run here. CPU
seconds, since other programs share the machine. Prints a row per ten rounds and a plot per figure.

The last ten rounds may exceed rounds 2 to 11 by what LIMITS says; before, libraries load and caches fill. `show` prints a line
per round, so its limit is in seconds. Exit code 1 where a figure exceeds its limit.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.store.campaign import Campaign

LIMITS = {  # figure -> share and amount by which the mean of the last ten rounds may exceed the mean of rounds 2 to 11
    "memory, MB": (0.10, 20.0),
    "open files": (0.0, 2.0),
    "threads": (0.0, 1.0),
    "children": (0.0, 0.0),
    "round, CPU s": (0.25, 0.2),
}
ANSWERS = {"show, CPU s": 3.0, "runs, CPU s": 1.0}  # the most that an answer may take after the last round
BARS = " ▁▂▃▄▅▆▇█"
WARM = 10  # rounds in each of the two means


@dataclass
class Figures:
    """What was measured, by the name of the figure, in order."""

    of_round: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in LIMITS})
    answers: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in ANSWERS})
    cpu: float = 0.0

    def measure(self, number: int, home: Path) -> None:
        """Add the figures of a finished round."""
        import psutil

        this = psutil.Process()
        values = (this.memory_info().rss / 1e6, this.num_fds(), this.num_threads(), len(this.children()), self._spent())
        for name, value in zip(LIMITS, values, strict=True):
            self.of_round[name].append(float(value))
        if number % WARM == 0 and number:
            self._ask(home)
        self._spent()

    def _spent(self) -> float:
        """CPU seconds of this process and of its ended children since the last call."""
        before, self.cpu = self.cpu, sum(os.times()[:4])
        return self.cpu - before

    def _ask(self, home: Path) -> None:
        from flows.commands import show

        questions: list[Callable[[], None]] = [lambda: show.show("long", home=home), lambda: show.runs(home)]
        for name, question in zip(ANSWERS, questions, strict=True):
            began = time.process_time()
            question()
            self.answers[name].append(time.process_time() - began)

    def grown(self) -> list[str]:
        """The figures that exceed their limits, in words."""
        found = []
        for name, (share, amount) in LIMITS.items():
            early, late = (statistics.fmean(part) for part in (self.of_round[name][2 : WARM + 2], self.of_round[name][-WARM:]))
            if late > early * (1 + share) + amount:
                found.append(f"{name}: {early:.2f} in rounds 2 to {WARM + 1}, {late:.2f} in the last {WARM}")
        slow = [f"{name}: {self.answers[name][-1]:.2f} at the end, at most {most:g}" for name, most in ANSWERS.items()
                if self.answers[name] and self.answers[name][-1] > most]  # fmt: skip
        return found + slow

    def table(self) -> str:
        """A row per ten rounds: means of the rounds, and the answers after them."""
        lines = [f"{'rounds':<10}" + "".join(f"{name:>14}" for name in (*LIMITS, *ANSWERS))]
        for part, first in enumerate(range(1, len(self.of_round["threads"]), WARM)):
            means = [statistics.fmean(values[first : first + WARM]) for values in self.of_round.values()]
            answers = [values[part] if part < len(values) else float("nan") for values in self.answers.values()]
            lines.append(f"{f'{first}-{first + WARM - 1}':<10}" + "".join(f"{value:>14.2f}" for value in (*means, *answers)))
        return "\n".join(lines)

    def plot(self) -> str:
        """A bar per round, from 0 to the largest value."""
        lines = []
        for name, values in self.of_round.items():
            bars = "".join(BARS[round(8 * value / (max(values) or 1))] for value in values[1:])
            lines.append(f"{name:<14}{bars}  at most {max(values):.2f}")
        return "\n".join(lines)


def after_each_round(measure: Callable[[int], None]) -> None:
    """Have `measure` called whenever a round was recorded and delivered."""
    import flows.round.finish

    finish: Any = flows.round.finish
    real = finish.deliver_rounds  # the last step of a round

    def delivered(campaign: Campaign, tell: Callable[[str], None]) -> None:
        real(campaign, tell)
        measure(campaign.rounds()[-1].round)

    finish.deliver_rounds = delivered


def run(rounds: int, recipe: str, home: Path) -> Figures:
    """The figures of a campaign of so many rounds."""
    from flows import terminal
    from flows.round.improve import improve
    from flows.service import environment
    from tests.micro import micro

    for name, value in environment.DEFAULTS.items():
        os.environ.setdefault(name, value)
    environment.prepare(home)
    terminal.out.file = Path(os.devnull).open("w")  # noqa: SIM115
    Campaign.start(home, "long", micro(recipe, f"rounds={rounds}", "probe.samples=2"))
    figures = Figures()
    after_each_round(lambda number: figures.measure(number, home))
    improve.fn("long", str(home))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="ratchet bench long", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--recipe", default="tiny_raft")
    o = parser.parse_args()
    home, began = Path(tempfile.mkdtemp(prefix="ratchet-long-")), time.monotonic()
    try:
        figures = run(o.rounds, o.recipe, home)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(f"{figures.table()}\n\n{figures.plot()}\n\n{o.rounds} rounds; {time.monotonic() - began:.0f} s")
    grown = figures.grown()
    for line in grown:
        print(f"GROWS {line}")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
