"""The fault laboratory: small campaigns under injected faults, and what is lost, doubled or different afterwards.

    ./ratchet bench faults [--kills 500] [--others 300] [--seed 0] [--only NAME,...] [--list]

Every trial disturbs a campaign at a random moment of a stage, a commit, a record, a delivery or the last measurement
(tests/laboratory.py), then runs the same command again and compares with a campaign that nobody disturbed. --kills are shared
among the faults that kill (SIGKILL, SIGTERM, Ctrl-C once and twice), --others among the rest. A row per fault:

    tried      trials
    in time    of these, the fault fell into its moment (a stage may end before)
    survived   the campaign ended as the calm one; or the fault was refused in one line, and once repaired it ended so
    redone     finished artifacts that were made again
    lost       rounds or final metrics that MLflow lacks, and artifacts that stayed damaged
    doubled    metrics that MLflow holds twice
    different  campaigns with other digests than the calm one
    traceback  ends that were explained by a traceback, or not at all
    longest s  seconds of the longest trial

Disk faults are real file systems in memory, so they need a user who may mount (else they are left out, and it says so). Clock,
out of memory on a GPU, NaN and a scorer that raises are planted inside the process. Prefect's server, worker and flow processes
are killed by `ratchet bench kills_prefect`. Exit code 1 where anything was lost, doubled, different or unexplained.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tasks.score.scorers import Score
from tests import micro
from tests.laboratory import Attempt, Calm, Ended, Home, Moment, imported, remount, small_disk

RECIPES = ("tiny_raft", "tiny_dpo")
DIED = (-signal.SIGABRT, -signal.SIGSEGV, 127)  # what libraries in C++ do without memory, and what the C library does
FULL = re.compile("no space left|disk is full", re.IGNORECASE)


@dataclass
class Trial:
    """One campaign under one fault."""

    draw: random.Random
    calm: Calm
    place: Path
    what: str = ""  # what happened, in words
    landed: bool = True
    troubles: list[str] = field(default_factory=list)
    messages: set[str] = field(default_factory=set)  # what a person was told, without numbers and names
    seconds: float = 0.0

    def moment(self, only: str = "") -> tuple[Moment, float]:
        moment = self.calm.moment(self.draw, only)
        return moment, self.draw.uniform(0, 1.1 * moment.seconds)

    def home(self, moment: Moment) -> Home:
        return self.calm.home_before(moment, self.place / "home")

    def explained(self, ended: Ended, *codes: int) -> None:
        """Note an end that is none of the codes, or that nobody could understand."""
        self.messages |= told(ended.said)
        if ended.code not in codes:
            self.troubles.append(f"unexpected exit code {ended.code}: {ended.said[-400:]}")
        if "Traceback" in ended.said:
            self.troubles.append(f"traceback: {ended.said[-400:]}")

    def finish(self, home: Home) -> None:
        """Run the command again; the campaign must end as the calm one."""
        ended = home.finish()
        self.explained(ended, 0)
        if ended.code == 0:
            self.troubles += home.troubles()


def told(said: str) -> set[str]:
    """Errors, warnings and interruptions among what was printed, with numbers, keys and folders replaced."""
    lines = [
        line
        for line in said.splitlines()
        if re.match(r"\w*(Error|Failed|Artifact|Campaign|Reached|Use)\b:|Interrupted|warning", line)
    ]
    return {re.sub(r"/tmp/\S*?/(?=home|k\b|store)|\b[0-9a-f]{12,}\b|\d+(\.\d+)?", "~", line.strip()) for line in lines}


# -- kills ---------------------------------------------------------------------------------------------------------------
def killed(*numbers: int) -> Callable[[Trial], None]:
    """Signals at a random moment, a tenth of a second apart."""

    def fault(trial: Trial) -> None:
        moment, after = trial.moment()
        home = trial.home(moment)

        def send(attempt: Attempt) -> None:
            for place, number in enumerate(numbers):
                time.sleep(0.1 * bool(place))
                attempt.send(number)

        ended = home.disturb(moment, after, send)
        trial.what, trial.landed = f"{moment.name} of round {moment.round} + {after:.2f} s: code {ended.code}", ended.code != 0
        trial.explained(ended, 0, 130, 143, *(-number for number in numbers))
        trial.finish(home)

    return fault


# -- disks ---------------------------------------------------------------------------------------------------------------
def fill_up(file: int, left: int) -> None:
    """Let a file take the rest of its disk, but so many bytes. The campaign writes meanwhile, so it may take some tries."""
    for _ in range(100):
        free = os.fstatvfs(file).f_bavail * os.fstatvfs(file).f_frsize
        with contextlib.suppress(OSError):
            os.posix_fallocate(file, 0, max(1, free - left))
            return


def full_disk(trial: Trial) -> None:
    """The disk has a few kilobytes left from a random moment on."""
    moment, after = trial.moment()
    with small_disk(400) as disk:
        home = trial.calm.home_before(moment, disk / "home")

        def fill(attempt: Attempt) -> None:
            left = trial.draw.choice((0, 0, 4096, 65536))
            with (disk / "filler").open("wb") as file:
                fill_up(file.fileno(), left)

        ended = home.disturb(moment, after, fill)
        trial.what, trial.landed = (
            f"{moment.name} of round {moment.round}: code {ended.code}",
            FULL.search(ended.said) is not None,
        )
        trial.explained(ended, 0, 1, 2)
        (disk / "filler").unlink()
        trial.finish(home)


def read_only(trial: Trial) -> None:
    """The home cannot be written when the command starts."""
    moment, _ = trial.moment()
    with small_disk(400) as disk:
        home = trial.calm.home_before(moment, disk / "home")
        trial.landed = remount(disk, "ro")
        ended = home.attempt().end()
        trial.explained(ended, 0, 1, 2)
        remount(disk, "rw")
        trial.finish(home)


# -- damage --------------------------------------------------------------------------------------------------------------
def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def garbage(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(draw.randrange(1, 4096)))


def delete(path: Path, draw: random.Random) -> None:
    path.unlink()


def damaged(damage: Callable[[Path, random.Random], None]) -> Callable[[Trial], None]:
    """A file of the home is damaged after a kill. It is named and healed, or refused in one line and then restored."""

    def fault(trial: Trial) -> None:
        moment, after = trial.moment()
        home = trial.home(moment)
        home.disturb(moment, after, lambda attempt: attempt.send(signal.SIGKILL))
        files = kinds(home.path)
        kind = trial.draw.choice(sorted(files))
        path = trial.draw.choice(files[kind])
        copy = trial.place / "copy"
        shutil.copy2(path, copy)
        damage(path, trial.draw)
        home.stamps = {}  # healing makes artifacts again, as it should
        trial.what = f"{kind}: {path.relative_to(home.path)}"
        ended = home.finish()
        home.remade = 0
        trial.explained(ended, 0, 1, 2)
        if ended.code != 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(copy, path)
            ended = home.finish()
            home.remade = 0
            trial.explained(ended, 0)
        elif path.name == "mlflow.db" and "warning" in ended.said.lower():  # MLflow could not be written: the records are safe
            shutil.copy2(copy, path)
            ended = home.finish()
        if ended.code == 0:
            trial.troubles += home.troubles()

    return fault


def kinds(home: Path) -> dict[str, list[Path]]:
    """The files of a home that are not empty, by what they are; each kind is hit equally often."""
    found: dict[str, list[Path]] = {}
    for path in home.rglob("*"):
        if path.is_file() and path.stat().st_size and "locks" not in path.parts and "quarantine" not in path.parts:
            inside = path.relative_to(home).parts
            kind = {"store": inside[1] if len(inside) > 1 else ""}.get(inside[0], inside[0])
            found.setdefault(f"{kind} {path.suffix if kind == 'rounds' else path.name}"[:40], []).append(path)
    return found


def no_optimizer(trial: Trial) -> None:
    """The optimizer's state of the newest save is gone."""
    moment, _ = trial.moment("make-train")
    home = trial.home(moment)
    partial = home.path / "store" / "partial"

    def kill_after_a_save(attempt: Attempt) -> None:
        deadline = time.monotonic() + 10  # a training without saves is killed at its end
        while not any(partial.rglob("ratchet-manifest.json")) and time.monotonic() < deadline:
            time.sleep(0.002)
        attempt.send(signal.SIGKILL)

    home.disturb(moment, 0.0, kill_after_a_save)
    states = sorted(partial.rglob("optimizer.pt"))
    trial.landed = bool(states)
    for state in states:
        state.unlink()
    trial.finish(home)


