"""Completions from any OpenAI-compatible server: many requests in flight, retried, paced, journalled, counted.

A request asks for one completion with a seed of its own, which every such server understands. A reply lands in the journal the
moment it is there, so that a second attempt asks, and pays, only for what is missing.
"""

from __future__ import annotations

import json
import os
import queue
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from data.errors import EndpointError
from data.recipe.settings import Requests

if TYPE_CHECKING:
    import httpx

LARGEST = 32 * 2**20  # bytes of a reply; a server that sends more is not sending a completion
LONGEST_WAIT = 60.0  # seconds between two attempts, unless the server asks for more
LONGEST_ASKED = 600.0  # what it can ask for; a quota that is back tomorrow is no reason to look busy until then
AGAIN = (408, 409, 425, 429)  # and every 5xx
WRONG = (301, 302, 303, 307, 308, 401, 403, 404, 405)  # no request of this kind will ever succeed
Message = dict[str, str]


class Server(BaseModel, frozen=True):
    """Whom to ask. The key itself is read from the environment when it is needed, and stored nowhere."""

    url: str  # up to and with /v1
    model: str
    key_variable: str = ""  # the environment variable that holds the API key; empty = none is sent


@dataclass(frozen=True)
class Ask:
    id: str  # unique in a journal
    messages: Sequence[Message]
    seed: int | None = None


@dataclass(frozen=True)
class Reply:
    """What came of an Ask: a text, or None and why: `refused` (this request, for good) or `lost` (every attempt failed)."""

    id: str
    text: str | None
    finish_reason: str | None
    status: str  # "ok", "refused", "lost"
    failures: tuple[str, ...] = ()  # one per failed attempt
    prompt_tokens: int = 0
    completion_tokens: int = 0
    journalled: bool = False  # asked, and counted, by an earlier attempt


@dataclass
class Usage:
    """What a batch of asks took; `record` it beside the artifact."""

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

    def told(self, requests: Requests) -> str:
        cost = (self.prompt_tokens * requests.prompt_price + self.completion_tokens * requests.completion_price) / 1e6
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in asdict(self).items()) + f", cost {cost:.4f}"


def draw(
    server: Server, asks: Sequence[Ask], decoding: dict[str, Any], requests: Requests, journal: Path | None = None
) -> Iterator[Reply]:
    """A Reply for every Ask, once each, as they come in. Those that the journal holds come first and cost nothing.

    Args:
        decoding: fields of the request beside model, messages and seed, e.g. temperature, top_p, max_tokens.

    Raises:
        EndpointError: the server refuses all requests of this kind (no such model or address, a wrong key).
    """
    from anyio.from_thread import start_blocking_portal

    known = _read(journal)
    yield from (known[ask.id] for ask in asks if ask.id in known)
    missing = [ask for ask in asks if ask.id not in known]
    if not missing:
        return
    arrived: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
    with start_blocking_portal() as portal:  # a thread with a loop of its own: the caller may be in one already
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
    """The good replies of earlier attempts. A last line that a kill tore is no reply."""
    if journal is None or not journal.exists():
        return {}
    found = {}
    for line in journal.read_text().splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        found[values["id"]] = Reply(**{**values, "failures": tuple(values["failures"]), "journalled": True})
    return found


def _write(journal: Path | None, reply: Reply) -> None:
    if journal is not None and reply.status == "ok":
        with journal.open("a") as file:
            file.write("\n" * (file.tell() > 0) + json.dumps(asdict(reply)))  # the newline first: it ends a line a kill tore


# -- requests -----------------------------------------------------------------------------------------------------------
class _Trouble(Exception):
    """An attempt that failed and may succeed when repeated."""

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait  # seconds, as the server asked for


class _Refused(Exception):
    """The server will not answer this request."""


