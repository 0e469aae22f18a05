"""Completions from any OpenAI-compatible server. Requests run concurrently; they are retried, paced, journalled and counted.

Each request is for one completion with a seed of its own, which every such server supports. A reply is written to the journal
as soon as it arrives. So a second attempt sends, and pays for, only the missing requests.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from data.addresses import http_address
from data.errors import EndpointError
from data.recipe.settings import Requests
from data.redact import HIDDEN

if TYPE_CHECKING:
    import httpx

LARGEST = 32 * 2**20  # bytes of a reply; more than that cannot be a completion
LONGEST_BACKOFF = 60.0  # seconds between two attempts, unless the server's Retry-After is longer
LONGEST_RETRY_AFTER = 600.0  # seconds; a longer Retry-After, such as until tomorrow, is cut to this
RETRIED = (408, 409, 425, 429)  # status codes, and every 5xx
HOPELESS = (301, 302, 303, 307, 308, 401, 403, 404, 405)  # status codes after which no request to this server can succeed
Message = dict[str, str]


class Server(BaseModel, frozen=True):
    """The server and its model. The API key is read from the environment when it is needed, and is not stored."""

    url: str  # up to and with /v1
    model: str
    key_variable: str = ""  # the environment variable that holds the API key; empty = no key is sent


@dataclass(frozen=True)
class Ask:
    """A request for one completion."""

    id: str  # unique in a journal
    messages: Sequence[Message]
    seed: int | None = None


@dataclass(frozen=True)
class Reply:
    """The result of an Ask: a text, or None with status "refused" (by the server, finally) or "lost" (every attempt failed)."""

    id: str
    text: str | None
    finish_reason: str | None
    status: str  # "ok", "refused", "lost"
    failures: tuple[str, ...] = ()  # one per failed attempt
    prompt_tokens: int = 0
    completion_tokens: int = 0
    journalled: bool = False  # an earlier attempt received and counted it


_REPLIES = TypeAdapter(Reply)


@dataclass
class Usage:
    """Counts of requests and tokens. The engine records their summary in the artifact's log."""

    requests: int = 0
    failed_attempts: int = 0
    refused: int = 0
    lost: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, reply: Reply) -> None:
        self.requests += 1
        self.failed_attempts += len(reply.failures)
        self.refused += reply.status == "refused"
        self.lost += reply.status == "lost"
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens

    def summary(self, requests: Requests) -> str:
        """The counts and the cost, in one line. Prices are per million tokens."""
        cost = (self.prompt_tokens * requests.prompt_price + self.completion_tokens * requests.completion_price) / 1e6
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in asdict(self).items()) + f", cost {cost:.4f}"


def replies_to(
    server: Server, asks: Sequence[Ask], decoding: dict[str, Any], requests: Requests, journal: Path | None = None
) -> Iterator[Reply]:
    """Yields one Reply per Ask, in the order in which they arrive. Replies from the journal come first and cost nothing.

    Args:
        decoding: further fields of each request, e.g. temperature, top_p, max_tokens.

    Raises:
        EndpointError: the server can answer no request: a wrong address, an unknown model, a wrong or missing key.
    """
    from anyio.from_thread import start_blocking_portal

    http_address(server.url, "the url of an endpoint", "http://127.0.0.1:8000/v1")
    journalled = _read(journal)
    yield from (journalled[ask.id] for ask in asks if ask.id in journalled)
    missing = [ask for ask in asks if ask.id not in journalled]
    if not missing:
        return
    arrived: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
    with start_blocking_portal() as portal:  # a thread with its own event loop: the caller may run in one
        future = portal.start_task_soon(_ask_all, server, missing, decoding, requests, arrived)
        future.add_done_callback(lambda _: arrived.put(None))
        try:
            while (reply := arrived.get()) is not None:
                _write(journal, reply)
                yield reply
            future.result()
        finally:
            future.cancel()


# -- the journal --------------------------------------------------------------------------------------------------------
def _read(journal: Path | None) -> dict[str, Reply]:
    """The completions of earlier attempts. A line that is no reply is skipped: a killed process leaves an incomplete line."""
    if journal is None or not journal.exists():
        return {}
    replies = {}
    for line in journal.read_bytes().split(b"\n"):
        with contextlib.suppress(ValidationError):
            reply = _REPLIES.validate_json(line, strict=True)
            replies[reply.id] = replace(reply, journalled=True)
    return replies


def _write(journal: Path | None, reply: Reply) -> None:
    if journal is not None and reply.status == "ok":
        with journal.open("a") as file:
            file.write("\n" * (file.tell() > 0) + json.dumps(asdict(reply)))  # newline first: it ends an incomplete line


