"""Where campaigns are disturbed: attempts in processes of their own, what happens at which moment, and what is left afterwards.

An attempt is the real command line in a process that is forked off this one. All libraries are imported already, so an attempt
costs seconds, and it can be killed at any instant like any other. It tells when it begins something: a stage, its commit, a
record, a delivery. The laboratory picks one of these moments and an instant after it, and disturbs. Before, the home holds what
the calm campaign made up to that moment, and later artifacts too: whatever the disturbed stage makes differently changes every
later key, so nothing later would fit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.store.campaign import Campaign
from data.store.store import Store
from tests.bench_kill import doubled_metrics, left_over, stamp
from tests.micro import SETS

PATIENCE = 300  # seconds that an attempt may take
SMALL = ("rounds=1", "probe.samples=2", "hardware.prefect=false")
ROUNDS_IN_MLFLOW = """select count(*) from tags r join tags c on r.run_uuid = c.run_uuid
    where r.key = 'ratchet.round' and c.key = 'ratchet.campaign' and c.value = 'k'"""
Patch = Callable[[], None]  # something that goes wrong inside the attempt's process


@dataclass(frozen=True)
class Moment:
    """Something that the calm campaign began: a stage, its commit, or what follows the stages of a round."""

    name: str
    key: str  # of the stage's artifact; "-" where it is no stage
    round: int
    seconds: float  # until the next moment


@dataclass(frozen=True)
class Ended:
    """How an attempt ended, and what it printed."""

    code: int  # negative: killed by that signal
    said: str
    reached: bool = True  # the moment at which it was to be disturbed

    @property
    def one_line(self) -> bool:
        """Whether the end is explained without a traceback."""
        return "Traceback" not in self.said and bool(self.said.strip())


class Attempt:
    """`ratchet ARGUMENTS` in a process of its own."""

    def __init__(self, home: Path, arguments: Sequence[str], patch: Patch | None = None) -> None:
        self.said_path, (self.marks, marks) = Path(tempfile.mkstemp(prefix="ratchet-said-")[1]), os.pipe()
        self.passed: list[tuple[str, str, float]] = []  # name, key, when
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.marks)
            _become(home, arguments, self.said_path, marks, patch)
        os.close(marks)

    def wait_for(self, name: str) -> bool:
        """Wait until the attempt begins `name`. False if it ends first."""
        while name not in (passed for passed, _, _ in self.passed):
            if not self._read():
                return False
        return True

    def _read(self) -> bool:
        ready, _, _ = select.select([self.marks], [], [], PATIENCE)
        if not ready:
            raise TimeoutError(f"an attempt began nothing new for {PATIENCE} s; it said: {self.said()[-2000:]}")
        found = os.read(self.marks, 65536).decode()
        for line in found.splitlines():
            name, key = line.split()
            self.passed.append((name, key, time.monotonic()))
        return bool(found)

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def said(self) -> str:
        return self.said_path.read_text(errors="replace") if self.said_path.exists() else ""

    def end(self) -> Ended:
        """Wait for its end. One that hangs is killed, and that is an error of the product."""
        while self._read():
            pass
        os.close(self.marks)
        deadline = time.monotonic() + PATIENCE
        while not (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"an attempt did not end; it said: {self.said()[-2000:]}")
            time.sleep(0.005)
        return Ended(os.waitstatus_to_exitcode(found[1]), self.said())


def _become(home: Path, arguments: Sequence[str], said: Path, marks: int, patch: Patch | None) -> None:
    """In the forked process: run the command line, and end."""
    code = 70
    try:
        os.setsid()
        with said.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        from flows import cli, terminal

        terminal.out.file, terminal.err.file = sys.stdout, sys.stderr
        watch(lambda name, key: os.write(marks, f"{name} {key}\n".encode()))
        if patch is not None:
            patch()
        sys.argv = ["ratchet", *arguments, "--home", str(home)]
        try:
            cli.entry()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:  # whatever happens: two laboratories would go on
            os._exit(code)


def watch(tell: Callable[[str, str], Any]) -> None:
    """Have this process tell when a stage, a commit, a record, a delivery, an eviction or the last measurement begins."""
    from flows.round import finish, improve
    from tasks.run import stage

    def telling(place: Any, attribute: str, name: str = "") -> None:
        real = getattr(place, attribute)

        def told(*arguments: Any, **more: Any) -> Any:
            tell(*((name, "-") if name else (f"{attribute.strip('_')}-{arguments[1].stage}", arguments[1].key)))
            return real(*arguments, **more)

        setattr(place, attribute, told)

    telling(stage, "_make")
    telling(Store, "commit")
    telling(Campaign, "record", "record")
    telling(finish, "deliver_rounds", "deliver")
    telling(finish, "evict", "evict")
    telling(improve, "measure_final", "final")
    telling(improve, "deliver_rounds", "deliver-final")


@dataclass
class Calm:
    """A campaign that nobody disturbed: its digests, and its moments."""

    recipe: str
    sets: tuple[str, ...] = ()
    folder: Path = field(default_factory=Path)
    digests: list[dict[str, str]] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)

    @property
    def arguments(self) -> list[str]:
        return ["run", self.recipe, "--name", "k", *(p for item in (*SETS, *SMALL, *self.sets) for p in ("--set", item))]

    def run(self, place: Path) -> Calm:
        home = Home(place / f"calm-{self.recipe}", self)
        attempt = Attempt(home.path, self.arguments)
        ended = attempt.end()
        if ended.code != 0:
            raise RuntimeError(f"the calm run failed:\n{ended.said[-3000:]}")
        number = 0
        for (name, key, began), (_, _, after) in itertools.pairwise([*attempt.passed, ("", "", attempt.passed[-1][2] + 0.2)]):
            self.moments.append(Moment(name, key, number, after - began))
            number += name == "deliver"
        self.digests, self.folder = home.digests(), home.path
        empty_memory(self.folder)
        return self

    def moment(self, draw: random.Random, only: str = "") -> Moment:
        """A moment, each name equally often; `only` those whose name holds this."""
        name = draw.choice(sorted({moment.name for moment in self.moments if only in moment.name}))
        return draw.choice([moment for moment in self.moments if moment.name == name])

    def home_before(self, moment: Moment, path: Path) -> Home:
        """A home that holds what this campaign had made just before a moment, and artifacts of later stages."""
        shutil.copytree(self.folder, path)
        campaign = path / "campaigns" / "k"
        for record in (campaign / "rounds").glob("*.json"):
            if int(record.stem) >= moment.round:
                record.unlink()
        for name in ("final.json", "delivered"):
            (campaign / name).unlink(missing_ok=True)
        home = Home(path, self)
        if moment.key != "-":
            shutil.rmtree(Store(path / "store").folder(moment.key))
        home.stamps = home.stamps_now()
        return home


def empty_memory(home: Path) -> None:
    """Replace MLflow's database by one without runs."""
    from registry.client import mlflow_client

    shutil.rmtree(home / "mlartifacts", ignore_errors=True)
    (home / "mlflow.db").unlink()
    with mlflow_client(home):
        pass


