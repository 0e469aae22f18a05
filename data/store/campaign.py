"""A campaign on disk: its recipe and its finished rounds. Anything that can be derived from them is not stored.

`<home>/campaigns/<name>/recipe.json`, `rounds/000.json ...` (written last, never changed), `pending.json` (a question for a
person), `final.json` (metrics of the test split), `used` (keys of every artifact that it used), `origin.json`
(of a fork or a member of a sweep). The Round records are the truth; MLflow is a projection of them.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from data.alarm import Alarm
from data.errors import CampaignError, DamagedCampaign, HomeError, RecipeError, did_you_mean
from data.recipe import recipe as recipes
from data.recipe.recipe import Recipe
from data.store.locks import LockHeld, locked
from data.store.store import Store, write_atomic

Decision = Literal["start", "promote", "hold", "roll_back", "stop", "ask"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RECORD = re.compile(r"\d{3,}\.json")
REMADE = "delete it and run the campaign again: it is made anew from finished artifacts"
UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    RecursionError,
    RecipeError,
)  # ValueError: no JSON, UTF-8 or Round
T = TypeVar("T")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Ref(_Frozen):
    """An artifact as a Round refers to it."""

    key: str
    digest: str


class Metric(_Frozen):
    """A number with its 95% interval; null if it does not apply."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    split: str = ""


class Verdict(_Frozen):
    decision: Decision
    reason: str


class Round(_Frozen):
    """The record of a finished round: enough to say which model, reference and data made its checkpoint."""

    round: int
    head_before: Ref
    checkpoint: Ref  # the one that this round trained, whatever the verdict
    head: Ref
    champion: Ref
    reference: Ref | None = None
    start_from: Ref | None = None
    artifacts: dict[str, Ref]
    metrics: dict[str, Metric]
    facts: dict[str, Any]  # what gold touched, counts about the pairs or the selection, and facts of the ledger
    alarms: tuple[Alarm, ...] = ()  # of ledger, training, judges and suites, the highest level first
    verdict: Verdict
    versions: dict[str, str]
    seconds: float


