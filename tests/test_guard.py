"""Who gets into the servers beside a campaign: the user, and no web page, no other user, no run of something else."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from data.errors import EndpointError, HomeError, ServiceFailed, WrongUse
from flows.service import access, guard, services
from flows.service.access import credentials, password
from flows.service.services import HOST, Service, free_port, mlflow_server, prefect_api, prefect_client, prefect_server
from registry.client import mlflow_client, tracking_uri
from tasks.generate.openai_client import Server, _headers

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ROOT = Path(__file__).parent.parent


# -- the password --------------------------------------------------------------------------------------------------------
def test_a_home_has_one_password_that_only_its_user_can_read(home: Path, tmp_path: Path) -> None:
    # Claim: made once, 0600, another home has another; a file that others can read, or an empty one, is refused with its name.
    secret = password(home)
    file = home / "prefect" / "password"
    assert password(home) == secret
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(secret) >= 32
    assert password(tmp_path / "other") != secret
    file.chmod(0o640)
    with pytest.raises(HomeError, match=r"prefect/password to hold a password that only you can read, found mode 640"):
        password(home)
    file.chmod(0o600)
    file.write_text("")
    with pytest.raises(HomeError, match="0 characters; delete the file"):
        password(home)


# -- the guard -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"host": "127.0.0.1:4200"}, ""),
        ({"host": "localhost:4200", "origin": "http://localhost:4200"}, ""),
        ({"host": "evil.example:4200"}, "expected a Host"),
        ({"host": ""}, "expected a Host"),
        ({"host": "127.0.0.1.evil.example:4200"}, "expected a Host"),
        ({"host": "127.0.0.1:4200", "origin": "https://evil.example"}, "expected a request of a page of this server"),
        ({"host": "127.0.0.1:4200", "origin": "http://127.0.0.1:8000"}, "expected a request of a page of this server"),
        ({"host": "127.0.0.1:4200", "origin": "http://localhost:4200"}, "expected a request of a page of this server"),
        ({"host": "127.0.0.1:4200", "origin": "null"}, "expected a request of a page of this server"),
    ],
)
def test_only_own_pages_are_answered(headers: dict[str, str], why: str) -> None:
    # Claim: another Host (a foreign name for 127.0.0.1) and another Origin (elsewhere, a file, another port) are refused.
    assert guard.refusal(Headers(headers)).startswith(why)
    assert bool(guard.refusal(Headers(headers))) == bool(why)


async def secret_page(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1000})
    else:
        await PlainTextResponse("secret")(scope, receive, send)


def test_without_the_password_nothing_is_answered() -> None:
    # Claim: every path but the health check asks for the password, websockets too; no page may show the answer in a frame.
    client = TestClient(guard.OwnPagesOnly(guard.Password(secret_page, "ratchet:right")), base_url="http://127.0.0.1:1")
    for path in ("/", "/api/2.0/mlflow/runs/create", "/health/../ajax-api", "/healthy"):
        for wrong in (None, ("ratchet", "wrong"), ("", "right"), ("ratchet", "")):
            answer = client.get(path, auth=wrong)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Basic realm="Ratchet"'), (path, wrong)
            assert "secret" not in answer.text
    answer = client.get("/", auth=("ratchet", "right"))
    assert (answer.text, answer.headers["x-frame-options"]) == ("secret", "DENY")
    assert client.get("/health").status_code == 200
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/"):
        pass
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/", headers={"origin": "http://evil.example"}):
        pass


# -- the worker ----------------------------------------------------------------------------------------------------------
def test_the_worker_starts_only_what_prefect_yaml_describes() -> None:
    # Claim: job variables of a run, another entry point, other job variables, pull steps or a changed pool: each is refused.
    import yaml
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.workers.process import ProcessWorker

    from flows.service.campaign_worker import ENTRYPOINT, JOB_VARIABLES, PULL_STEPS, refusal
    from flows.service.serve import POOL

    (described,) = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert (described["entrypoint"], described["work_pool"]["name"]) == (ENTRYPOINT, POOL)
    assert described["work_pool"]["job_variables"].keys() == JOB_VARIABLES.keys()

    def deployment(**changes: Any) -> DeploymentResponse:
        fields = {
            "name": "ratchet",
            "pull_steps": PULL_STEPS,
            "flow_id": "6a1d7c58-0c0c-4c44-8d5b-0d3c9d0e3b11",
            "entrypoint": ENTRYPOINT,
        }
        return DeploymentResponse.model_validate(fields | {"job_variables": JOB_VARIABLES} | changes)

    template = ProcessWorker.get_default_base_job_template()
    assert refusal({}, deployment(), template) == ""
    assert "without job variables" in refusal({"command": "sh"}, deployment(), template)
    assert "without job variables" in refusal({"env": {"PYTHONPATH": "/tmp"}}, deployment(), template)
    assert "no deployment" in refusal({}, None, template)
    assert "expected a run of" in refusal({}, deployment(entrypoint="/tmp/evil.py:flow"), template)
    assert "pull steps" in refusal({}, deployment(job_variables=JOB_VARIABLES | {"command": "sh"}), template)
    assert "pull steps" in refusal(
        {}, deployment(pull_steps=[*PULL_STEPS, {"prefect.deployments.steps.run_shell_script": {}}]), template
    )
    assert "job template" in refusal({}, deployment(), {**template, "job_configuration": {"command": "sh"}})


# -- secrets -------------------------------------------------------------------------------------------------------------
def test_no_message_holds_a_password() -> None:
    # Claim: what an error quotes of an address has no user and no password, whichever error of ours it is.
    text = "expected MLflow at https://ann:hunter2@host:5000/x to answer; and postgresql://token@db, see http://plain/@me"
    for kind in (WrongUse, ServiceFailed, EndpointError):
        assert str(kind(text)) == text.replace("ann:hunter2@", "***@").replace("token@", "***@")


@pytest.mark.parametrize("key", ["sk-secret\n", " sk-secret\r\n"])
def test_a_key_is_stripped(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: a key read from a file with its newline works.
    monkeypatch.setenv("KEY", key)
    assert _headers(Server(url="http://x", model="m", key_variable="KEY")) == {"Authorization": "Bearer sk-secret"}


@pytest.mark.parametrize("key", ["sk\nsecret", "sk-secret\x1b[31m", "sk-secrét"])
def test_a_key_that_cannot_be_sent_is_not_quoted(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: the error names the variable, and holds no part of the key.
    monkeypatch.setenv("KEY", key)
    with pytest.raises(EndpointError, match="API key in KEY to be one line of printable ASCII") as error:
        _headers(Server(url="http://x", model="m", key_variable="KEY"))
    assert "secr" not in str(error.value)


# -- for real ------------------------------------------------------------------------------------------------------------
def started(service: Service) -> Iterator[Service]:
    service.start()
    try:
        assert service.wait(lambda seconds: threading.Event().wait(seconds))
        yield service
    finally:
        service.stop()


def on(service: Service) -> str:
    return service.health.removesuffix("/health").removesuffix("/api")


@pytest.fixture(scope="module")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture(scope="module")
def guarded(prefect_home: Path) -> Iterator[Service]:
    own = {"PREFECT_HOME": str(prefect_home / "prefect")}
    yield from started(prefect_server(prefect_home, free_port(), own))


@pytest.fixture(scope="module")
def unguarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Prefect's server as its own command starts it: the attacks must work there, or the tests of them show nothing."""
    home, port = tmp_path_factory.mktemp("unguarded"), free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port), "--no-ui"]
    own = {"PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://{HOST}:{port}/api"}
    yield from started(Service("Prefect server", command, home / "log", own, f"http://{HOST}:{port}/api/health"))


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Path]]:
    home = tmp_path_factory.mktemp("mlflow")
    with mlflow_client(home) as client:
        client.create_experiment("a-campaign")
    for service in started(mlflow_server(home, tracking_uri(home), free_port())):
        yield service, home