# -- requests -----------------------------------------------------------------------------------------------------------
class _Failed(Exception):
    """An attempt that failed and may succeed when repeated."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait  # seconds, from the server's Retry-After


class _Refused(Exception):
    """The server refuses this request. Repeating it would not help."""


class _Pace:
    """When the next request may start: at even intervals, and later after a Retry-After."""

    def __init__(self, per_minute: float) -> None:
        self.gap, self.next = (60.0 / per_minute if per_minute else 0.0), 0.0

    async def turn(self) -> None:
        """Wait for the next start."""
        import anyio

        now = anyio.current_time()
        start = max(now, self.next)
        self.next = start + self.gap
        await anyio.sleep(start - now)

    def pause(self, seconds: float) -> None:
        """Start no request for this long."""
        import anyio

        self.next = max(self.next, anyio.current_time() + seconds)


async def _ask_all(
    server: Server, asks: Sequence[Ask], decoding: dict[str, Any], requests: Requests, arrived: queue.SimpleQueue[Reply | None]
) -> None:
    import anyio
    import httpx

    waiting, pace = iter(asks), _Pace(requests.per_minute)
    limits = httpx.Limits(max_connections=requests.concurrency)
    async with httpx.AsyncClient(headers=_headers(server), limits=limits, timeout=None) as client:

        async def worker() -> None:
            for ask in waiting:
                arrived.put(await _ask(client, pace, server, ask, decoding, requests))

        try:
            async with anyio.create_task_group() as group:
                for _ in range(min(requests.concurrency, len(asks))):
                    group.start_soon(worker)
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from several


def _headers(server: Server) -> dict[str, str]:
    if not server.key_variable:
        return {}
    key = os.environ.get(server.key_variable, "").strip()  # a key read from a file ends in a newline
    if not key:
        raise EndpointError(f"expected an API key in the environment variable {server.key_variable}, found none; export it")
    if not (key.isascii() and key.isprintable()):  # httpx would quote the key in its error
        raise EndpointError(
            f"expected the API key in {server.key_variable} to be one line of printable ASCII, found other characters in it; "
            "export it again"
        )
    return {"Authorization": f"Bearer {key}"}


async def _ask(
    client: httpx.AsyncClient, pace: _Pace, server: Server, ask: Ask, decoding: dict[str, Any], requests: Requests
) -> Reply:
    """The Reply to one Ask, after up to `requests.attempts` attempts."""
    import tenacity

    jitter = tenacity.wait_random_exponential(multiplier=requests.backoff, max=LONGEST_BACKOFF)
    failures: list[str] = []

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(jitter(state), error.wait if isinstance(error, _Failed) else 0.0)

    retrying = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(requests.attempts),
        wait=wait,
        retry=tenacity.retry_if_exception_type(_Failed),
        reraise=True,
    )
    seed = {} if ask.seed is None else {"seed": ask.seed}
    body = {"model": server.model, "messages": list(ask.messages), "stream": False, **seed, **decoding}
    try:
        async for attempt in retrying:
            with attempt:
                try:
                    await pace.turn()
                    return _parsed(ask, await _post(client, server, body, requests.timeout), tuple(failures))
                except (_Failed, _Refused) as error:
                    failures.append(str(error))
                    if isinstance(error, _Failed) and error.wait:
                        pace.pause(error.wait)
                    raise
    except _Refused:
        return Reply(ask.id, None, None, "refused", tuple(failures))
    except _Failed:
        return Reply(ask.id, None, None, "lost", tuple(failures))
    raise AssertionError("tenacity ended without an outcome")


async def _post(client: httpx.AsyncClient, server: Server, body: dict[str, Any], timeout: float) -> bytes:
    """The body of a successful response. The time limit covers the whole response, however slowly it arrives."""
    import anyio
    import httpx

    content = b""
    try:
        with anyio.fail_after(timeout):
            async with client.stream("POST", f"{server.url.rstrip('/')}/chat/completions", json=body) as response:
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > LARGEST:
                        raise _Refused(f"more than {LARGEST} bytes")
    except TimeoutError:
        raise _Failed(f"no whole answer in {timeout:g} s") from None
    except (httpx.TransportError, httpx.DecodingError) as error:  # such as a wrong Content-Encoding
        raise _Failed(f"{type(error).__name__}: {error}") from error
    except httpx.InvalidURL as error:
        raise EndpointError(f"expected the address of a server, found '{server.url}': {error}") from error
    content = _without_key(client, content)
    code, start = response.status_code, content[:200].decode(errors="replace")
    if code in HOPELESS:
        raise EndpointError(
            f"{server.url}: expected a completion of model '{server.model}', found status {code} ({start}); "
            "check address, model and key"
        )
    if code in RETRIED or code >= 500:
        raise _Failed(f"{code}: {start}", _seconds(response.headers.get("retry-after")))
    if code != 200:
        raise _Refused(f"{code}: {start}")
    return content


def _without_key(client: httpx.AsyncClient, content: bytes) -> bytes:
    """A reply without the API key, which some servers repeat in an error. Replies are shown and stored."""
    key = client.headers.get("Authorization", "").removeprefix("Bearer ")
    return content.replace(key.encode(), HIDDEN.encode()) if key else content


def _seconds(header: str | None) -> float:
    """A Retry-After header in seconds. In its other form, a date, it counts as 0."""
    try:
        return min(max(0.0, float(header or 0)), LONGEST_RETRY_AFTER)
    except ValueError:
        return 0.0


def _parsed(ask: Ask, body: bytes, failures: tuple[str, ...]) -> Reply:
    try:
        completion = json.loads(body)
        choice, usage = completion["choices"][0], completion.get("usage") or {}
        text, reason = choice["message"]["content"], choice.get("finish_reason")
        prompt_tokens, completion_tokens = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
        (text or "").encode()  # a lone surrogate is valid JSON, but not text
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise _Failed(f"no completion in {body[:80]!r}: {type(error).__name__}") from error
    if not isinstance(text, str):
        raise _Refused(f"no text, finish_reason {reason!r}")
    return Reply(ask.id, text, None if reason is None else str(reason), "ok", failures, prompt_tokens, completion_tokens)
