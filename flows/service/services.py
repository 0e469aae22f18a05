"""Services next to campaigns: Prefect's server and worker, and MLflow's UI. On this machine only, each with a log."""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path

from data.addresses import http_address
from data.errors import PortTaken, ServiceFailed
from data.store.locks import locked
from flows.service.access import HOSTS, MLFLOW_CREDENTIALS, credentials
from flows.service.environment import CHECKOUT, PREFECT_ADDRESS
from registry import ui
from tasks.run.worker import die_with_parent

HOST = "127.0.0.1"
PREFECT = (sys.executable, "-m", "prefect")
STARTING = 180.0  # seconds until a service must answer; on a busy machine a new Prefect database takes most of a minute
QUICK = 15.0  # seconds; a service that ends sooner after its start is not restarted, since it would end again
GRACE = 20.0  # seconds between SIGTERM and SIGKILL, in which a flow run reports its end


class Service:
    """One program in a process group of its own. The kernel ends it if this process is killed."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        health: str = "",
        leaves: bool = False,
    ) -> None:
        """`health`: the address that answers once it has started. `leaves`: its children outlive it, as a worker's runs do."""
        self.name, self.command, self.log, self.health, self.leaves = name, list(command), log, health, leaves
        self.environment = dict(environment)
        self.groups: list[int] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.began = 0.0

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C reaches only this process, which then ends the services in order
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )
        self.began = time.monotonic()
        self.groups = [group for group in self.groups if members(group)] + [self.process.pid]

    def wait(self, until: Callable[[float], bool]) -> bool:
        """Wait until the service answers. False if `until(seconds)`, which sleeps, says to stop waiting.

        Raises:
            ServiceFailed: the service ended, or did not answer in time.
        """
        while not answers(self.health):
            if self.ended is not None or time.monotonic() - self.began > STARTING:
                reason = "it did not in time" if self.ended is None else f"it ended with exit code {self.ended}"
                raise ServiceFailed(f"expected the {self.name} to answer at {self.health}, but {reason}; see {self.log}")
            if until(0.2):
                return False
        return True

    @property
    def ended(self) -> int | None:
        """The exit code, or None while it runs."""
        return self.process.poll() if self.process else None

    def again(self) -> None:
        """Restart the service after it ended.

        Raises:
            ServiceFailed: it ended right after its start, so it would end again.
        """
        if time.monotonic() - self.began < QUICK:
            raise ServiceFailed(f"the {self.name} ended with exit code {self.ended} right after its start; see {self.log}")
        if not self.leaves:
            self.signal(signal.SIGKILL)  # a child of it may still hold its port
        self.start()

    def signal(self, number: int) -> None:
        for group in self.groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)

    def stop(self) -> None:
        """End the service and its children: with SIGTERM, and after GRACE seconds with SIGKILL."""
        self.signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while self.lives() and time.monotonic() < deadline:
            time.sleep(0.1)
        self.signal(signal.SIGKILL)
        if self.process:
            self.process.wait()

    def lives(self) -> bool:
        if self.process:
            self.process.poll()  # a child that ended stays a zombie until its exit code is read
        return any(members(group) for group in self.groups)


def members(group: int) -> list[int]:
    """The living processes of a process group, without zombies."""
    processes = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process ended meanwhile
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                processes.append(int(stat.parent.name))
    return processes


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except urllib.error.HTTPError:  # e.g. it requires a login: it answers
        return True
    except (OSError, http.client.HTTPException):
        return False


def _no_prefect(address: str) -> str:
    """What is at an address instead of Prefect's API; an empty text if the API is there, or asks for a login.

    Raises:
        EndpointError: it is no address.
    """
    http_address(address, "PREFECT_API_URL", PREFECT_ADDRESS)
    if not answers(f"{address}/health"):
        return "no answer"
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=20) as answer:
            return "" if answer.read(100).strip() == b"true" else "another program's answer"
    except urllib.error.HTTPError:  # the API of a server with a password
        return ""
    except (OSError, http.client.HTTPException):
        return "no answer"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def claim_port(port: int, service: str, option: str) -> int:
    """The port, after a check that it is free. 0 means any free port.

    Raises:
        PortTaken: another program listens there.
    """
    if port == 0:
        return free_port()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else connections of a server that just ended count
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PortTaken(
                f"expected port {port} to be free for the {service}, found: {error.strerror}; stop the program that listens "
                f"there, or pass another {option} (0 = any)"
            ) from error
    return port