# -- others at the same time ----------------------------------------------------------------------------------------------
def beside(*arguments: str, codes: tuple[int, ...] = (0, 2)) -> Callable[[Trial], None]:
    """Another command on the same home, from a random moment on."""

    def fault(trial: Trial) -> None:
        moment, after = trial.moment()
        home = trial.home(moment)
        other: list[Attempt] = []

        def act(attempt: Attempt) -> None:
            again = Home(trial.place / "home", trial.calm).attempt(*(arguments or trial.calm.arguments))
            other.append(again)

        first = home.disturb(moment, after, act)
        second = other[0].end()
        trial.what = f"{moment.name}: {first.code} and {second.code}"
        trial.explained(first, 0, 2)
        trial.explained(second, *codes)
        trial.finish(home)

    return fault


def two_campaigns(trial: Trial) -> None:
    """Two campaigns of one recipe on one store, of which one is killed."""
    moment, after = trial.moment()
    home = trial.home(moment)
    twin = ["k2" if word == "k" else word for word in trial.calm.arguments]
    others: list[Attempt] = []
    home.disturb(moment, 0.0, lambda attempt: others.append(Attempt(home.path, twin)))
    time.sleep(after)
    others[0].send(signal.SIGKILL)
    others[0].end()
    ended = Attempt(home.path, twin).end()
    trial.explained(ended, 0)
    home.stamps = {}
    trial.finish(home)