@contextlib.contextmanager
def person(service: Service, home: Path) -> Iterator[httpx.Client]:
    """A client with the password and a token, as Prefect's UI is one."""
    user, _, secret = credentials(home).partition(":")
    with httpx.Client(base_url=on(service), auth=(user, secret), timeout=60) as client:
        token = client.get("/api/csrf-token", params={"client": "person"}).json()["token"]
        client.headers.update({"Prefect-Csrf-Client": "person", "Prefect-Csrf-Token": token})
        yield client


def deployed(client: httpx.Client) -> str:
    flow = client.post("/api/flows/", json={"name": "campaign"}).json()["id"]
    form = {"name": "ratchet", "flow_id": flow, "enforce_parameter_schema": False}
    return str(client.post("/api/deployments/", json=form).json()["id"])


def runs(client: httpx.Client) -> int:
    return int(client.post("/api/flow_runs/count", json={}).json())


ATTACK = {"job_variables": {"command": "touch /tmp/owned"}, "enforce_parameter_schema": False}
FORMS: dict[str, dict[str, str]] = {
    "json": {"content-type": "application/json"},
    "text": {"content-type": "text/plain"},
    "page": {"content-type": "text/plain", "origin": "https://evil.example"},
    "file": {"content-type": "text/plain", "origin": "null"},
    "other port": {"content-type": "text/plain", "origin": "http://127.0.0.1:9"},
    "rebinding": {"content-type": "application/json", "host": "evil.example"},
    "rebinding page": {"content-type": "application/json", "host": "evil.example", "origin": "http://evil.example"},
    "page json": {"content-type": "application/json", "origin": "https://evil.example"},
    "wrong password": {"content-type": "application/json", "authorization": "Basic cmF0Y2hldDp3cm9uZw=="},
}


