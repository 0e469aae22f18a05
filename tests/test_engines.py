"""The transformers engine: log-probabilities, seeds, stop tokens, shards."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from data.errors import PartError, StageFailed
from data.recipe.settings import Hardware
from data.rows import tables
from data.store.campaign import Campaign
from tasks.generate.engines import Batch, Decoding, Engine, EngineLost, OutOfMemory, Row
from tasks.generate.engines.local import transformers
from tasks.generate.generate import Settings, generate
from tasks.models import models
from tasks.run.work import Work

PROMPTS: list[dict[str, Any]] = [
    {"prompt_id": str(i), "messages": [{"role": "user", "content": text}]}
    for i, text in enumerate(("12+34?", "567+890?", "5+5?"))
]


def draw(engine: Engine, decoding: Decoding, seed: int) -> list[Row]:
    """The rows of PROMPTS as one batch."""
    [(index, rows)] = engine.sample([Batch(PROMPTS, seed, [seed + decoding.n * i for i in range(len(PROMPTS))])], decoding)
    assert index == 0
    return rows


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from data.recipe.settings import Hardware
    from tasks.models.tiny_model import Settings, tiny_model
    from tasks.run.work import Work

    folder = tmp_path_factory.mktemp("model")
    tiny_model(Work("key", Settings(hidden=32, layers=1), {}, 7, folder, folder, Hardware()))
    return folder


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_are_the_models_own(checkpoint: Path, temperature: float) -> None:
    # Claim: the sampler's log-probabilities equal a teacher-forced pass at temperature 1, whatever the padding and temperature.
    engine = transformers(checkpoint)
    rows = draw(engine, Decoding(n=3, temperature=temperature, top_p=0.9, max_tokens=12), seed=1)
    tokenizer, model = models.load_tokenizer(checkpoint), models.load_model(checkpoint, "cpu", "float32")
    sequences = [(models.render(tokenizer, PROMPTS[i // 3]["messages"]), row["token_ids"]) for i, row in enumerate(rows)]
    for row, expected in zip(rows, models.completion_logprobs(model, sequences, tokenizer.pad_token_id), strict=True):
        assert row["logprobs"] == pytest.approx(expected, abs=1e-4)
        assert len(row["logprobs"]) == len(row["token_ids"])


def test_equal_seed_equal_draw(checkpoint: Path) -> None:
    # Claim: a batch and its seed decide what is drawn; another seed draws something else; the global generator is left alone.
    import torch

    engine, decoding = transformers(checkpoint), Decoding(n=4, temperature=1.0, top_p=1.0, max_tokens=16)
    torch.manual_seed(99)
    expected = torch.rand(1)
    torch.manual_seed(99)
    first = draw(engine, decoding, seed=5)
    assert torch.equal(torch.rand(1), expected)
    assert draw(engine, decoding, seed=5) == first
    assert draw(engine, decoding, seed=6) != first


def test_stop_token_belongs_to_the_completion(checkpoint: Path) -> None:
    # Claim: a finished row ends with its only stop token (not in its text); a cut one has none and says "length".
    engine = transformers(checkpoint)
    rows = draw(engine, Decoding(n=40, temperature=1.5, top_p=1.0, max_tokens=24), seed=3)
    stop = models.load_tokenizer(checkpoint).eos_token_id
    reasons = {row["finish_reason"] for row in rows}
    assert reasons == {"stop", "length"}
    for row in rows:
        ids = row["token_ids"]
        assert (ids[-1] == stop) == (row["finish_reason"] == "stop")
        assert stop not in ids[:-1]
        assert "<eos>" not in row["text"]


def test_a_lost_shard_is_drawn_again_and_equal(run_micro: Callable[..., Campaign]) -> None:
    # Claim: what a shard holds depends on its place alone, so completions are the same however often an attempt was cut short.
    from tasks.generate.generate import generate
    from tasks.run.work import Work, stage_module

    campaign = run_micro("tiny_raft", "rounds=1")
    store, ref = campaign.store, campaign.rounds()[1].artifacts["generate"]
    manifest = store.manifest(ref.key)
    settings = stage_module("generate").Settings(**manifest["job"]["settings"])
    inputs = {name: store.folder(key) / "payload" for name, key in manifest["input_keys"].items()}
    work = Work(
        ref.key, settings, inputs, manifest["job"]["seed"], store.root / "out", store.root / "s", campaign.recipe.hardware
    )
    work.out.mkdir()
    work.scratch.mkdir()
    generate(work)
    first = (work.out / "completions.parquet").read_bytes()
    assert first == (store.folder(ref.key) / "payload" / "completions.parquet").read_bytes()
    shards = sorted(work.scratch.glob("*.parquet"))
    assert len(shards) == 4
    shards[1].write_bytes(shards[1].read_bytes()[:-10])  # torn
    shards[2].unlink()  # lost
    untouched = shards[0].stat().st_mtime_ns
    generate(work)
    assert (work.out / "completions.parquet").read_bytes() == first
    assert shards[0].stat().st_mtime_ns == untouched
    rows = tables.read(work.out / "completions.parquet", tables.COMPLETIONS)
    assert rows.num_rows == 128
    asked = tables.read(inputs["prompts"] / "rounds.parquet", tables.PROMPTS)["prompt_id"].to_pylist()
    assert rows["prompt_id"].to_pylist() == [name for name in asked for _ in range(settings.n)]  # the prompts' own order


def test_prompt_without_template_is_plain_text(checkpoint: Path) -> None:
    # Claim: a model without a chat template gets the plain texts; one with a template gets the template, special tokens once.
    tokenizer = models.load_tokenizer(checkpoint)
    with_template = models.render(tokenizer, PROMPTS[0]["messages"])
    tokenizer.chat_template = None
    assert models.render(tokenizer, PROMPTS[0]["messages"]) == with_template == tokenizer("12+34?")["input_ids"]


class Frail:
    """The transformers engine on a device that holds eight sequences: what is larger is out of memory."""

    def __init__(self, checkpoint: Path) -> None:
        self.engine: Any = transformers(checkpoint)
        self.length, self.close = self.engine.length, self.engine.close

    def sample(self, batches: Sequence[Batch], decoding: Decoding) -> Iterator[tuple[int, list[Row]]]:
        for index, rows in self.engine.sample(batches, decoding):
            if len(rows) > 8:
                raise OutOfMemory("tried to allocate 2.00 GiB")
            yield index, rows


def frail(checkpoint: Path) -> Frail:
    """A user's own engine, named in a recipe as tests.test_engines:frail."""
    return Frail(checkpoint)