# -- time, memory, MLflow, parts ------------------------------------------------------------------------------------------
def clock_backwards() -> None:
    real, began = time.time, time.monotonic()
    jump = random.Random(os.getpid()).uniform(0.2, 3.0)
    time.time = lambda: real() - 86_400 * (time.monotonic() - began > jump)


def little_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    more = random.Random(os.getpid()).choice((8, 32, 96)) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))


def few_files() -> None:
    more = random.Random(os.getpid()).randrange(2, 12)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + more, 4096))


def scorer_raises() -> None:
    real, calls = micro.ends_even, iter(range(10**9))
    last = random.Random(os.getpid()).randrange(3)

    @functools.wraps(real)
    def raises(prompts: Sequence[micro.Row], completions: Sequence[micro.Row]) -> list[Score]:
        if next(calls) >= last:
            raise ValueError("planted")
        return real(prompts, completions)

    micro.ends_even = raises


def loss_is_nan() -> None:
    from transformers import Trainer

    real = Trainer.training_step

    def step(self: Trainer, *arguments: object, **more: object) -> object:
        loss = real(self, *arguments, **more)
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.fill_(float("nan"))
        return loss * float("nan")

    Trainer.training_step = step


def small_files() -> None:
    """`ulimit -f`: no file may grow beyond a few kilobytes."""
    size = random.Random(os.getpid()).choice((1, 16, 64, 256)) * 1024
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def stage_killed(trial: Trial) -> None:
    """A stage runs in a process of its own, and that process is killed."""
    moment, _ = trial.moment("make")
    home = trial.home(moment)
    attempt = home.attempt(*trial.calm.arguments, "--set", "hardware.isolation='process'")
    attempt.wait_for(moment.name)
    time.sleep(trial.draw.uniform(0.1, 4))
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(attempt.pid).children(recursive=True):
            child.kill()
    ended = attempt.end()
    home.note(ended)
    trial.what, trial.landed = f"{moment.name}: code {ended.code}", ended.code != 0
    trial.explained(ended, 0, 1)
    trial.finish(home)


def mlflow_is_gone() -> None:
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"


def planted(patch: Callable[[], None], *codes: int, only: str = "") -> Callable[[Trial], None]:
    """Something goes wrong inside the process; without it the campaign ends as the calm one."""

    def fault(trial: Trial) -> None:
        moment, _ = trial.moment(only)
        home = trial.home(moment)
        ended = home.disturb(moment, 0.0, patch=patch)
        trial.what, trial.landed = f"{moment.name}: code {ended.code}", ended.reached
        trial.explained(ended, *codes)
        trial.finish(home)

    return fault


def mlflow_is_locked(trial: Trial) -> None:
    """Another program holds MLflow's database while a round is delivered."""
    moment, _ = trial.moment("deliver")
    home = trial.home(moment)
    database = sqlite3.connect(home.path / "mlflow.db", isolation_level=None)
    database.execute("begin exclusive")
    attempt = home.attempt()
    attempt.wait_for("deliver-final")
    time.sleep(trial.draw.uniform(0, 1))
    database.close()
    trial.explained(attempt.end(), 0)
    trial.finish(home)


KILLS: dict[str, Callable[[Trial], None]] = {
    "SIGKILL": killed(signal.SIGKILL),
    "SIGTERM": killed(signal.SIGTERM),
    "Ctrl-C": killed(signal.SIGINT),
    "Ctrl-C twice": killed(signal.SIGINT, signal.SIGINT),
}
DISKS = {"disk full": full_disk, "read-only home": read_only}
OTHERS: dict[str, Callable[[Trial], None]] = {
    **DISKS,
    "bit flipped": damaged(flip),
    "file truncated": damaged(truncate),
    "file is garbage": damaged(garbage),
    "file deleted": damaged(delete),
    "no optimizer state": no_optimizer,
    "two campaigns": two_campaigns,
    "one campaign twice": beside(),
    "verify beside": beside("verify", codes=(0, 2)),
    "gc beside": beside("gc", "--yes", codes=(0, 2)),
    "fork beside": beside("fork", "k", "--at", "0", "--name", "forked", codes=(0, 2)),
    "clock backwards": planted(clock_backwards, 0),
    "little memory": planted(little_memory, 0, 1, 2, *DIED, only="make"),
    "few open files": planted(few_files, 0, 1, 2),
    "small files": planted(small_files, 0, 1, 2),
    "stage killed": stage_killed,
    "scorer raises": planted(scorer_raises, 0, 1, only="make-score"),
    "loss is NaN": planted(loss_is_nan, 0, 1, only="make-train"),
    "MLflow is gone": planted(mlflow_is_gone, 0),
    "MLflow is locked": mlflow_is_locked,
}
SHARES = {"SIGKILL": 0.7, "SIGTERM": 0.1, "Ctrl-C": 0.1, "Ctrl-C twice": 0.1}


