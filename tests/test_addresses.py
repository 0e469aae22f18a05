"""What people write as an address: PREFECT_API_URL, MLFLOW_TRACKING_URI, the url of an endpoint. Each mistake is one line."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data.addresses import http_address
from data.errors import EndpointError, RatchetError, ServiceFailed, StageFailed
from data.recipe.settings import Requests
from flows.service.services import prefect_api
from registry.client import MLflowUnreachable, experiment, mlflow_client, tracking_uri
from tasks.generate.engines import Batch, Decoding
from tasks.generate.engines.endpoint import endpoint

MALFORMED = (
    *(" ", "garbage", "http://", "http://:80", "http://127.0.0.1:notaport", "http://127.0.0.1:99999", "http://127.0.0.1:0"),
    *(
        "http://[::1",
        "ftp://x/y",
        "http://a b/",
        "http://a\tb/",
        "http://xn--a\u2603.\u2603/",
        "127.0.0.1:4200",
        "localhost:1/x",
    ),
    *("http://127.0.0.1\n", "HTTP:/x", "file:///tmp", "http://" + "a" * 70 + ".b", "http://\x1b[31m"),
)


class Answer(BaseHTTPRequestHandler):
    """A server that is not the one that was meant: whatever is asked, it answers `body` with `more` headers."""

    body: bytes = b""
    more: dict[str, str]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(200)
        for name, value in {"Content-Length": str(len(self.body)), **self.more}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET

    def log_message(self, *arguments: object) -> None: ...


WEB = {
    "a web page": (b"<html><body>hello</body></html>", {"Content-Type": "text/html"}),
    "other JSON": (b"{}", {}),
    "a list": (b"[1, 2]", {}),
    "wrong encoding": (b"plain text", {"Content-Encoding": "gzip"}),
    "half an encoding": (b"\x1f\x8b\x08\x00", {"Content-Encoding": "gzip"}),
    "no UTF-8": (b"\xff\xfe\xfd", {}),
    "nothing": (b"", {}),
}


@pytest.fixture(scope="module")
def wrong_servers() -> Iterator[list[str]]:
    """Addresses where something else answers: web servers, and one that does not speak HTTP."""
    handlers = [type("Wrong", (Answer,), {"body": body, "more": more}) for body, more in WEB.values()]
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in handlers]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.socket() as ssh:
        ssh.bind(("127.0.0.1", 0))
        ssh.listen(64)
        threading.Thread(target=greet, args=[ssh], daemon=True).start()
        yield [f"http://127.0.0.1:{port}" for port in (*(s.server_port for s in servers), ssh.getsockname()[1])]
        for server in servers:
            server.shutdown()
            server.server_close()


def greet(ssh: socket.socket) -> None:
    while True:
        try:
            caller, _ = ssh.accept()
        except OSError:
            return
        with caller:
            caller.sendall(b"SSH-2.0-OpenSSH_9\r\n")


def one_line(call: Callable[[], object]) -> RatchetError:
    """The error of ours that a call raises; any other is a traceback to the user."""
    with pytest.raises(RatchetError) as told:
        call()
    assert "\n" not in str(told.value).split("\n  The rounds are safe")[0]
    return told.value


def sample(url: str, folder: Path) -> None:
    requests = Requests(concurrency=1, timeout=2, attempts=2, backoff=0.01)
    engine = endpoint(folder, url=url, model="m", requests=requests, scratch=folder, record=lambda event: None)
    prompt = {"prompt_id": "a", "messages": [{"role": "user", "content": "1+1?"}]}
    list(engine.sample([Batch([prompt], 1, [1])], Decoding(1, 1.0, 1.0, 4)))


def ask_prefect(home: Path) -> None:
    with prefect_api(home):
        pytest.fail("it was taken for Prefect")


def ask_mlflow(home: Path) -> None:
    with mlflow_client(home) as client:
        experiment(client, home)


@pytest.mark.parametrize("address", MALFORMED, ids=repr)
def test_what_is_no_address_is_said_before_anything_is_sent(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Claim: all three entries name the variable or setting, quote what was found, and show an example; nothing is tried.
    monkeypatch.setenv("PREFECT_API_URL", address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    calls: dict[str, Callable[[], object]] = {
        "PREFECT_API_URL": lambda: ask_prefect(tmp_path),
        "MLFLOW_TRACKING_URI": lambda: tracking_uri(tmp_path),
        "the url of an endpoint": lambda: sample(address, tmp_path),
    }
    for where, call in calls.items():
        with pytest.raises(EndpointError) as told:
            call()
        assert str(told.value).startswith(f"expected {where} to be the address of a server, such as http://127.0.0.1:")
        assert "found '" in str(told.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:4200/api", "https://host", "http://[::1]:80/x", "http://bücher.de/v1"])
def test_an_address_is_let_through_as_it_is(address: str) -> None:
    # Claim: the check refuses no address that works.
    assert http_address(address, "x", "y") == address


@pytest.mark.parametrize("uri", ["sqlite:////data/m.db", "postgresql+psycopg2://u:p@h/db", "databricks", "http://h:5000"])
def test_every_backend_of_mlflow_may_be_named(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: databases are no addresses of servers and are let through, but for the one in memory, which keeps nothing.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking_uri(tmp_path) == uri
    for nothing in ("sqlite://", "sqlite:///"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", nothing)
        with pytest.raises(EndpointError, match="MLFLOW_TRACKING_URI"):
            tracking_uri(tmp_path)


def test_where_another_program_answers_it_is_not_taken_for_ours(
    wrong_servers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Claim: web pages, other JSON, a wrong Content-Encoding and servers without HTTP are one line at every entry.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for number, address in enumerate(wrong_servers):
        monkeypatch.setenv("PREFECT_API_URL", address)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        (folder := tmp_path / str(number)).mkdir()
        prefect = one_line(lambda folder=folder: ask_prefect(folder))  # type: ignore[misc]
        assert isinstance(prefect, ServiceFailed)
        assert f"PREFECT_API_URL={address}, found " in str(prefect)
        assert isinstance(one_line(lambda folder=folder: ask_mlflow(folder)), MLflowUnreachable)  # type: ignore[misc]
        lost = one_line(lambda folder=folder, address=address: sample(address, folder))  # type: ignore[misc]
        assert isinstance(lost, StageFailed)
        assert "1 of 1 requests got no answer in 2 attempts" in str(lost)


def test_a_database_whose_package_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: what MLflow would import is named, without a traceback and without the password in the address.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+pg8000://me:secret@127.0.0.1/db")
    told = str(one_line(lambda: ask_mlflow(tmp_path)))
    assert "No module named" in told
    assert "secret" not in told


@pytest.mark.parametrize("variable", ["PREFECT_API_URL", "MLFLOW_TRACKING_URI"])
def test_a_run_is_refused_before_it_writes(
    variable: str, ratchet: Callable[..., int], capsys: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Claim: a malformed variable is wrong use: exit code 2, one line, and no campaign is begun.
    monkeypatch.setenv(variable, "http://127.0.0.1:notaport")
    assert ratchet("run", "tiny_raft", "--home", home) == 2
    assert f"EndpointError: expected {variable} to be" in capsys.readouterr().err
    assert not (home / "campaigns").exists()
