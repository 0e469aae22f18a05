"""What stands before Prefect's and MLflow's servers: they answer their own pages and who has the password, nobody else.

A web page that the user visits can send requests to every port of this machine, and so can other users of it. Three rules:

- the Host is this machine (else a foreign name that resolves to 127.0.0.1 counts as the same origin as the server);
- the Origin, which a browser adds to what a page sends, is the server's own;
- a password (HTTP Basic). Prefect checks it by itself; MLflow has none without its own user database, so it is checked here.

uvicorn loads `prefect` and `mlflow` of this module as application factories.
"""

from __future__ import annotations

import base64
import hmac
import os

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from flows.service.access import ENTER, HOSTS, MLFLOW_CREDENTIALS, USER

_OPEN = ("/health",)  # a service is watched by it; it says nothing
# Prefect's UI keeps the password under this name, as if it had been typed into its own login page.
_ENTER_PREFECT = f"""
localStorage.setItem("prefect-password", btoa("{USER}:" + decodeURIComponent(location.hash.slice(1))));
location.replace("/");"""
# The link has user and password before the host. The browser keeps them, but MLflow's pages need an address without them.
_ENTER_MLFLOW = 'location.replace(location.protocol + "//" + location.host + "/" + location.hash);'


def prefect() -> ASGIApp:
    """Prefect's server. PREFECT_SERVER_API_AUTH_STRING sets its password."""
    from prefect.server.api.server import create_app

    return OwnPagesOnly(Page(create_app(final=True), _ENTER_PREFECT))


def mlflow() -> ASGIApp:
    """MLflow's server, with the password in the environment variable MLFLOW_CREDENTIALS."""
    from registry.ui import application

    return OwnPagesOnly(Password(Page(application(), _ENTER_MLFLOW), os.environ.pop(MLFLOW_CREDENTIALS)))


def refusal(headers: Headers) -> str:
    """Why a request is refused, or an empty text."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if host.partition(":")[0] not in HOSTS:
        return f"expected a Host of {' or '.join(HOSTS)}, found {host!r}"
    if origin is not None and origin != f"http://{host}":
        return f"expected a request of a page of this server, found one of {origin!r}"
    return ""


class OwnPagesOnly:
    """Refuses requests for another Host and of another Origin with 403, and lets no page show this one in a frame."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reason = refusal(Headers(scope=scope)) if scope["type"] in ("http", "websocket") else ""
        answer = self.app
        if reason:
            answer = WebSocketClose(1008) if scope["type"] == "websocket" else PlainTextResponse(reason, 403)
        await answer(scope, receive, _never_framed(send))


def _never_framed(send: Send) -> Send:
    async def with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["X-Frame-Options"] = "DENY"
        await send(message)

    return with_header


class Page:
    """The page of the printed link, in front of an application."""

    def __init__(self, app: ASGIApp, script: str) -> None:
        self.app, self.page = (
            app,
            HTMLResponse(f"<!doctype html><title>Ratchet</title><p>Opening ...</p><script>{script}</script>"),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self.page if scope["type"] == "http" and scope["path"] == ENTER else self.app
        await answer(scope, receive, send)


class Password:
    """Refuses requests without the password with 401; a browser then asks for it, and keeps it for this port alone."""

    def __init__(self, app: ASGIApp, credentials: str) -> None:
        self.app, self.wanted = app, f"Basic {base64.b64encode(credentials.encode()).decode()}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: ASGIApp = self.app
        if scope["type"] in ("http", "websocket") and scope["path"] not in _OPEN and not self._may_enter(Headers(scope=scope)):
            challenge = {"WWW-Authenticate": 'Basic realm="Ratchet"'}
            text = f"expected the user {USER} and the password in the file prefect/password of the home"
            answer = WebSocketClose(1008) if scope["type"] == "websocket" else PlainTextResponse(text, 401, challenge)
        await answer(scope, receive, send)

    def _may_enter(self, headers: Headers) -> bool:
        return hmac.compare_digest(headers.get("authorization", "").encode(), self.wanted.encode())
