"""The KL of a policy from another checkpoint: exact per position, unbiased over its samples, and read by the budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.alarm import Alarm
from data.recipe.settings import Hardware
from data.rows import tables
from data.store.campaign import Metric
from tasks.bias.features import policy
from tasks.gate.kl_budget import by_full_kl, from_reference
from tasks.generate.engines import Batch, Decoding
from tasks.generate.engines.local import transformers
from tasks.models import logprobs, models
from tasks.models.tiny_model import Settings, tiny_model
from tasks.run.work import Work

PROMPT = {"prompt_id": "p", "messages": [{"role": "user", "content": "12+30"}], "answer": "42"}


def test_a_collapsed_policy_is_measured_exactly() -> None:
    # p = (.9999, .0001) from q = (.5, .5), 1,000 positions: the KL is exact, while k3 of sampled tokens is below half of it in
    # nine samples of ten
    p, q = np.array([0.9999, 0.0001]), np.array([0.5, 0.5])
    truth = float((p * np.log(p / q)).sum())
    ours, theirs = (torch.tensor(np.log(one), dtype=torch.float32).expand(1, 1000, 2) for one in (p, q))
    assert models.full_kl(ours, theirs).mean().item() == pytest.approx(truth, rel=1e-5)
    u = np.log(q / p)[np.where(np.random.default_rng(0).random((2000, 1000)) < p[1], 1, 0)]
    assert 0.85 < np.mean((np.expm1(u) - u).mean(-1) < truth / 2) < 0.95


def test_positions_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch's own KL, however few positions at once; and never more logits than `cells` are in the hands of the formula
    torch.manual_seed(0)
    a, b = torch.randn(3, 17, 101), torch.randn(3, 17, 101)
    expected = torch.nn.functional.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    seen: list[int] = []
    formula = models._kl_of_positions
    monkeypatch.setattr(models, "_kl_of_positions", lambda p, q: (seen.append(p.numel()), formula(p, q))[1])
    for cells in (1, 101 * 4, 1 << 24):
        assert torch.allclose(models.full_kl(a, b, cells), expected, atol=1e-6)
        assert max(seen) <= max(101, min(cells, 17 * 101))
        seen.clear()
    a[0, 0, 3] = -torch.inf  # a token that the policy cannot sample
    assert models.full_kl(a, b).isfinite().all()
    assert models.full_kl(a, a).max() == 0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two tiny checkpoints: the second is flatter and knows nothing of the first's other weights."""
    folders = []
    for seed, sharp in ((7, 12.0), (8, 3.0)):
        folder = tmp_path_factory.mktemp("model")
        tiny_model(Work("key", Settings(hidden=32, layers=1), {}, seed, folder, folder, Hardware()))
        model = models.load_model(folder, "cpu", "float32")
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(sharp)
        model.save_pretrained(folder)
        folders.append(folder)
    return folders[0], folders[1]


def drawn(checkpoint: Path, n: int) -> list[dict[str, Any]]:
    engine = transformers(checkpoint)
    [(_, rows)] = engine.sample([Batch([PROMPT], 1, [1])], Decoding(n=n, temperature=1.0, top_p=1.0, max_tokens=8))
    engine.close()
    return rows


def test_the_mean_is_that_of_k1_and_varies_less(pair: tuple[Path, Path]) -> None:
    # a real model's own samples: summed over a completion, the full KL and k1 have one mean (over 1,000 samples, within four
    # standard errors of their paired difference); full varies less; the reverse KL is another number
    rows = drawn(pair[0], 1000)
    tokenizer = models.load_tokenizer(pair[0])
    own, other = (models.load_model(folder, "cpu", "float32") for folder in pair)
    prompt = models.render(tokenizer, PROMPT["messages"])
    sequences = [(prompt, row["token_ids"]) for row in rows]
    theirs, kl = models.completion_kl(own, other, sequences, tokenizer.pad_token_id)
    full = np.array(policy.kl_base(rows, base_kl=kl), dtype=float)
    k1 = np.array(policy.kl_base_k1(rows, own_logprobs=[row["logprobs"] for row in rows], base_logprobs=theirs), dtype=float)
    error = (full - k1).std() / np.sqrt(len(rows))
    assert abs((full - k1).mean()) < 4 * error
    assert full.mean() > 20 * error
    assert full.min() >= 0
    assert full.std() < 0.8 * k1.std()
    reverse = np.array([sum(one) for one in models.completion_kl(other, own, sequences, tokenizer.pad_token_id)[1]])
    assert abs(reverse.mean() - k1.mean()) > 10 * error
    assert theirs == [
        pytest.approx(one, abs=1e-5) for one in models.completion_logprobs(other, sequences, tokenizer.pad_token_id)
    ]


