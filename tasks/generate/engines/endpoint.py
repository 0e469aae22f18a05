"""The engine that asks a server: any that speaks OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import StageFailed
from data.recipe.settings import Requests
from tasks.generate.engines import Batch, Decoding, Engine, Row
from tasks.generate.openai_client import Ask, Reply, Server, Usage, draw


def endpoint(
    checkpoint: Path,
    *,
    url: str,
    model: str,
    key_variable: str = "",
    requests: Requests,
    scratch: Path,
    record: Callable[[str], None],
) -> Engine:
    """Whatever model an OpenAI-compatible server has; the checkpoint is not asked, so evaluation takes another engine.

    `url` ends in /v1, `key_variable` names the environment variable that holds the API key. Concurrency, time-outs, retries,
    rate and prices are in [hardware.requests]. Prompt and decoding go as they are; a seed goes along, which servers may ignore.
    """
    return _Endpoint(Server(url=url, model=model, key_variable=key_variable), requests, scratch, record)


@dataclass
class _Endpoint:
    server: Server
    requests: Requests
    scratch: Path
    record: Callable[[str], None]
    usage: Usage = field(default_factory=Usage)

    def length(self, prompt: Row) -> int:
        return sum(len(message["content"]) for message in prompt["messages"])  # nothing is padded

    def sample(self, batches: Sequence[Batch], decoding: Decoding) -> Iterator[tuple[int, list[Row]]]:
        """Each batch as its last reply comes in. A request the server refuses becomes a row of finish_reason "error".

        Raises:
            StageFailed: requests were lost (every attempt failed), or none was ever answered. What was answered is journalled.
        """
        journal = self.scratch / "replies.jsonl"
        places = {ask.id: (index, place, ask) for index, batch in enumerate(batches) for place, ask in _asks(batch, decoding.n)}
        asks = [ask for _, _, ask in places.values()]
        rows: dict[int, dict[int, Row]] = {index: {} for index in range(len(batches))}
        failed: list[Reply] = []
        wanted = {"temperature": decoding.temperature, "top_p": decoding.top_p, "max_tokens": decoding.max_tokens}
        for reply in draw(self.server, asks, wanted, self.requests, journal):
            self._note(reply)
            if reply.status != "ok":
                failed.append(reply)
            if reply.status == "lost":
                continue
            index, place, ask = places[reply.id]
            rows[index][place] = _row(reply, ask.seed)
            if len(rows[index]) == len(batches[index].prompts) * decoding.n:
                yield index, [row for _, row in sorted(rows[index].items())]
        lost = sum(reply.status == "lost" for reply in failed)
        if lost or (failed and not journal.exists()):
            raise StageFailed(
                f"{self.server.url}: {lost} of {len(asks)} requests got no answer in {self.requests.attempts} attempts, "
                f"{len(failed) - lost} were refused; the last: {failed[-1].failures[-1]}. What was answered is kept: run again"
            )

    def _note(self, reply: Reply) -> None:
        if not reply.journalled:
            self.usage.add(reply)
            for failure in reply.failures:
                self.record(f"request {reply.id} failed: {failure}")

    def close(self) -> None:
        if self.usage.requests:
            self.record(f"{self.server.url}: {self.usage.told(self.requests)}")


def _asks(batch: Batch, n: int) -> Iterator[tuple[int, Ask]]:
    """One per completion: its place in the batch's rows, and the request; its seed is one of its own in the stage."""
    for i, (prompt, seed) in enumerate(zip(batch.prompts, batch.seeds, strict=True)):
        for sample in range(n):
            identity = f"{prompt['prompt_id']}/{seed + sample}"
            yield i * n + sample, Ask(identity, prompt["messages"], seed + sample)


def _row(reply: Reply, seed: int | None) -> dict[str, Any]:
    reason = "error" if reply.status == "refused" else reply.finish_reason
    return {"text": reply.text or "", "token_ids": None, "logprobs": None, "finish_reason": reason, "seed": seed}