def prefect_server(home: Path, port: int, settings: Mapping[str, str] | None = None) -> Service:
    """Prefect's server behind the guard. `settings` are further settings of Prefect, as environment variables."""
    log, health = home / "prefect" / "server.log", f"http://{HOST}:{port}/api/health"
    environment = {**prefect_client(home, port), **(settings or {})}
    environment |= {
        "PREFECT__SERVER_FINAL": "1",  # as `prefect server start` does
        "PREFECT_SERVER_API_AUTH_STRING": credentials(home),
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": ",".join(f"http://{host}:{port}" for host in HOSTS),
    }
    return Service("Prefect server", _guarded("prefect", port), log, environment, health)


def prefect_client(home: Path, port: int) -> dict[str, str]:
    """What a client of this home's Prefect server needs, as environment variables."""
    return {"PREFECT_API_URL": f"http://{HOST}:{port}/api", "PREFECT_API_AUTH_STRING": credentials(home)}


def mlflow_server(home: Path, uri: str, port: int) -> Service:
    """MLflow's server behind the guard. `uri`: the database of the home. One process is enough for one person."""
    environment = ui.environment(home, uri) | {MLFLOW_CREDENTIALS: credentials(home)}
    return Service("MLflow UI", _guarded("mlflow", port), home / "mlflow.log", environment, f"http://{HOST}:{port}/health")


def _guarded(application: str, port: int) -> list[str]:
    """The command that serves an application of flows/service/guard.py."""
    uvicorn = [sys.executable, "-m", "uvicorn", "--app-dir", str(CHECKOUT), "--factory", f"flows.service.guard:{application}"]
    return [*uvicorn, "--host", HOST, "--port", str(port), "--no-access-log"]


@contextlib.contextmanager
def prefect_api(home: Path) -> Iterator[None]:
    """Prefect's API for one command: the server in PREFECT_API_URL, else a temporary one that ends with this process.

    Prefect's own temporary server would outlive a run that is killed.

    Raises:
        ServiceFailed: the server in PREFECT_API_URL does not answer, the temporary one does not start, or it ends.
        EndpointError: PREFECT_API_URL is no address.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    if named := os.environ.get("PREFECT_API_URL"):
        if found := _no_prefect(named):
            raise ServiceFailed(
                f"expected a Prefect server at PREFECT_API_URL={named}, found {found}; start it, or unset PREFECT_API_URL"
            )
        given = os.environ.get("PREFECT_API_AUTH_STRING") or (credentials(home) if _on_this_machine(named) else "")
        if refuses(f"{named}/admin/version", given):
            raise ServiceFailed(
                f"expected the Prefect server at PREFECT_API_URL={named} to accept the password of {home}, found that it "
                "refuses it; set PREFECT_API_AUTH_STRING as its `ratchet serve` printed it"
            )
        with temporary_settings({PREFECT_API_AUTH_STRING: given} if given else {}), _told(named):
            yield
        return
    own = _own_server(home)
    settings = {setting: own.environment[setting.name] for setting in (PREFECT_API_URL, PREFECT_API_AUTH_STRING)}
    with temporary_settings(settings), _told(f"{own.environment[PREFECT_API_URL.name]}, whose log is {own.log}"):
        yield


@contextlib.contextmanager
def _told(server: str) -> Iterator[None]:
    """Errors of Prefect's client become one that says what to do."""
    import httpx

    try:
        yield
    except httpx.HTTPError as error:
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise ServiceFailed(
            f"expected the Prefect server at {server} to answer, found: {cause}; finished artifacts are kept, and the same "
            "command resumes"
        ) from error


def refuses(address: str, credentials: str) -> bool:
    """Whether a server refuses user:password."""
    encoded = base64.b64encode(credentials.encode()).decode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers={"Authorization": f"Basic {encoded}"}), timeout=20):
            return False
    except urllib.error.HTTPError as error:
        return error.code == HTTPStatus.UNAUTHORIZED
    except (OSError, http.client.HTTPException):
        return False


def _on_this_machine(address: str) -> bool:
    """Whether an address is one of `ratchet serve`, so that the password of the home may be sent there."""
    return urllib.parse.urlsplit(address).hostname in HOSTS


@functools.cache
def _own_server(home: Path) -> Service:
    """A temporary server for all campaigns of a command, without the services that only deployments need."""
    without = ("SERVICES_SCHEDULER_ENABLED", "SERVICES_LATE_RUNS_ENABLED", "UI_ENABLED")
    server = prefect_server(home, free_port(), {f"PREFECT_SERVER_{name}": "false" for name in without})
    atexit.register(server.stop)
    with locked(home / "prefect" / "start.lock"):  # two that create one database at once break each other's migrations
        server.start()
        server.wait(_sleep)
    return server


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False