class _Pace:
    """When the next request may start: evenly, and later where the server said so."""

    def __init__(self, per_minute: float) -> None:
        self.gap, self.next = (60.0 / per_minute if per_minute else 0.0), 0.0

    async def turn(self) -> None:
        import anyio

        now = anyio.current_time()
        start = max(now, self.next)
        self.next = start + self.gap
        await anyio.sleep(start - now)

    def hold(self, seconds: float) -> None:
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
    key = os.environ.get(server.key_variable)
    if not key:
        raise EndpointError(f"expected an API key in the environment variable {server.key_variable}, found none; set it")
    return {"Authorization": f"Bearer {key}"}


async def _ask(
    client: httpx.AsyncClient, pace: _Pace, server: Server, ask: Ask, decoding: dict[str, Any], requests: Requests
) -> Reply:
    """One completion, through as many attempts as it takes."""
    import tenacity

    jitter = tenacity.wait_random_exponential(multiplier=requests.backoff, max=LONGEST_WAIT)
    failures: list[str] = []

    def wait(state: tenacity.RetryCallState) -> float:
        trouble = state.outcome.exception() if state.outcome else None
        return max(jitter(state), trouble.wait if isinstance(trouble, _Trouble) else 0.0)

    again = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(requests.attempts),
        wait=wait,
        retry=tenacity.retry_if_exception_type(_Trouble),
        reraise=True,
    )
    seed = {} if ask.seed is None else {"seed": ask.seed}
    body = {"model": server.model, "messages": list(ask.messages), "stream": False, **seed, **decoding}
    try:
        async for attempt in again:
            with attempt:
                try:
                    await pace.turn()
                    return _understood(ask, await _post(client, server, body, requests.timeout), tuple(failures))
                except (_Trouble, _Refused) as error:
                    failures.append(str(error))
                    if isinstance(error, _Trouble) and error.wait:
                        pace.hold(error.wait)
                    raise
    except _Refused:
        return Reply(ask.id, None, None, "refused", tuple(failures))
    except _Trouble:
        return Reply(ask.id, None, None, "lost", tuple(failures))
    raise AssertionError("tenacity ended without an outcome")


async def _post(client: httpx.AsyncClient, server: Server, body: dict[str, Any], timeout: float) -> bytes:
    """The bytes of a good answer. The time limit is for all of it: a slow drip does not start it anew."""
    import anyio
    import httpx

    found = b""
    try:
        with anyio.fail_after(timeout):
            async with client.stream("POST", f"{server.url.rstrip('/')}/chat/completions", json=body) as response:
                async for part in response.aiter_bytes():
                    found += part
                    if len(found) > LARGEST:
                        raise _Refused(f"more than {LARGEST} bytes")
    except TimeoutError:
        raise _Trouble(f"no whole answer in {timeout:g} s") from None
    except httpx.TransportError as error:
        raise _Trouble(f"{type(error).__name__}: {error}") from error
    except httpx.InvalidURL as error:
        raise EndpointError(f"expected the address of a server, found '{server.url}': {error}") from error
    code, said = response.status_code, found[:200].decode(errors="replace")
    if code in WRONG:
        raise EndpointError(f"{server.url} answers {code} for model '{server.model}': {said}; check address, model and key")
    if code in AGAIN or code >= 500:
        raise _Trouble(f"{code}: {said}", _seconds(response.headers.get("retry-after")))
    if code != 200:
        raise _Refused(f"{code}: {said}")
    return found


def _seconds(header: str | None) -> float:
    """Retry-After in seconds; its other form, a date, is left to the back-off."""
    try:
        return min(max(0.0, float(header or 0)), LONGEST_ASKED)
    except ValueError:
        return 0.0


def _understood(ask: Ask, found: bytes, failures: tuple[str, ...]) -> Reply:
    try:
        answer = json.loads(found)
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        text, reason = choice["message"]["content"], choice.get("finish_reason")
        asked, answered = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
        (text or "").encode()  # half a surrogate pair is JSON, but not text
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise _Trouble(f"no completion in {found[:80]!r}: {type(error).__name__}") from error
    if not isinstance(text, str):
        raise _Refused(f"no text, finish_reason {reason!r}")
    return Reply(ask.id, text, None if reason is None else str(reason), "ok", failures, asked, answered)