def curl(address: str, headers: dict[str, str], *options: str) -> int:
    """The status that curl reports for a POST of the attack."""
    given = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--data", json.dumps(ATTACK), *given, *options, address]
    return int(subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout)


@pytest.mark.slow
def test_no_request_without_the_password_makes_a_run(guarded: Service, unguarded: Service, prefect_home: Path) -> None:
    # Claim: the attack in each of its forms makes a run on Prefect's own server and none on ours; so does a person, who may.
    with httpx.Client(base_url=on(unguarded), timeout=60) as open_client:
        address = f"{on(unguarded)}/api/deployments/{deployed(open_client)}/create_flow_run"
        accepted = {form for form, headers in FORMS.items() if curl(address, headers) == 201}
        assert accepted == {form for form, headers in FORMS.items() if "json" in headers["content-type"]}
        assert runs(open_client) == len(accepted)
    with person(guarded, prefect_home) as client:
        deployment = deployed(client)
        address = f"{on(guarded)}/api/deployments/{deployment}/create_flow_run"
        refused = {form: curl(address, headers) for form, headers in FORMS.items()}
        assert set(refused.values()) <= {401, 403}, refused
        # Even what has the password: a page of elsewhere in whose browser it is kept, and who has no token.
        for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}, {}):
            form = FORMS["text"] | headers
            assert curl(address, form, "-u", credentials(prefect_home)) == 403, form
        assert runs(client) == 0
        assert client.post(f"/api/deployments/{deployment}/create_flow_run", json={}).status_code == 201
        assert runs(client) == 1


@pytest.mark.slow
def test_nothing_of_prefect_is_read_without_the_password(guarded: Service) -> None:
    # Claim: no list, no log, no event stream; a page of elsewhere gets no permission to read.
    with httpx.Client(base_url=on(guarded), timeout=60) as client:
        for path in (
            "/api/admin/settings",
            "/api/csrf-token?client=x",
            "/api/variables/name/x",
            "/api/docs",
            "/api/openapi.json",
        ):
            assert client.get(path).status_code == 401, path
        asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        for headers in (asked, asked | {"origin": "http://127.0.0.1:9"}):
            answer = client.options("/api/flow_runs/filter", headers=headers)
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.slow
def test_a_command_meets_the_server_with_its_password(
    guarded: Service, prefect_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Claim: PREFECT_API_URL alone suffices with the server's own home; another home's password is refused with what to set.
    from prefect.client.orchestration import get_client

    monkeypatch.setenv("PREFECT_API_URL", guarded.environment["PREFECT_API_URL"])
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    with prefect_api(prefect_home), get_client(sync_client=True) as client:
        assert client.create_flow_from_name("x")
    with pytest.raises(ServiceFailed, match="it refuses it; set PREFECT_API_AUTH_STRING"), prefect_api(tmp_path / "other"):
        pass


@pytest.mark.slow
def test_mlflow_asks_for_the_password(mlflow: tuple[Service, Path]) -> None:
    # Claim: reading and writing need it; with it, a foreign Host and a page of elsewhere are refused all the same.
    service, home = mlflow
    search, create = "/api/2.0/mlflow/experiments/search?max_results=5", "/api/2.0/mlflow/experiments/create"
    user, _, secret = credentials(home).partition(":")
    with httpx.Client(base_url=on(service), timeout=60) as other:
        for path in (
            "/",
            search,
            "/graphql",
            "/ajax-api/2.0/mlflow/experiments/search?max_results=5",
            "/static-files/index.html",
        ):
            assert other.get(path).status_code == 401, path
        assert other.post(create, json={"name": "evil"}).status_code == 401
    with httpx.Client(base_url=on(service), timeout=60, auth=(user, secret)) as own:
        for headers in ({"origin": "https://evil.example"}, {"origin": "http://127.0.0.1:9"}, {"host": "evil.example"}):
            assert own.post(create, json={"name": "evil"}, headers=headers).status_code == 403, headers
        names = [experiment["name"] for experiment in own.get(search).json()["experiments"]]
        assert "a-campaign" in names
        assert "evil" not in names


# -- in a browser --------------------------------------------------------------------------------------------------------
ATTACK_PAGE = """<!doctype html><body>attacking<script>
const body = JSON.stringify(%(attack)s), url = "%(url)s";
const tries = [
  () => fetch(url, {method: "POST", mode: "no-cors", headers: {"content-type": "text/plain"}, body}),
  () => fetch(url, {method: "POST", mode: "no-cors", credentials: "include", body}),
  () => fetch(url, {method: "POST", headers: {"content-type": "application/json"}, body}),
  () => fetch(url, {method: "POST", headers: {"authorization": "Basic cmF0Y2hldDo="}, body}),
  () => navigator.sendBeacon(url, body),
];
(async () => {
  for (const attempt of tries) { try { await attempt() } catch (error) {} }
  document.title = "done"; document.body.append(" finished");
})();
</script><form id=f method=post enctype=text/plain action="%(url)s" target=t><input name='{"a":"' value='"}'></form>
<iframe name=t></iframe><script>document.getElementById("f").submit()</script>"""


def browse(address: str, tmp_path: Path) -> str:
    """What headless Chromium shows of an address after its scripts have run, as HTML."""
    assert CHROMIUM
    quiet = [
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-quic",
        "--disable-dev-shm-usage",
        *quiet,
        f"--user-data-dir={tmp_path / 'chromium'}",
    ]
    command += ["--virtual-time-budget=20000", "--timeout=60000", "--dump-dom", address]
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=180, env=environment).stdout


