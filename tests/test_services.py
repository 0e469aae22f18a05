"""Programs beside a campaign: started, watched, and ended with everything they started. `sh` stands in for the slow ones."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.errors import PortTaken, ServiceFailed
from flows.service import services
from flows.service.services import Service, claim_port, members

ROOT = Path(__file__).parent.parent


def family(tmp_path: Path, script: str = "sleep 600 & echo up; wait", **options: Any) -> Service:
    """A started shell with a child of its own."""
    service = Service("shell", ["sh", "-c", script], tmp_path / "logs" / "shell.log", {}, **options)
    service.start()
    seen(lambda: "up" in service.log.read_text() and len(members(service.groups[0])) >= 2)
    return service


def seen(what: Callable[[], bool]) -> None:
    deadline = time.time() + 30
    while not what():
        assert time.time() < deadline
        time.sleep(0.02)


def test_a_stopped_service_leaves_no_orphan(tmp_path: Path) -> None:
    # Claim: its children end with it, also where they ignore the polite request.
    patient = family(tmp_path)
    patient.stop()
    assert not patient.lives()
    deaf = family(tmp_path, "trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & echo up; while :; do sleep 1; done")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "GRACE", 0.3)
        deaf.stop()
    seen(lambda: not deaf.lives())


def test_a_service_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    # Claim: SIGKILL of `ratchet` leaves no server behind.
    code = (
        "import sys, time; from pathlib import Path; from flows.service.services import Service\n"
        "service = Service('sleeper', ['sleep', '600'], Path(sys.argv[1]), {})\n"
        "service.start(); print(service.groups[0], flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "log")]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        sleeper = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        gone, _ = psutil.wait_procs([sleeper], timeout=30)
    assert gone == [sleeper]


def test_what_ends_by_itself_is_started_again_unless_that_is_hopeless(tmp_path: Path) -> None:
    # Claim: a killed service comes back, what was left of it ends first; one that ends at once is given up, its log named.
    service = family(tmp_path)
    first = service.groups[0]
    os.kill(first, signal.SIGKILL)
    seen(lambda: service.ended == -signal.SIGKILL)
    with pytest.raises(ServiceFailed, match=r"exit code -9 right after its start; see .*shell\.log"):
        service.again()
    assert members(first)
    service.began -= services.QUICK
    service.again()
    seen(lambda: not members(first))
    service.stop()
    assert not service.lives()


def test_a_workers_runs_go_on_without_it_and_end_with_us(tmp_path: Path) -> None:
    # Claim: where a worker ends, its flow runs do not; they end when everything is stopped.
    worker = family(tmp_path, leaves=True)
    first = worker.groups[0]
    os.kill(first, signal.SIGKILL)
    seen(lambda: worker.ended is not None)
    worker.began -= services.QUICK
    worker.again()
    assert members(first)
    worker.stop()
    assert not members(first)


def test_a_service_that_does_not_come_up_names_its_log(tmp_path: Path) -> None:
    # Claim: waiting for a service that ended says so, with its exit code and its log.
    service = Service("shell", ["sh", "-c", "exit 7"], tmp_path / "shell.log", {}, "http://127.0.0.1:9/health")
    service.start()

    def never_stop(seconds: float) -> bool:
        time.sleep(seconds)
        return False

    with pytest.raises(ServiceFailed, match=r"expected the shell to answer.*exit code 7; see .*shell\.log"):
        service.wait(never_stop)


def test_a_taken_port_is_said_before_anything_starts(
    ratchet: Callable[..., int], capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    # Claim: `serve` on a taken port is wrong use: exit code 2, the port, its purpose and the option that changes it are named.
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        assert ratchet("serve", "--home", home, "--port", taken) == 2
        error = capsys.readouterr().err
        assert f"port {taken} to be free for the Prefect server" in error
        assert "--port" in error
        assert ratchet("serve", "--home", home, "--port", 0, "--mlflow-port", taken) == 2
        assert "--mlflow-port" in capsys.readouterr().err
        with pytest.raises(PortTaken, match="0 = any"):
            claim_port(taken, "MLflow UI", "--mlflow-port")
    assert claim_port(taken, "MLflow UI", "--mlflow-port") == taken


def test_a_second_serve_of_one_home_says_so(
    ratchet: Callable[..., int], capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    # Claim: two workers of one home would only compete; the second is told.
    from data.store.locks import locked

    (home / "prefect").mkdir(parents=True)
    with locked(home / "prefect" / "serve.lock"):
        assert ratchet("serve", "--home", home) == 2
    assert "another `ratchet serve` is running" in capsys.readouterr().err


def test_a_named_server_that_is_away_is_said(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    # Claim: PREFECT_API_URL of a server that is not there is one line, not a traceback out of Prefect.
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{services.free_port()}/api")
    with pytest.raises(ServiceFailed, match="found no answer; start it, or unset PREFECT_API_URL"), services.prefect_api(home):
        pass


TWICE = """
import sys, time
from pathlib import Path
from flows.service.serve import _until_stopped
from flows.service.services import Service
deaf = Service("deaf", ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"], Path(sys.argv[1]), {})
with _until_stopped([deaf]) as stop:
    deaf.start()
    print(deaf.groups[0], flush=True)
    stop.wait()
"""


def test_a_second_ctrl_c_of_serve_does_not_wait(tmp_path: Path) -> None:
    # Claim: the first Ctrl-C waits for services to end; a second one kills them and ends at once, with 130.
    log = tmp_path / "log"
    command, environment = [sys.executable, "-u", "-c", TWICE, str(log)], os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as serve:
        assert serve.stdout is not None
        group = int(serve.stdout.readline())
        seen(lambda: log.exists() and "up" in log.read_text())
        serve.send_signal(signal.SIGINT)
        assert "Stopping" in serve.stdout.readline()
        serve.send_signal(signal.SIGINT)
        assert serve.wait(10) == 130
    seen(lambda: not members(group))


SIGNALS = """
import os, signal, sys
from flows.commands.run import interruptible
with interruptible():
    try:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        signal.pause()
    finally:
        if len(sys.argv) > 2:  # cleaning up takes its time, and somebody presses Ctrl-C again
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
"""


@pytest.mark.parametrize("arguments", [["SIGINT"], ["SIGTERM"], ["SIGINT", "again"]])
def test_signals_end_a_run_and_a_second_one_does_not_wait(arguments: list[str]) -> None:
    # Claim: Ctrl-C and SIGTERM end with 130 and a plain line; a second Ctrl-C ends a clean-up that would hang.
    command = [sys.executable, "-c", SIGNALS, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (-signal.SIGINT if "again" in arguments else 130)
    assert ("the same command resumes" in done.stderr) == ("again" not in arguments)
    assert "Traceback" not in done.stderr