class Campaign:
    """One named run of a recipe below a home directory."""

    def __init__(self, home: Path, name: str, recipe: Recipe) -> None:
        self.home, self.name, self.recipe = home, name, recipe
        self.folder = home / "campaigns" / name
        self.store = Store(home / "store")

    # -- opening ----------------------------------------------------------------------------------------------------
    @classmethod
    def start(cls, home: Path, name: str, recipe: Recipe) -> Campaign:
        """Create the campaign, or open the one with this name if it has the same recipe.

        Raises:
            CampaignError: the campaign with this name has another recipe.
            HomeError: the home cannot be written.
        """
        check_name(name)
        folder = home / "campaigns" / name
        if (folder / "recipe.json").exists():
            existing = cls.open(home, name)
            changed = recipes.differences(existing.recipe, recipe)
            if changed:
                raise CampaignError(
                    f"campaign '{name}' exists with another recipe; pass another --name, or undo the change to resume it:\n  "
                    + "\n  ".join(changed)
                )
            if existing.recipe.hardware != recipe.hardware and not cls.runs(home, name):  # flows and `resume` read the file
                existing.recipe = recipe
                existing._write_recipe()
            return existing
        campaign = cls(home, name, recipe)
        campaign._write_recipe()
        return campaign

    def _write_recipe(self) -> None:
        try:
            (self.folder / "rounds").mkdir(parents=True, exist_ok=True)
            write_atomic(self.folder / "recipe.json", json.dumps(self.recipe.plain(), indent=1))
        except OSError as error:
            raise HomeError(
                f"expected a writable home, cannot write {self.folder}: {error.strerror}; pass another --home"
            ) from error

    @classmethod
    def open(cls, home: Path, name: str) -> Campaign:
        check_name(name)
        path = home / "campaigns" / name / "recipe.json"
        if not path.exists() and name in folders(home):
            raise DamagedCampaign(
                f"expected {path}, found rounds without it; restore it from a copy, run the `ratchet fork` again that was "
                "interrupted, or delete the folder"
            )
        if not path.exists():
            existing = names(home)
            hint = did_you_mean(name, existing)
            raise CampaignError(f"no campaign '{name}' in {home}: expected one of {', '.join(existing) or '(none yet)'}{hint}")
        restore = "restore it from a copy, or delete the campaign's folder"
        return cls(home, name, _read(path, lambda text: recipes.build(json.loads(text), str(path)), restore))

    def fork(self, at: int, name: str, recipe: Recipe) -> Campaign:
        """A campaign with copies of this one's rounds 0..at, which continues with `recipe` (see `data.recipe.forked`).

        Called again it opens the fork. A fork that was interrupted is created again.

        Raises:
            CampaignError: the round is not finished, or another campaign has the name.
        """
        last = self.recipe.rounds if not self.rounds() else self.rounds()[-1].round
        if not self.rounds() or not 0 <= at <= last:
            finished = f"rounds 0 to {last}" if self.rounds() else "no finished round"
            raise CampaignError(f"--at {at}: expected a finished round of '{self.name}', which has {finished}")
        if name in names(self.home) and Campaign.open(self.home, name).origin != {"fork": self.name, "at": at}:
            raise CampaignError(f"campaign '{name}' exists and is no fork of '{self.name}' at round {at}; pass another --name")
        check_name(name)
        folder = self.home / "campaigns" / name
        if name not in names(self.home):  # recipe.json comes last: without it an interrupted fork is no campaign yet
            (folder / "rounds").mkdir(parents=True, exist_ok=True)
            for number in range(at + 1):  # copied with its time, which is when the round ended
                shutil.copy2(self.folder / "rounds" / f"{number:03d}.json", folder / "rounds")
            write_atomic(folder / "origin.json", json.dumps({"fork": self.name, "at": at}))
        return Campaign.start(self.home, name, recipe)

    # -- its origin, and the artifacts that it uses ---------------------------------------------------------------------
    @property
    def origin(self) -> dict[str, Any]:
        """{"fork": name, "at": round}, or {"sweep": name} and "chosen" for its best; empty for a campaign simply run."""
        remedy = "restore it from a copy, or delete it: then the campaign counts as simply run"
        path = self.folder / "origin.json"
        return _read(path, _table, remedy) if path.exists() else {}

    def set_origin(self, origin: dict[str, Any]) -> None:
        if origin != self.origin:
            write_atomic(self.folder / "origin.json", json.dumps(origin))

    def use(self, key: str) -> None:
        """Note that this campaign uses an artifact, before the artifact is searched for or computed: `gc` keeps it."""
        with (self.folder / "used").open("a") as file:
            file.write(key + "\n")

    def used(self) -> set[str]:
        """Keys of every artifact that this campaign used, or that its Rounds name."""
        return used_keys(self.folder)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Hold the campaign's lock: only one process runs a campaign. The kernel frees it when that process dies."""
        try:
            with locked(self.folder / "lock", wait=False), self.store.in_use():
                yield
        except LockHeld as error:
            raise CampaignError(
                f"campaign '{self.name}' is already running in another process; wait for it or stop it"
            ) from error

    @staticmethod
    def runs(home: Path, name: str) -> bool:
        """Whether a process runs the campaign. Its recipe is not read, since it may be damaged."""
        folder = home / "campaigns" / name
        if not folder.exists():
            return False
        try:
            with locked(folder / "lock", wait=False):
                return False
        except LockHeld:
            return True

    # -- rounds -----------------------------------------------------------------------------------------------------
    def rounds(self) -> list[Round]:
        """The finished rounds. Raises DamagedCampaign: a record cannot be read, or one between others is missing."""
        return read_rounds(self.folder)

    def record(self, finished: Round) -> Round:
        """Write a Round. This is the last step of a round, and makes it a finished one."""
        write_atomic(self.folder / "rounds" / f"{finished.round:03d}.json", finished.model_dump_json(indent=1))
        self.pending_path.unlink(missing_ok=True)
        return finished

    @property
    def pending_path(self) -> Path:
        return self.folder / "pending.json"

    @property
    def final_path(self) -> Path:
        return self.folder / "final.json"

    def pending(self) -> dict[str, Any] | None:
        """The open question of a gate to a person, if any: {"round", "reason"}, and "decision" once it is answered."""
        remedy = "delete it and run the campaign again: the gate asks again"
        return _read(self.pending_path, _table, remedy) if self.pending_path.exists() else None

    def decide(self, decision: str) -> None:
        """Answer the open question. The next run finishes the round with this decision."""
        question = self.pending()
        if question is None:
            raise CampaignError(f"campaign '{self.name}' waits for no decision; leave --decide out")
        if decision not in ("promote", "hold", "roll_back", "stop"):
            raise CampaignError(f"--decide {decision}: expected promote, hold, roll_back or stop")
        write_atomic(self.pending_path, json.dumps({**question, "decision": decision}))

    def final(self) -> dict[str, dict[str, Metric]] | None:
        """Test and out-of-distribution metrics by role (`checkpoints_at_end`); None until they are measured."""
        if not self.final_path.exists():
            return None
        return _read(self.final_path, _metrics, REMADE)

    @property
    def reads_test(self) -> bool:
        """Whether it reads the test split after its last round. Of a sweep's campaigns only the chosen one does."""
        return "sweep" not in self.origin or bool(self.origin.get("chosen"))

    @property
    def rounds_over(self) -> bool:
        """Whether no further round follows: all are finished, or the gate stopped."""
        finished = self.rounds()
        return bool(finished) and (finished[-1].round >= self.recipe.rounds or finished[-1].verdict.decision == "stop")

    @property
    def over(self) -> bool:
        """Whether nothing is left to compute: no round, and no reading of the test split."""
        return self.final() is not None or (self.rounds_over and not self.reads_test)

    def _contents(self) -> str:
        return f"{len(self.rounds())} rounds, final {'read' if self.final_path.exists() else 'unread'}"

    @property
    def delivered(self) -> bool:
        """Whether MLflow has confirmed all rounds and final metrics. After an outage this is false until the next run."""
        receipt = self.folder / "delivered"
        return receipt.exists() and receipt.read_text() == self._contents()

    def mark_delivered(self) -> None:
        write_atomic(self.folder / "delivered", self._contents())

    @property
    def state(self) -> Literal["new", "unfinished", "waiting", "stopped", "done"]:
        finished = self.rounds()
        if self.pending() and "decision" not in (self.pending() or {}):
            return "waiting"
        if finished and finished[-1].verdict.decision == "stop":
            return "stopped"
        if self.over:
            return "done"
        return "unfinished" if finished else "new"


