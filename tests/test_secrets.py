"""No secret reaches a message, a file, MLflow or Prefect: planted ones are searched for in everything that runs leave."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data.errors import EndpointError, StageFailed
from data.redact import redacted
from flows.service.access import credentials, password
from flows.service.services import free_port, mlflow_server
from tests.micro import SETS
from tests.test_endpoint import Unreliable, ask, asks

ROOT = Path(__file__).parent.parent
KEY, TOKEN, CLOUD = "sk-planted-Endpoint-7731", "hf_plantedTokenOfTheHub", "planted-weights-and-biases-key"
JUDGE = 'score=[{scorer="tests.micro:ends_even"}, {scorer="judge", checkpoint="", weight=0.5, settings={template="additive5", '


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"expected {KEY}, found {TOKEN}", "expected ***, found ***"),
        ("http://me:hunter22@host:5000/x and postgresql://u:p@h/d", "http://***@host:5000/x and postgresql://***@h/d"),
        ("user me:a-long-password-3 is refused; a-long-password-3", "user *** is refused; ***"),
        ("e-mail me@host, path /a@b, 3 @ 4, and short", "e-mail me@host, path /a@b, 3 @ 4, and short"),
    ],
)
def test_secrets_are_hidden_and_nothing_else(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", KEY + "\n")
    monkeypatch.setenv("hf_token", TOKEN)
    monkeypatch.setenv("SERVER_AUTH_STRING", "me:a-long-password-3")
    monkeypatch.setenv("SHORT_KEY", "short")
    monkeypatch.setenv("KEYBOARD", "expected")
    assert redacted(text) == shown
    assert str(StageFailed(text)) == shown


@pytest.fixture
def server() -> Iterator[Unreliable]:
    made = Unreliable()
    yield made
    made.close()


@pytest.mark.parametrize("code", [200, 400, 401, 500])
def test_a_server_that_repeats_the_key_does_not_spread_it(
    server: Unreliable, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Claim: whatever the server says, neither the text, nor the reason of a failure, nor the journal has the key.
    monkeypatch.setenv("OUR_ACCESS", KEY)  # no name that is known to hold a secret
    told = f'{{"choices": [{{"message": {{"content": "your key is {KEY}"}}}}]}}'
    server.handle = lambda request: server.send(request, code, told.encode())  # type: ignore[method-assign]
    try:
        found = repr(ask(server, asks("fine"), journal=tmp_path / "journal", key_variable="OUR_ACCESS"))
    except EndpointError as error:
        found = str(error)
    assert "***" in found
    assert KEY not in found + "".join(path.read_text() for path in tmp_path.iterdir())


def run(home: Path, environment: dict[str, str], *arguments: object) -> tuple[int, str]:
    """The command line in a process of its own: exit code, and all that it printed."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "RATCHET_"))}
    given = plain | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(home.parent)} | environment
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments), "--home", str(home)]
    done = subprocess.run(command, env=given, cwd=home.parent, capture_output=True, text=True, timeout=550, check=False)
    return done.returncode, done.stdout + done.stderr


def everything_in(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """The content of every file; that of a table uncompressed."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path, path.read_bytes()
            if path.suffix == ".parquet":
                yield path, str(pq.read_table(path).to_pylist()).encode()


def forms(secret: str) -> list[bytes]:
    """How a secret may be written: as it is, and in base64 at each of the three offsets within a longer text."""
    inner = [base64.b64encode(b" " * shift + secret.encode())[4 : 4 * (len(secret) // 3)] for shift in range(3)]
    return [secret.encode(), *inner]


@pytest.mark.slow
def test_runs_leave_no_secret_anywhere(server: Unreliable, tmp_path: Path) -> None:
    # Claim: a campaign under Prefect with a judge behind a key and an MLflow behind a password; one whose judge is refused; one
    # whose MLflow refuses: after all of them and what shows them, no planted secret is in any file or in what was printed.
    server.answer = lambda question: "Score: 3"
    home, memory = tmp_path / "work" / "home", tmp_path / "memory"
    memory.mkdir()
    home.mkdir(parents=True)
    mlflow = mlflow_server(memory, f"sqlite:///{memory / 'mlflow.db'}", free_port())
    mlflow.start()
    mlflow.wait(lambda seconds: False)
    address = mlflow.health.removesuffix("/health").removeprefix("http://")
    user, _, mlflow_password = credentials(memory).partition(":")
    wrong = "planted-wrong-password"
    environment = {
        "OUR_KEY": KEY + "\n",
        "HF_TOKEN": TOKEN,
        "WANDB_API_KEY": CLOUD,
        "MLFLOW_TRACKING_URI": f"http://{user}:{mlflow_password}@{address}",
    }
    judge = (
        f'{JUDGE}samples=1, engine="endpoint", engine_settings={{url="{server.url}", model="j", key_variable="OUR_KEY"}}}}}}]'
    )
    sets = [part for item in (*SETS, "rounds=1", judge) for part in ("--set", item)]
    try:
        code, printed = run(home, environment, "run", "tiny_raft", "--name", "fine", *sets)
        assert code == 0, printed
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
        sets += ["--set", "hardware.prefect=false"]
        for command in (("runs",), ("show", "fine", "--round", 1)):
            code, more = run(home, environment, *command)
            assert code == 0, more
            printed += more
        refused = {"MLFLOW_TRACKING_URI": f"http://{user}:{wrong}@{address}"}
        printed += run(home, environment | refused, "run", "tiny_raft", "--name", "no-memory", *sets)[1]
        echo = f"no such key: {KEY}".encode()
        server.handle = lambda request: server.send(request, 401, echo)  # type: ignore[method-assign]
        code, more = run(home, environment, "run", "tiny_raft", "--name", "no-judge", *sets, "--set", "seed=7")
        assert code == 2, more
        assert "found status 401 (no such key: ***)" in more
        printed += more
    finally:
        mlflow.stop()
    secrets = [KEY, TOKEN, CLOUD, wrong, mlflow_password, password(home)]
    allowed = {home / "prefect" / "password", memory / "prefect" / "password"}
    found = [
        (secret, path.relative_to(tmp_path))
        for path, content in [*everything_in(tmp_path), (tmp_path / "printed", printed.encode())]
        for secret in secrets
        if path not in allowed and any(form in content for form in forms(secret))
    ]
    assert not found
    assert (home / "prefect" / "password").exists()
    assert any(b"planted" not in content and b"accuracy" in content for _, content in everything_in(memory))  # it did record
