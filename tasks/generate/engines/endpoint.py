"""The engine for servers: any server with OpenAI's chat completions API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import StageFailed
from data.recipe.settings import Requests
from tasks.generate.engines import Batch, Decoding, Engine, Row
from tasks.generate.openai_client import Ask, Reply, Server, Usage, replies_to


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
    """Samples from the model of an OpenAI-compatible server. It ignores the checkpoint, so evaluation needs another engine.

    `url` ends in /v1. `key_variable` names the environment variable that holds the API key. Concurrency, time-outs, retries,
    rate and prices are in [hardware.requests]. Each request has the prompt, the decoding settings and a seed. A server may
    ignore the seed.
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
        return sum(len(message["content"]) for message in prompt["messages"])  # characters will do: nothing is padded

    def sample(self, batches: Sequence[Batch], decoding: Decoding) -> Iterator[tuple[int, list[Row]]]:
        """Yields each batch when its last reply has arrived. A refused request becomes a row with finish_reason "error".

        Raises:
            StageFailed: requests were lost (every attempt failed), or all were refused. Replies are kept in the journal.
        """
        journal = self.scratch / "replies.jsonl"
        position_of = {
            ask.id: (index, position, ask) for index, batch in enumerate(batches) for position, ask in _asks(batch, decoding.n)
        }
        asks = [ask for _, _, ask in position_of.values()]
        rows: dict[int, dict[int, Row]] = {index: {} for index in range(len(batches))}
        failed: list[Reply] = []
        fields = {"temperature": decoding.temperature, "top_p": decoding.top_p, "max_tokens": decoding.max_tokens}
        for reply in replies_to(self.server, asks, fields, self.requests, journal):
            self._note(reply)
            if reply.status != "ok":
                failed.append(reply)
            if reply.status == "lost":
                continue
            index, position, ask = position_of[reply.id]
            rows[index][position] = _row(reply, ask.seed)
            if len(rows[index]) == len(batches[index].prompts) * decoding.n:
                yield index, [row for _, row in sorted(rows[index].items())]
        lost = sum(reply.status == "lost" for reply in failed)
        if lost or (failed and not journal.exists()):
            raise StageFailed(
                f"{self.server.url}: {lost} of {len(asks)} requests got no answer in {self.requests.attempts} attempts, "
                f"{len(failed) - lost} were refused; the last one: {failed[-1].failures[-1]}. Replies are kept: run the same "
                "command again to send only the missing requests"
            )

    def _note(self, reply: Reply) -> None:
        if not reply.journalled:
            self.usage.add(reply)
            for failure in reply.failures:
                self.record(f"request {reply.id} failed: {failure}")

    def close(self) -> None:
        if self.usage.requests:
            self.record(f"{self.server.url}: {self.usage.summary(self.requests)}")


def _asks(batch: Batch, n: int) -> Iterator[tuple[int, Ask]]:
    """One request per completion, with its position in the batch's rows. Its seed is unique in the stage."""
    for i, (prompt, seed) in enumerate(zip(batch.prompts, batch.seeds, strict=True)):
        for sample in range(n):
            identity = f"{prompt['prompt_id']}/{seed + sample}"
            yield i * n + sample, Ask(identity, prompt["messages"], seed + sample)


def _row(reply: Reply, seed: int | None) -> dict[str, Any]:
    reason = "error" if reply.status == "refused" else reply.finish_reason
    return {"text": reply.text or "", "token_ids": None, "logprobs": None, "finish_reason": reason, "seed": seed}