def stage(tmp_path: Path, rows: list[dict[str, Any]], **checkpoints: Path) -> Path:
    given, out = tmp_path / "given", tmp_path / "out"
    given.mkdir()
    out.mkdir()
    prompts = [{**PROMPT, "source": "toy", "stratum": None, "difficulty": None}]
    tables.write(tables.from_rows(prompts, tables.PROMPTS), tables.PROMPTS, given / "probe.parquet")
    made = [row | {"completion_id": str(i), "prompt_id": "p", "sample": i, "engine": "toy"} for i, row in enumerate(rows)]
    tables.write(tables.from_rows(made, tables.COMPLETIONS), tables.COMPLETIONS, given / "completions.parquet")
    settings = logprobs.Settings(split="probe", limit=0, trust_remote_code=False)
    inputs = {"prompts": given, "completions": given, **checkpoints}
    logprobs.logprobs(Work("key", settings, inputs, 0, out, tmp_path, Hardware(device="cpu")))
    return out


def test_the_stage_writes_the_kl_from_itself_as_0(pair: tuple[Path, Path], tmp_path: Path) -> None:
    # per token, one number; without the checkpoint that sampled there is no such table
    rows = drawn(pair[0], 3)
    out = stage(tmp_path, rows, checkpoint=pair[0], own=pair[0])
    kl = tables.read(out / "kl.parquet", tables.KL)["kl"].to_pylist()
    assert [len(one) for one in kl] == [len(row["token_ids"]) for row in rows]
    assert max(max(one) for one in kl) < 1e-6
    again = tmp_path / "again"
    again.mkdir()
    assert not (stage(again, rows, checkpoint=pair[0]) / "kl.parquet").exists()


def test_between_two_vocabularies_there_is_no_kl(pair: tuple[Path, Path], tmp_path: Path) -> None:
    # null, not a number over a part of the vocabulary; k1 stays
    wider = tmp_path / "wider"
    model = models.load_model(pair[1], "cpu", "float32")
    model.resize_token_embeddings(models.vocabulary(model) + 8)
    model.save_pretrained(wider)
    models.load_tokenizer(pair[1]).save_pretrained(wider)
    out = stage(tmp_path, drawn(pair[0], 2), checkpoint=wider, own=pair[0])
    assert tables.read(out / "kl.parquet", tables.KL)["kl"].to_pylist() == [None, None]
    assert all(tables.read(out / "logprobs.parquet", tables.LOGPROBS)["logprobs"].to_pylist())


LOGGED = Alarm("ALARM", "training", "KL over budget", "k1")
OTHER = Alarm("watch", "training", "loss stuck", "still")


@pytest.mark.parametrize(("kl", "names"), [(1.99, ["loss stuck"]), (2.01, ["loss stuck", "KL over budget"])])
def test_the_budget_reads_the_full_kl(kl: float, names: list[str]) -> None:
    # on both sides of 2 nats, whatever the log's k1 says; where the probe has none, the log's alarm stays
    known = Metric(value=kl, low=kl - 0.5, high=kl + 0.5, n=64, split="probe")
    found = by_full_kl([LOGGED, OTHER], known, 2.0)
    assert [alarm.name for alarm in found] == names
    assert all("over the whole vocabulary" in alarm.sentence for alarm in found if alarm.name == LOGGED.name)
    assert by_full_kl([LOGGED, OTHER], None, 2.0) == [LOGGED, OTHER]
    assert by_full_kl([LOGGED, OTHER], Metric(value=None), 2.0) == [LOGGED, OTHER]
    assert by_full_kl([], known, 0.0) == []


def test_the_budgets_kl_is_from_the_reference() -> None:
    # from where training started, from checkpoint 0, or unknown
    metrics = {"bias/kl_previous/mean": Metric(value=1.0), "bias/kl_base/mean": Metric(value=2.0)}
    for reference, start, value in (("previous", "previous", 1.0), ("base", "previous", 2.0), ("best", "best", 1.0)):
        found = from_reference(metrics, reference, start)
        assert found is not None
        assert found.value == value
    assert from_reference(metrics, "ema", "previous") is None
    assert from_reference({}, "base", "base") is None
