"""Shared fixtures: one thread, no telemetry, nothing downloaded, one Prefect database a session."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("RATCHET_HOME", tempfile.mkdtemp(prefix="ratchet-tests-"))

from flows.service import environment

for name, value in environment.DEFAULTS.items():
    os.environ[name] = value
settings.register_profile("ratchet", deadline=None)  # what a claim costs is not the claim, and the cores are shared
settings.load_profile("ratchet")
# A shell that starts the tests in the background has them ignore Ctrl-C, and so would everything they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"  # what needs a server asks for the fixture
environment.prepare(Path(os.environ["RATCHET_HOME"]))  # one Prefect database for the session, whatever home a test uses


@pytest.fixture(scope="module", autouse=True)
def left_open() -> Iterator[None]:
    """What libraries left open in a file (a client's socket) is collected at its end, and is no error there. Collected in the
    midst of a later test it would be one of that test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def prefect() -> Iterator[None]:
    """A Prefect server. Its port is one that the kernel gives away once: Prefect's own temporary servers draw theirs from
    `random`, which a training seeds, so two test workers could meet on one server and mark each other's runs as dead."""
    from flows.service.services import prefect_api

    with prefect_api(Path(os.environ["RATCHET_HOME"])):
        yield


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def ratchet(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command line in this process; returns the exit code (read what it printed with capsys)."""
    from flows.cli import entry

    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["ratchet", *map(str, arguments)])
        try:
            entry()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return call


@pytest.fixture(scope="session")
def known_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the seed model and round 0 of the micro world. Most campaigns start from it; all workers share it."""
    from data.store.campaign import Campaign
    from data.store.locks import locked
    from flows.round.improve import improve
    from tests.micro import micro

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    home = folder / "known"
    with locked(folder / "known.lock"):
        if not (folder / "known.made").exists():  # another worker has not been here yet
            Campaign.start(home, "known", micro("tiny_control", "rounds=1"))
            improve.fn("known", str(home))
            (folder / "known.made").touch()
    return home / "store"


@pytest.fixture
def run_micro(home: Path, request: pytest.FixtureRequest) -> Callable[..., object]:
    """Run a micro campaign in this process, without Prefect; returns the campaign. `fresh` starts from an empty store."""
    from data.store.campaign import Campaign
    from tests.micro import micro

    def run(source: str = "tiny_raft", *sets: str, name: str = "micro", place: Path = home, fresh: bool = False) -> Campaign:
        environment.prepare(place)
        if not fresh and not (place / "store").exists():
            shutil.copytree(request.getfixturevalue("known_store"), place / "store")
        from flows.round.improve import improve

        campaign = Campaign.start(place, name, micro(source, *sets))
        improve.fn(name, str(place))
        return campaign

    return run