@pytest.fixture
def website(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Puts a page on a web server of another origin; returns its address."""
    folder = tmp_path / "website"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None: ...

    with http.server.ThreadingHTTPServer((HOST, 0), functools.partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def put(page: str) -> str:
            (folder / "index.html").write_text(page)
            return f"http://{HOST}:{server.server_address[1]}/"

        yield put
        server.shutdown()


@pytest.fixture
def browser(tmp_path: Path) -> None:
    """Skips the test where no Chromium is installed, or where it cannot even show a page of its own."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    try:
        shown = browse("data:text/html,<p>works</p>", tmp_path)
    except subprocess.SubprocessError as error:
        pytest.skip(f"chromium does not start on this machine: {error}")
    assert "works" in shown


@pytest.mark.slow
@pytest.mark.usefixtures("browser")
def test_a_web_page_makes_no_run(
    guarded: Service, unguarded: Service, prefect_home: Path, website: Callable[[str], str], tmp_path: Path
) -> None:
    # Claim: visited in a real browser, the attacking page makes runs on Prefect's own server and none on ours.
    def attack(service: Service, client: httpx.Client) -> int:
        before = runs(client)
        url = f"{on(service)}/api/deployments/{deployed(client)}/create_flow_run"
        assert "finished" in browse(website(ATTACK_PAGE % {"attack": json.dumps(ATTACK), "url": url}), tmp_path)
        return runs(client) - before

    with httpx.Client(base_url=on(unguarded), timeout=60) as client:
        assert attack(unguarded, client) >= 1
    with person(guarded, prefect_home) as client:
        assert attack(guarded, client) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("browser")
def test_a_person_gets_in_with_one_click(
    guarded: Service, prefect_home: Path, mlflow: tuple[Service, Path], tmp_path: Path
) -> None:
    # Claim: the links that `serve` prints open Prefect's and MLflow's pages; without the password there is a login, or nothing.
    inside = browse(f"{on(guarded)}{access.ENTER}#{urllib.parse.quote(password(prefect_home))}", tmp_path)
    assert "Run a task or flow to get started" in inside or "Flow Runs" in inside
    assert "a-campaign" in browse(
        f"{on(mlflow[0]).replace('//', f'//{credentials(mlflow[1])}@')}{access.ENTER}#/experiments", tmp_path
    )
    shutil.rmtree(tmp_path / "chromium")
    outside = browse(on(guarded), tmp_path)
    assert "Run a task or flow to get started" not in outside
    assert 'type="password"' in outside
    assert "a-campaign" not in browse(f"{on(mlflow[0])}/#/experiments", tmp_path)


def test_our_clients_have_what_the_server_asks_for(home: Path) -> None:
    # Claim: the settings of server and client of one home agree, and the server's own checks are on.
    server, client = prefect_server(home, 1).environment, prefect_client(home, 1)
    assert server["PREFECT_SERVER_API_AUTH_STRING"] == client["PREFECT_API_AUTH_STRING"] == credentials(home)
    assert server["PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED"] == "true"
    assert "*" not in server["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"]
    assert "--host 127.0.0.1" in " ".join(prefect_server(home, 1).command)
    assert services.HOST in access.HOSTS
