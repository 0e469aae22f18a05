"""Asking servers: whatever one does, nothing is lost or doubled, and every failure is recorded."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import EndpointError, PartError, RecipeError, StageFailed
from data.labels import Label
from data.recipe.recipe import Recipe
from data.recipe.settings import Hardware, Requests
from data.rows import tables
from data.store.store import Artifact, External, Store, digest_of, hash_folder
from flows.commands.part_rules import check_parts
from flows.round.judging import anchor_texts
from flows.round.scoring import scores_of_round
from flows.round.stages import Stages
from tasks.generate import openai_client
from tasks.generate.engines import Batch, Decoding
from tasks.generate.engines.endpoint import endpoint
from tasks.generate.openai_client import Ask, Reply, Server, replies_to
from tasks.run.stage import perform
from tasks.run.work import Stage, stage_module
from tasks.score import score
from tests.micro import micro

QUICK = Requests(concurrency=8, timeout=2, attempts=5, backoff=0.01)
FAULTS = ("429", "500", "garbage", "half", "never", "drip", "empty", "hang up")
FAULT = re.compile(r"(\d{3}|garbage|half|never|drip|empty|hang up) x(\d+)")


class Unreliable:
    """A real HTTP server on loopback. A question with "<fault> x<k>" in it has its first k attempts fail that way."""

    def __init__(self) -> None:
        self.attempts: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[str], str] = lambda question: f"answer to {question}"
        self.healed = self.over = False
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                with outer.lock:
                    outer.busy += 1
                    outer.most_busy = max(outer.most_busy, outer.busy)
                try:
                    outer.handle(self)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                finally:
                    with outer.lock:
                        outer.busy -= 1

            def log_message(self, *arguments: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["content-length"])))
        question = body["messages"][-1]["content"]
        name = f"{question}/{body['seed']}"
        with self.lock:
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            self.attempts[name] += 1
            attempt = self.attempts[name]
        said = FAULT.search(question)
        fault = said[1] if said else ""
        failing = said is not None and attempt <= int(said[2]) and not self.healed
        good = {"choices": [{"message": {"content": self.answer(question)}, "finish_reason": "stop"}]}
        whole = json.dumps({**good, "usage": {"prompt_tokens": 3, "completion_tokens": 2}}).encode()
        if not failing:
            self.send(request, 200, whole)
            with self.lock:
                self.answered[name] += 1
        elif fault.isdigit():
            self.send(request, int(fault), b"no", {"Retry-After": "0.01"} if fault == "429" else {})
        elif fault in ("garbage", "half", "empty"):
            self.send(request, 200, {"garbage": b"\xff<html>", "half": whole[: len(whole) // 2], "empty": b"{}"}[fault])
        elif fault in ("never", "drip"):
            self.linger(request, fault == "drip")
        elif fault == "hang up":
            request.connection.close()

    def send(self, request: BaseHTTPRequestHandler, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        request.send_response(code)
        for header, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            request.send_header(header, value)
        request.end_headers()
        request.wfile.write(content)

    def linger(self, request: BaseHTTPRequestHandler, drip: bool) -> None:
        if drip:
            request.send_response(200)
            request.send_header("Content-Length", "100000")
            request.end_headers()
        while not self.over:  # until the client hangs up
            if drip:
                request.wfile.write(b" ")
            time.sleep(0.05)

    def close(self) -> None:
        self.over = True
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Unreliable]:
    made = Unreliable()
    yield made
    made.close()


def asks(*questions: str) -> list[Ask]:
    return [Ask(f"{i}", [{"role": "user", "content": question}], seed=i) for i, question in enumerate(questions)]


def ask(
    server: Unreliable, listed: list[Ask], requests: Requests = QUICK, journal: Path | None = None, **more: Any
) -> list[Reply]:
    return list(replies_to(Server(url=server.url, model="m", **more), listed, {"temperature": 1.0}, requests, journal))


def test_nothing_is_lost_or_doubled_and_every_failure_is_recorded(server: Unreliable) -> None:
    # 429, 500, garbage, half a JSON, an empty one, no answer, a slow drip, a broken connection: one reply each, the right one
    listed = asks(*(f"{fault} x1 #{i}" for fault in FAULTS for i in range(2)), *(f"fine #{i}" for i in range(40)))
    replies = ask(server, listed)
    assert sorted(reply.id for reply in replies) == sorted(each.id for each in listed)
    questions = {each.id: each.messages[0]["content"] for each in listed}
    assert all(reply.text == f"answer to {questions[reply.id]}" for reply in replies)
    expected = {
        "429": "429: no", "500": "500: no", "garbage": "no completion in b'\\xff<html>'", "half": "no completion in",
        "empty": "no completion in b'{}': KeyError", "never": "no whole answer in 2 s", "drip": "no whole answer in 2 s",
        "hang up": "Error",
    }  # fmt: skip
    for reply in replies:
        fault = questions[reply.id].split(" x")[0]
        assert (reply.status, reply.finish_reason, reply.prompt_tokens, reply.completion_tokens) == ("ok", "stop", 3, 2)
        if fault in expected:
            assert reply.failures
            assert expected[fault] in reply.failures[0]
    assert server.most_busy <= QUICK.concurrency + len(FAULTS)  # those that were hung up on may not have noticed yet


def test_a_second_attempt_asks_only_for_what_is_missing(server: Unreliable, tmp_path: Path) -> None:
    # a request that fails every time is lost, the others stay in the journal, even with its last line torn
    listed = asks("500 x99 #1", "fine #2", "fine #3")
    first = {reply.id: reply for reply in ask(server, listed, journal=tmp_path / "j")}
    assert [first[i].status for i in "012"] == ["lost", "ok", "ok"]
    assert len(first["0"].failures) == QUICK.attempts
    assert server.attempts["500 x99 #1/0"] == QUICK.attempts
    text = (tmp_path / "j").read_text()
    (tmp_path / "j").write_text(text[: len(text) - 9])
    server.healed = True
    second = {reply.id: reply for reply in ask(server, listed, journal=tmp_path / "j")}
    assert {i: reply.text for i, reply in second.items()} == {
        each.id: f"answer to {each.messages[0]['content']}" for each in listed
    }
    assert sorted(server.answered.values()) == [1, 1, 2]  # the torn one was asked again
    assert sum(reply.journalled for reply in second.values()) == 1
    assert all(reply.journalled for reply in ask(server, listed, journal=tmp_path / "j"))


def test_a_request_the_server_will_never_answer_is_refused_once(server: Unreliable) -> None:
    # 400 (too long, not allowed) concerns this request alone: no second attempt, the others go on
    replies = {reply.id: reply for reply in ask(server, asks("400 x99 #1", "fine #2"))}
    assert (replies["0"].status, replies["0"].text, replies["0"].failures) == ("refused", None, ("400: no",))
    assert server.attempts["400 x99 #1/0"] == 1
    assert replies["1"].status == "ok"


@pytest.mark.parametrize("code", ["401", "404", "307"])
def test_a_wrong_key_address_or_model_stops_everything(server: Unreliable, code: str) -> None:
    # no request of the kind will ever succeed: what the server said, and what to check
    with pytest.raises(
        EndpointError, match=rf"{server.url}: .* model 'm', found status {code} \(no\); check address, model and key"
    ):
        ask(server, asks(*(f"{code} x99 #{i}" for i in range(30))))
    assert sum(server.attempts.values()) <= QUICK.concurrency


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    server: Unreliable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it is in the header, and in no reply, journal or error; without it nothing is asked
    with pytest.raises(EndpointError, match="expected an API key in the environment variable NO_SUCH, found none"):
        ask(server, asks("fine #1"), key_variable="NO_SUCH")
    assert not server.bodies
    monkeypatch.setenv("OUR_KEY", "s3cret")
    replies = ask(server, asks("fine #1", "400 x9 #2"), journal=tmp_path / "j", key_variable="OUR_KEY")
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer s3cret"}
    assert "s3cret" not in (tmp_path / "j").read_text() + repr(replies)


def test_whoever_stops_listening_stops_the_asking(server: Unreliable) -> None:
    # a consumer that breaks off leaves no thread and no request behind
    before = threading.active_count()
    listening = replies_to(Server(url=server.url, model="m"), asks(*(f"fine #{i}" for i in range(200))), {}, QUICK)
    next(listening)
    listening.close()  # type: ignore[attr-defined]
    asked = sum(server.attempts.values())
    assert asked < 200
    assert not [t for t in threading.enumerate() if "portal" in t.name.lower()]
    assert threading.active_count() <= before + QUICK.concurrency  # the server's own


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_json_is_a_reply_or_a_known_trouble(found: Any) -> None:
    # a server's answer can be anything; it never becomes another error, nor a text that is not there
    counted = {"choices": [{"message": {"content": found}}], "usage": {"prompt_tokens": found, "completion_tokens": 1e999}}
    bodies = [found, {"choices": found}, {"choices": [{"message": found}]}, {"choices": [{"message": {"content": found}}]}]
    for body in (*bodies, counted):
        try:
            reply = openai_client._parsed(asks("x")[0], json.dumps(body).encode(), ())
            assert reply.text == found
        except (openai_client._Failed, openai_client._Refused):
            pass


# -- the engine -------------------------------------------------------------------------------------------------------


def engine_sets(server: Unreliable) -> list[str]:
    return [
        "generate.engine=endpoint",
        f'generate.settings={{url="{server.url}", model="m"}}',
        'hardware.requests={concurrency=8, timeout=20, attempts=3, backoff=0.01, completion_price=1000000}',
    ]  # fmt: skip


def test_a_campaign_learns_from_what_a_server_says(server: Unreliable, run_micro: Callable[..., Any]) -> None:
    # failures are in the artifact's log, a refused request has no score and no side in a pair, the checkpoint is measured by
    # sampling it and not the server
    def answer(question: str) -> str:
        return f"#{sum(int(part) for part in question.rstrip('?').split('+'))}"

    server.answer = answer
    campaign = run_micro("tiny_raft", "rounds=1", *engine_sets(server))
    last = campaign.rounds()[-1]
    store = campaign.store
    folder = store.folder(last.artifacts["generate"].key)
    rows = tables.read(folder / "payload" / "completions.parquet", tables.COMPLETIONS).to_pylist()
    assert len(rows) == 32 * 4 == len(server.bodies)
    assert {row["engine"] for row in rows} == {"endpoint"}
    assert len({row["seed"] for row in rows}) == len(rows) == len({body["seed"] for body in server.bodies})
    assert {(body["temperature"], body["top_p"], body["max_tokens"]) for body in server.bodies} == {(1.0, 1.0, 48)}
    assert last.facts["rows"] > 0
    events = " ".join(json.loads((folder / "log.json").read_text())["events"])
    assert "requests 128, failed attempts 0" in events
    assert "cost 256.0000" in events


def test_each_engine_has_its_work(tmp_path: Path) -> None:
    # The round is sampled by generate.engine; what is measured, probed or frozen is sampled by evaluate.engine.
    engine_of: dict[str, str] = {}

    def call(label: Label, stage: Stage, settings: Any, inputs: Any, seed: int, around: Any) -> Artifact:
        if stage.__name__ == "generate":
            engine_of[label.text] = settings.engine
        return Artifact(label.text, label.text, stage.__name__, tmp_path)

    engine = ('generate.engine="endpoint"', 'generate.settings={url="http://127.0.0.1:9/v1", model="m"}')
    stages = Stages(SimpleNamespace(recipe=micro("tiny_raft", *engine)), 1, call)  # type: ignore[arg-type]
    some = stages.prepare()
    stages.generate(some, some, max_tokens=48)
    stages.evaluate(some, some, {})
    anchor_texts(stages, some, some)
    assert engine_of.pop("generate") == "endpoint"
    assert set(engine_of) == {"evaluate/greedy", "evaluate/sampled", "anchors/completions"}
    assert set(engine_of.values()) == {"transformers"}
    with pytest.raises(RecipeError, match=r"pool\.base samples checkpoint 0"):
        micro("tiny_raft", *engine, "pool.base=true")


def test_a_batch_of_nothing_but_refusals_is_no_broken_server(server: Unreliable, tmp_path: Path) -> None:
    # shard by shard: a prompt that the server will not answer stops nothing where others were answered, before or after
    def sample(*questions: str) -> list[str]:
        rows = [{"prompt_id": q, "messages": [{"role": "user", "content": q}]} for q in questions]
        batches = [Batch([row], i, [7 * len(questions) + i]) for i, row in enumerate(rows)]
        drawn = dict(engine.sample(batches, Decoding(1, 1.0, 1.0, 8)))
        return [row["finish_reason"] for index in sorted(drawn) for row in drawn[index]]

    engine = endpoint(tmp_path, url=server.url, model="m", requests=QUICK, scratch=tmp_path, record=lambda event: None)
    with pytest.raises(StageFailed, match="1 were refused"):
        sample("400 x9 #1")
    assert sorted(sample("400 x9 #1", "fine #2")) == ["error", "stop"]
    assert sample("400 x9 #3") == ["error"]


# -- the judge --------------------------------------------------------------------------------------------------------


def judging(server: Unreliable, **more: Any) -> dict[str, Any]:
    return {
        "template": "additive5",
        "samples": 2,
        "engine": "endpoint",
        "engine_settings": {"url": server.url, "model": "j"},
    } | more


def test_a_server_judges_and_what_it_refuses_is_no_verdict(server: Unreliable, tmp_path: Path) -> None:
    # every fault is retried and recorded, a refused text has no value, a lost one stops the stage and only it is asked again
    texts = ["fine", "400 x99", "500 x1", "half x1", "never x1", "500 x99"]
    prompt = {"prompt_id": "p", "messages": [{"role": "user", "content": "Which?"}], "answer": None, "source": ""}
    rows = [
        {"completion_id": f"c{i}", "prompt_id": "p", "sample": i, "text": text, "finish_reason": "stop", "engine": "given"}
        for i, text in enumerate(texts)
    ]
    for name, table, schema in (("rounds", [prompt], tables.PROMPTS), ("completions", rows, tables.COMPLETIONS)):
        (tmp_path / name).mkdir()
        tables.write(tables.from_rows(table, schema), schema, tmp_path / name / f"{name}.parquet")
    inputs = {
        name: External(digest_of(hash_folder(tmp_path / folder)), tmp_path / folder)
        for name, folder in (("prompts", "rounds"), ("completions", "completions"))
    }
    server.answer = lambda question: "Score: 4"
    settings = score.Settings(scorer="judge", settings=judging(server), split="rounds", loading={"dtype": "float32"})
    store = Store(tmp_path / "store")
    hardware = Hardware(device="cpu", isolation="inline", requests=QUICK.model_copy(update={"completion_price": 1000000.0}))
    with pytest.raises(StageFailed, match=r"2 of 12 requests got no answer in 5 attempts, 2 were refused"):
        perform(store, stage_module("score").score, settings, inputs, hardware=hardware)
    assert set(server.answered.values()) == {1}
    answered = dict(server.answered)
    server.attempts.update({name: 99 for name in server.attempts if "500 x99" in name})  # it is well again
    made = perform(store, stage_module("score").score, settings, inputs, hardware=hardware)
    assert {name: server.answered[name] for name in answered} == answered
    found = tables.read(made.file("scores.parquet"), tables.SCORES).to_pylist()
    assert [(row["value"], row["status"]) for row in found] == [
        (None, "refused") if text == "400 x99" else (0.8, "ok") for text in texts
    ]
    events = " ".join(json.loads((store.folder(made.key) / "log.json").read_text())["events"])
    assert events.count("failed: no whole answer") == events.count("failed: no completion in") == 2
    assert "requests 4, failed attempts 2, refused 2, lost 0, prompt tokens 6, completion tokens 4, cost 4.0000" in events
    assert {(body["model"], body["temperature"], body["top_p"], body["max_tokens"]) for body in server.bodies} == {
        ("j", 0.7, 0.9, 400)
    }


def test_a_judge_has_one_model_here_or_at_a_server(server: Unreliable, tmp_path: Path) -> None:
    # none, both, or a wrong setting of the engine is refused before anything runs; the right one has no checkpoint in its key
    def recipe(checkpoint: str, **settings: Any) -> Recipe:
        asks = {"scorer": "judge", "checkpoint": checkpoint, "settings": settings}
        return Recipe.model_validate({**micro("tiny_dpo").model_dump(), "score": [{"scorer": "exact_match"}, asks]})

    with pytest.raises(PartError, match="asks a model; set its checkpoint"):
        check_parts(recipe("", template="additive5"))
    with pytest.raises(PartError, match="asks a server, but its checkpoint is 'policy'"):
        check_parts(recipe("policy", **judging(server)))
    with pytest.raises(PartError, match=r"engines 'endpoint': .*modle"):
        check_parts(recipe("", **judging(server, engine_settings={"url": server.url, "modle": "j"})))
    right = recipe("", **judging(server))
    check_parts(right)
    asked: dict[str, set[str]] = {}

    def call(label: Label, stage: Stage, settings: Any, inputs: Any, seed: int, around: Any) -> Artifact:
        asked[label.text] = set(inputs)
        return Artifact(label.text, label.text, stage.__name__, tmp_path)

    stages = Stages(SimpleNamespace(recipe=right), 1, call)  # type: ignore[arg-type]
    some = stages.prepare()
    scores_of_round(stages, some, some, {"policy": some, "base": some})
    assert asked["score/judge"] == {"prompts", "completions"}


def test_a_lost_request_stops_the_stage_and_what_was_answered_is_not_asked_again(server: Unreliable, tmp_path: Path) -> None:
    # refused rows are rows of no text; a lost one stops the stage; the next attempt pays for that one alone
    from tasks.generate.generate import Settings

    questions = ["fine #1", "400 x99 #2", "500 x99 #3"]
    prompts = [
        {
            "prompt_id": f"p{i}",
            "messages": [{"role": "user", "content": q}],
            "answer": None,
            "source": "",
            "stratum": None,
            "difficulty": None,
        }
        for i, q in enumerate(questions)
    ]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "prompts").mkdir()
    tables.write(tables.from_rows(prompts, tables.PROMPTS), tables.PROMPTS, tmp_path / "prompts" / "rounds.parquet")
    inputs = {
        "prompts": External(digest_of(hash_folder(tmp_path / "prompts")), tmp_path / "prompts"),
        "checkpoint": External("none", tmp_path),
    }
    settings = Settings(
        engine="endpoint", settings={"url": server.url, "model": "m"}, split="rounds", n=2, temperature=1.0, top_p=1.0,
        max_tokens=8, batch=4, shard=6, dtype="float32", trust_remote_code=False,
    )  # fmt: skip
    hardware = Hardware(device="cpu", isolation="inline", requests=QUICK)
    store = Store(tmp_path / "store")
    with pytest.raises(
        StageFailed, match=r"2 of 6 requests got no answer in 5 attempts, 2 were refused; .*run the same command again"
    ):
        perform(store, stage_module("generate").generate, settings, inputs, seed=7, hardware=hardware)
    server.healed = False
    before = Counter(server.answered)
    assert set(before.values()) == {1}
    server.attempts.update({f"500 x99 #3/{body['seed']}": 99 for body in server.bodies})  # it is well again
    made = perform(store, stage_module("generate").generate, settings, inputs, seed=7, hardware=hardware)
    assert {name: count for name, count in server.answered.items() if name.startswith("fine")} == before
    rows = tables.read(made.file("completions.parquet"), tables.COMPLETIONS).to_pylist()
    assert [(row["prompt_id"], row["sample"], row["finish_reason"]) for row in rows] == [
        ("p0", 0, "stop"), ("p0", 1, "stop"), ("p1", 0, "error"), ("p1", 1, "error"), ("p2", 0, "stop"), ("p2", 1, "stop"),
    ]  # fmt: skip
    events = json.loads((store.folder(made.key) / "log.json").read_text())["events"]
    assert sum("failed: 500" in event for event in events) == 2 * QUICK.attempts
    assert sum("failed: 400" in event for event in events) == 4  # two requests, asked in both attempts