@pytest.mark.minutes
def test_out_of_memory_is_retried_smaller_and_recorded(run_micro: Callable[..., Campaign]) -> None:
    # Claim: an engine that runs out of memory is built again with half the batch, until it fits; the artifact's log tells.
    campaign = run_micro("tiny_raft", "rounds=1", "generate.engine=tests.test_engines:frail")
    ref = campaign.rounds()[1].artifacts["generate"]
    events = json.loads((campaign.store.folder(ref.key) / "log.json").read_text())["events"]
    sizes = [event.split(" sequences")[0].split()[-1] for event in events]
    assert sizes == ["32", "16"]
    assert all("out of memory" in event for event in events)
    table = tables.read(campaign.store.folder(ref.key) / "payload" / "completions.parquet", tables.COMPLETIONS)
    assert table.num_rows == 128


def test_an_engine_that_is_always_lost_is_reported(run_micro: Callable[..., Campaign]) -> None:
    # Claim: where no batch is small enough, the stage ends and says what to change.
    with pytest.raises(StageFailed, match=r"failed 4 times: out of memory with 10 sequences at a time: .*smaller batch"):
        run_micro("tiny_raft", "rounds=1", "generate.engine=tests.test_engines:frail", "generate.n=10", "generate.batch=80")


def test_an_engine_without_memory_gives_all_of_it_back(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: the next attempt finds room: nothing of the model is left while its end is still being told, no collector needed.
    import torch

    def too_large(**_: Any) -> None:
        model = engine.model  # as the frames of a real one hold it
        assert model is not None
        raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")

    engine: Any = transformers(checkpoint)
    engine.model.generate, held = too_large, weakref.ref(engine.model)
    gc.disable()
    try:
        with pytest.raises(OutOfMemory, match=r"tried to allocate 2\.00 GiB") as told:
            draw(engine, Decoding(n=1, temperature=1.0, top_p=1.0, max_tokens=4), seed=1)
        engine.close()
        assert held() is None, told
    finally:
        gc.enable()


def test_long_rows_are_measured_a_few_at_a_time(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: logits held at once stay within a bound, whatever the rows' length; order and values do not change.
    tokenizer, model = models.load_tokenizer(checkpoint), models.load_model(checkpoint, "cpu", "float32")
    rows = [([1, 2, 3], [4] * length) for length in (2, 30, 3, 60, 1, 5)]
    expected = models.completion_logprobs(model, rows, tokenizer.pad_token_id)
    shapes: list[tuple[int, ...]] = []
    forward = model.forward

    def noted(**inputs: Any) -> Any:
        shapes.append(tuple(inputs["input_ids"].shape))
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", noted)
    monkeypatch.setattr(models, "CELLS", 70 * model.config.vocab_size)
    found = models.completion_logprobs(model, rows, tokenizer.pad_token_id)
    assert [len(row) for row in found] == [2, 30, 3, 60, 1, 5]
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, abs=1e-5)
    assert shapes == [(2, 33), (1, 6), (1, 63), (2, 8)]


class Short(Frail):
    """An engine that forgets a row."""

    def sample(self, batches: Sequence[Batch], decoding: Decoding) -> Iterator[tuple[int, list[Row]]]:
        for index, rows in self.engine.sample(batches, decoding):
            yield index, rows[1:]


def short(checkpoint: Path) -> Short:
    """Likewise."""
    return Short(checkpoint)


def test_an_engine_that_returns_too_few_rows_is_named(run_micro: Callable[..., Campaign]) -> None:
    # Claim: rows are never paired with the wrong prompt: counts that do not fit end the stage.
    with pytest.raises(StageFailed, match=r"test_engines:short': expected 8 prompts x 4 rows, found 31; see Engine"):
        run_micro("tiny_raft", "rounds=1", "generate.engine=tests.test_engines:short", "evaluate.engine=transformers")


def test_more_replicas_than_gpus_are_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: before a process is started or a model loaded, both counts are named.
    from tasks.generate.engines.replicas import Replicas

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with pytest.raises(StageFailed, match="expected 4 GPUs for 2 replicas of 2, found 3"):
        Replicas(transformers, checkpoint, count=2, gpus_each=2, device="cuda", trust_remote_code=False)


def test_an_engine_with_a_missing_library_is_refused_early() -> None:
    # Claim: what an engine's library is belongs to its key only, and a missing one is said before anything runs.
    from tasks.run.parts import libraries_of
    from tests import test_engines

    assert libraries_of("engines", "transformers") == {}
    test_engines.LIBRARIES = {"tests.test_engines:frail": ("no-such-library",)}  # type: ignore[attr-defined]
    try:
        with pytest.raises(PartError, match="needs no-such-library, which is not installed"):
            libraries_of("engines", "tests.test_engines:frail")
    finally:
        del test_engines.LIBRARIES  # type: ignore[attr-defined]


def test_a_checkpoints_own_generation_settings_change_no_draw(checkpoint: Path, tmp_path: Path) -> None:
    # Claim: what is drawn follows the recipe alone; a repetition penalty in the checkpoint's files would shift every number.
    shutil.copytree(checkpoint, tmp_path / "penal")
    own = {"repetition_penalty": 1.5, "min_p": 0.3, "no_repeat_ngram_size": 2, "do_sample": True}
    (tmp_path / "penal" / "generation_config.json").write_text(json.dumps(own))
    decoding = Decoding(n=3, temperature=1.0, top_p=1.0, max_tokens=12)
    assert draw(transformers(tmp_path / "penal"), decoding, seed=1) == draw(transformers(checkpoint), decoding, seed=1)


def test_a_prompt_is_the_same_on_every_day(checkpoint: Path) -> None:
    # Claim: a chat template that asks for the date gets one day: rounds, and shards resumed tomorrow, see equal prompts.
    tokenizer = models.load_tokenizer(checkpoint)
    tokenizer.chat_template = "{{ strftime_now('%d%m') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert tokenizer.decode(models.render(tokenizer, [{"role": "user", "content": "1+2?"}])).replace(" ", "") == "26071+2?"


class Mortal:
    """The transformers engine in a process that dies at the last batch of a shard, in each of its first `lives` lives."""

    lives, begun = 1, 0
    sizes: ClassVar[list[int]] = []

    def __init__(self, checkpoint: Path) -> None:
        self.engine: Any = transformers(checkpoint)
        self.length, self.close = self.engine.length, self.engine.close
        Mortal.begun += 1

    def sample(self, batches: Sequence[Batch], decoding: Decoding) -> Iterator[tuple[int, list[Row]]]:
        Mortal.sizes += [len(batch.prompts) for batch in batches]
        for index, rows in self.engine.sample(batches, decoding):
            if Mortal.begun <= Mortal.lives and index == len(batches) - 1:
                raise EngineLost("its process died, see its output above")
            yield index, rows


def mortal(checkpoint: Path) -> Mortal:
    """A user's own engine, named in settings as tests.test_engines:mortal."""
    return Mortal(checkpoint)


@pytest.fixture
def sampling(checkpoint: Path, tmp_path: Path) -> Callable[..., Work]:
    """A generate call on twelve prompts in three shards, of which each attempt has a folder of its own."""
    rows = [
        {"prompt_id": str(i), "messages": [{"role": "user", "content": f"{i}+{i}?"}], "answer": None, "source": "",
         "stratum": None, "difficulty": None}
        for i in range(12)
    ]  # fmt: skip
    (tmp_path / "prompts").mkdir()
    tables.write(tables.from_rows(rows, tables.PROMPTS), tables.PROMPTS, tmp_path / "prompts" / "rounds.parquet")

    def work(name: str, engine: str) -> Work:
        settings = Settings(
            engine=engine, settings={}, split="rounds", n=2, temperature=1.0, top_p=1.0, max_tokens=12, batch=4, shard=8,
            dtype="float32", trust_remote_code=False,
        )  # fmt: skip
        for folder in ("out", "scratch"):
            (tmp_path / name / folder).mkdir(parents=True)
        inputs = {"prompts": tmp_path / "prompts", "checkpoint": checkpoint}
        return Work("key", settings, inputs, 5, tmp_path / name / "out", tmp_path / name / "scratch", Hardware(device="cpu"))

    return work


def drawn(work: Work) -> list[tuple[str, int]]:
    rows = tables.read(work.out / "completions.parquet", tables.COMPLETIONS).to_pylist()
    return [(row["text"], row["seed"]) for row in rows]


def test_a_lost_process_changes_nothing_that_is_drawn(sampling: Callable[..., Work], monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: an engine whose process died is started again once, with the same batches: every text and seed is that of a run
    # whose engine lived. The event names the loss, and not memory.
    calm, shaken = sampling("calm", "transformers"), sampling("shaken", "tests.test_engines:mortal")
    for name, value in (("lives", 1), ("begun", 0), ("sizes", [])):
        monkeypatch.setattr(Mortal, name, value)
    generate(calm)
    generate(shaken)
    assert Mortal.begun == 2
    assert set(Mortal.sizes) == {2}, "a batch of another size draws other texts"
    assert drawn(shaken) == drawn(calm)
    [event] = shaken.events()
    assert event == "process lost with 4 sequences at a time: its process died, see its output above"


def test_a_process_that_dies_again_is_given_up_at_once(sampling: Callable[..., Work], monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: it is started again once only, never with smaller batches, and the error says so and keeps finished shards.
    for name, value in (("lives", 9), ("begun", 0), ("sizes", [])):
        monkeypatch.setattr(Mortal, name, value)
    with pytest.raises(StageFailed, match=r"died 2 times with the same batches: process lost with 4 sequences.*smaller batch"):
        generate(sampling("doomed", "tests.test_engines:mortal"))
    assert (Mortal.begun, set(Mortal.sizes)) == (2, {2})


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_a_cpu_without_memory_is_out_of_memory_too(checkpoint: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: torch has no type of its own for it, and it halves the batch as on a GPU; other RuntimeErrors pass.
    engine: Any = transformers(checkpoint)
    for raised, expected in ((error, OutOfMemory), (RuntimeError("shapes differ"), RuntimeError)):

        def fails(raised: Exception = raised, **_: Any) -> None:
            raise raised

        monkeypatch.setattr(engine.model, "generate", fails)
        with pytest.raises(expected):
            draw(engine, Decoding(n=1, temperature=1.0, top_p=1.0, max_tokens=4), seed=1)