def checkpoints_at_end(rounds: Sequence[Round]) -> dict[str, Ref]:
    """The checkpoints that are measured on the test split, by role. One checkpoint may have several roles.

    `base` is checkpoint 0, `champion` the best one that the gate accepted, `head` the one that a next round would start from,
    and `last` the last round's, whatever its verdict.
    """
    first, last = rounds[0], rounds[-1]
    return {"base": first.checkpoint, "champion": last.champion, "head": last.head, "last": last.checkpoint}


def read_rounds(folder: Path) -> list[Round]:
    """The finished rounds of the campaign in `folder`, whose recipe is not read.

    Raises:
        DamagedCampaign: a record cannot be read, or one between others is missing.
    """
    paths = [path for path in (folder / "rounds").glob("*") if RECORD.fullmatch(path.name)]
    paths.sort(key=lambda path: int(path.stem))
    again = "restore it from a copy; or delete it and every later record, and run the campaign again from there"
    rounds = [_read(path, Round.model_validate_json, again) for path in paths]
    for number, finished in enumerate(rounds):
        if finished.round != number:
            raise DamagedCampaign(
                f"campaign '{folder.name}': expected a record of every round from 0 to {rounds[-1].round}, found none of round "
                f"{number} in {folder / 'rounds'}; {again}"
            )
    return rounds


def used_keys(folder: Path) -> set[str]:
    """Keys of every artifact that the campaign in `folder` used, or that its Rounds name. Its recipe is not read.

    Raises:
        DamagedCampaign: they cannot be known.
    """
    noted = folder / "used"
    keys = _read(noted, lambda text: set(text.split()), "restore it from a copy, or delete it") if noted.exists() else set()
    for finished in read_rounds(folder):
        keys |= {ref.key for ref in (finished.checkpoint, finished.head, finished.champion, *finished.artifacts.values())}
    return keys


def _read(path: Path, parse: Callable[[str], T], remedy: str) -> T:
    """What a file of a campaign says. Any content may be there: a crash, a full disk or an editor may have left it."""
    try:
        return parse(path.read_text())
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedCampaign(f"expected {path} as Ratchet wrote it, found it damaged ({reason}); {remedy}") from error


def _table(text: str) -> dict[str, Any]:
    return dict(json.loads(text).items())


def _metrics(text: str) -> dict[str, dict[str, Metric]]:
    return {which: {name: Metric(**m) for name, m in metrics.items()} for which, metrics in json.loads(text).items()}


def folders(home: Path) -> list[str]:
    """Names of all folders that may hold a campaign: with a recipe, or damaged, or of a fork that was interrupted."""
    return sorted({p.parent.name for p in (home / "campaigns").glob("*/rounds")} | set(names(home)))


def names(home: Path) -> list[str]:
    """Names of the campaigns of a home."""
    return sorted(p.parent.name for p in (home / "campaigns").glob("*/recipe.json"))


def check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise CampaignError(
            f"name '{name}': expected letters, digits, '.', '_' or '-', at most 64, starting with a letter or digit"
        )


def free_bytes(home: Path) -> int:
    """Free space on the file system of `home`, which need not exist yet."""
    folder = home.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