def plan(kills: int, others: int, only: str) -> list[str]:
    """Names of the faults, one for each trial; the first of every fault come first."""
    wanted = [name for name in (*KILLS, *OTHERS) if not only or name in only.split(",")]
    counts = {name: round(SHARES[name] * kills) if name in KILLS else -(-others // len(OTHERS)) for name in wanted}
    return [name for turn in range(max(counts.values(), default=0)) for name in wanted if turn < counts[name]]


def may_mount() -> bool:
    try:
        with small_disk(1):
            return True
    except OSError:
        return False


def trial_of(name: str, draw: random.Random, calms: list[Calm]) -> Trial:
    place, began = Path(tempfile.mkdtemp(prefix="ratchet-fault-")), time.monotonic()
    trial = Trial(draw, draw.choice(calms), place)
    try:
        (KILLS | OTHERS)[name](trial)
    except Exception as error:
        trial.troubles.append(f"unexpected {type(error).__name__}: {error}")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    trial.seconds = time.monotonic() - began
    return trial


COLUMNS = {  # what each column counts: trials with a trouble that has one of these words
    "redone": ("made again",),
    "lost": ("lacks", "damaged:", "partial ", "locked "),
    "doubled": ("doubled",),
    "different": ("different",),
    "traceback": ("traceback", "unexpected"),
}


def table(trials: dict[str, list[Trial]]) -> str:
    """A row per fault."""
    names = "".join(f"{name:>11}" for name in COLUMNS)
    lines = [f"{'fault':<20}{'tried':>7}{'in time':>9}{'survived':>10}{names}{'longest s':>11}"]
    for name, some in trials.items():
        good, landed = sum(not trial.troubles for trial in some), sum(trial.landed for trial in some)
        cells = "".join(f"{sum(troubled(trial, words) for trial in some):>11}" for words in COLUMNS.values())
        lines.append(f"{name:<20}{len(some):>7}{landed:>9}{good:>10}{cells}{max(trial.seconds for trial in some):>11.0f}")
    return "\n".join(lines)


def troubled(trial: Trial, words: tuple[str, ...]) -> bool:
    return any(word in trouble for trouble in trial.troubles for word in words)


def main() -> int:
    parser = argparse.ArgumentParser(prog="ratchet bench faults", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--others", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="of the faults, by name")
    parser.add_argument("--list", action="store_true", help="print the names of the faults")
    o = parser.parse_args()
    if o.list:
        print("\n".join((*KILLS, *OTHERS)))
        return 0
    names, left_out = plan(o.kills, o.others, o.only), set() if may_mount() else set(DISKS)
    if left_out:
        print(f"left out, since this user may not mount: {', '.join(sorted(left_out))}")
    imported()
    began, place = time.monotonic(), Path(tempfile.mkdtemp(prefix="ratchet-faults-"))
    trials: dict[str, list[Trial]] = {}
    try:
        calms = [Calm(recipe).run(place) for recipe in RECIPES]
        print(f"calm: {', '.join(f'{c.recipe} {len(c.moments)} moments' for c in calms)}", flush=True)
        for number, name in enumerate(name for name in names if name not in left_out):
            trial = trial_of(name, random.Random(f"{o.seed}/{number}"), calms)
            trials.setdefault(name, []).append(trial)
            for trouble in trial.troubles:
                print(f"BAD {name}, {trial.calm.recipe}, {trial.what}: {trouble}", flush=True)
            if number % 25 == 24:
                print(table(trials), flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    every = [trial for some in trials.values() for trial in some]
    print(table(trials))
    for message in sorted({message for trial in every for message in trial.messages}):
        print(f"told: {message}")
    print(f"{len(every)} faults, {sum(not trial.troubles for trial in every)} survived; {time.monotonic() - began:.0f} s")
    return 1 if any(trial.troubles for trial in every) else 0


if __name__ == "__main__":
    sys.exit(main())
