"""A model of another family and word problems as they come: a Llama-shaped model, BPE, a chat template, GSM8K's format."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data.rows import tables
from data.store.campaign import Campaign
from tasks.generate.engines import Batch, Decoding, local

GSM8K = Path(__file__).parent.parent.parent / "shared" / "data" / "gsm8k" / "train.jsonl.gz"
SETS = (
    "rounds=1",
    "prompts.held_out=20",
    "prompts.test=10",
    "generate.n=2",
    "generate.max_tokens=24",
    "generate.batch=40",
    "evaluate.samples=0",
    "train.steps=3",
    "train.batch=4",
    "train.accumulate=2",
    "train.minimum=2",
    "hardware.workers=1",
    "hardware.prefect=false",
)


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    """GSM8K as it is where it is at hand, else word problems of its form."""
    if GSM8K.exists():
        return GSM8K
    path = tmp_path / "train.jsonl.gz"
    with gzip.open(path, "wt") as lines:
        for i in range(400):
            row = {
                "question": f"Tom has {i} apples and buys {i} more. How many?",
                "answer": f"{i}+{i}=<<{i}+{i}={2 * i}>>\n#### {2 * i}",
            }
            lines.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_llama import make

    return make(tmp_path_factory.mktemp("llama"))


class Planted:
    """The transformers engine, with a right answer planted as the first sample of every third prompt."""

    def __init__(self, checkpoint: Path, device: str, dtype: str) -> None:
        self.engine: Any = local.transformers(checkpoint, device=device, dtype=dtype)
        self.length, self.close = self.engine.length, self.engine.close

    def sample(self, batches: Sequence[Batch], decoding: Decoding) -> Iterator[tuple[int, list[Any]]]:
        for index, rows in self.engine.sample(batches, decoding):
            yield index, rows if decoding.temperature == 0 else self.plant(batches[index].prompts, decoding, rows)

    def plant(self, prompts: Sequence[Any], decoding: Decoding, rows: list[Any]) -> list[Any]:
        tokenizer = self.engine.tokenizer
        for i, prompt in enumerate(prompts):
            if int(prompt["prompt_id"], 16) % 3 == 0:
                text = f"The answer is \\boxed{{{prompt['answer']}}}."
                ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
                rows[i * decoding.n] |= {"text": text, "token_ids": ids, "logprobs": [-1.0] * len(ids), "finish_reason": "stop"}
        return rows


def planted(checkpoint: Path, *, device: str = "cpu", dtype: str = "float32") -> Planted:
    """A user's own engine, named in a recipe as tests.test_real_input:planted."""
    return Planted(checkpoint, device, dtype)


def campaign_of(ratchet: Callable[..., int], home: Path, model: Path, prompts: Path, limit: int, *more: str) -> Campaign:
    sets = [part for item in (*SETS, f"prompts.limit={limit}", *more) for part in ("--set", item)]
    command = ("run", "iterative_dpo", "--name", "real", "--model", model, "--prompts", prompts, "--home", home, *sets)
    assert ratchet(*command) == 0
    return Campaign.open(home, "real")


def test_a_model_that_gets_nothing_right(ratchet: Callable[..., int], home: Path, llama: Path, gsm8k: Path) -> None:
    # Claim: a model that solves nothing ends honestly: no pairs, the round says so and holds, exit 0, every artifact in place.
    campaign = campaign_of(ratchet, home, llama, gsm8k, 80)
    last = campaign.rounds()[-1]
    assert last.verdict.decision == "hold"
    assert "0 pairs from 50 prompts" in last.verdict.reason
    assert last.metrics["accuracy"].value == 0.0
    assert {"draw", "generate", "score/math_equivalence", "reward", "pair", "evaluate/greedy"} <= last.artifacts.keys()
    assert all(campaign.store.find(ref.key) for ref in last.artifacts.values())


def test_planted_right_answers_make_pairs(ratchet: Callable[..., int], home: Path, llama: Path, gsm8k: Path) -> None:
    # Claim: with some right answers among the samples, pairs exist, chosen ones are right, and DPO trains on the sampled ids.
    campaign = campaign_of(ratchet, home, llama, gsm8k, 80, "generate.engine=tests.test_real_input:planted")
    last = campaign.rounds()[-1]
    assert last.facts["pairs"] >= 5
    assert last.facts["wrong_chosen"] == 0
    assert last.reference == campaign.rounds()[0].checkpoint
    assert last.checkpoint != last.head_before
    store = campaign.store

    def read(label: str, file: str, schema: pa.Schema) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = tables.read(store.folder(last.artifacts[label].key) / "payload" / file, schema).to_pylist()
        return rows

    texts = {row["completion_id"]: row["text"] for row in read("generate", "completions.parquet", tables.COMPLETIONS)}
    assert all("boxed" in texts[pair["chosen_id"]] for pair in read("pair", "pairs.parquet", tables.PAIRS))