@dataclass
class Home:
    """A home in which one campaign is disturbed, and what is found there afterwards."""

    path: Path
    calm: Calm
    log: list[Ended] = field(default_factory=list)
    stamps: dict[str, int] = field(default_factory=dict)
    remade: int = 0

    def attempt(self, *arguments: str, patch: Patch | None = None) -> Attempt:
        return Attempt(self.path, arguments or self.calm.arguments, patch)

    def disturb(
        self, moment: Moment, after: float, act: Callable[[Attempt], None] = lambda attempt: None, patch: Patch | None = None
    ) -> Ended:
        """An attempt in which `act` happens so many seconds after a moment."""
        attempt = self.attempt(patch=patch)
        reached = attempt.wait_for(moment.name)
        time.sleep(after if reached else 0)
        act(attempt)
        ended = dataclasses.replace(attempt.end(), reached=reached)
        self.note(ended)
        return ended

    def note(self, ended: Ended) -> None:
        """Count the finished artifacts that were made again meanwhile."""
        self.log.append(ended)
        now = self.stamps_now()
        self.remade += sum(now.get(key, 0) not in (0, before) for key, before in self.stamps.items())
        self.stamps = now

    def stamps_now(self) -> dict[str, int]:
        store = Store(self.path / "store")
        return {key: stamp(store, key) for key in store.keys()}

    def finish(self) -> Ended:
        """The same command again, undisturbed."""
        ended = self.attempt().end()
        self.note(ended)
        return ended

    def digests(self) -> list[dict[str, str]]:
        return [{label: ref.digest for label, ref in r.artifacts.items()} for r in Campaign.open(self.path, "k").rounds()]

    def troubles(self) -> list[str]:
        """What is wrong at the end; empty if everything is as in the calm run."""
        found = []
        if self.digests() != self.calm.digests:
            found.append("different digests")
        found += [f"damaged: {line}" for line in Store(self.path / "store").verify()]
        found += left_over(self.path / "store")
        if self.remade:
            found.append(f"{self.remade} finished artifacts made again")
        if doubled := doubled_metrics(self.path):
            found.append(f"{doubled} metrics doubled")
        if missing := self.not_delivered():
            found.append(f"MLflow lacks {missing}")
        return found

    def not_delivered(self) -> str:
        """What MLflow lacks: rounds, or the final metrics."""
        campaign = Campaign.open(self.path, "k")
        with contextlib.closing(sqlite3.connect(self.path / "mlflow.db")) as database:
            rounds = database.execute(ROUNDS_IN_MLFLOW).fetchone()[0]
        if rounds != len(campaign.rounds()):
            return f"{len(campaign.rounds()) - rounds} rounds"
        return "" if campaign.final() and campaign.delivered else "the final metrics"


@contextlib.contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A file system of its own in memory.

    Raises:
        OSError: this user may not mount one.
    """
    folder = Path(tempfile.mkdtemp(prefix="ratchet-disk-"))
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise OSError(done.stderr.strip())
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def remount(folder: Path, how: str) -> bool:
    """Mount a small disk again, "ro" or "rw". False if a file on it is being written."""
    return subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], capture_output=True, check=False).returncode == 0


def imported() -> None:
    """Import what campaigns need, once: every attempt shares it."""
    import mlflow  # noqa: F401
    import torch
    import transformers
    import transformers.generation.utils
    import trl  # noqa: F401

    from flows import cli  # noqa: F401
    from flows.round import improve  # noqa: F401
    from flows.service import environment
    from registry import sync  # noqa: F401

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for name, value in environment.DEFAULTS.items():
        os.environ.setdefault(name, value)
