"""What a recipe leaves to the device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import ModelError
from data.recipe.recipe import Recipe, load
from flows.round import resolve

SEVEN_B = {  # Qwen2.5-7B's config.json
    "num_hidden_layers": 28,
    "hidden_size": 3584,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}


def recipe_of(folder: Path, config: dict[str, Any], *sets: str) -> Recipe:
    (folder / "config.json").write_text(json.dumps(config))
    return load("raft", ["generate.batch=0", *sets], {"model.path": str(folder), "prompts.path": "p.jsonl"})


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_more_memory_never_decodes_less_together(one: int, more: int) -> None:
    # the size is a power of two between 1 and the most, grows with memory, and what a recipe says goes before it
    tiny = load("tiny_raft", ["generate.batch=0"])
    with pytest.MonkeyPatch.context() as patch:
        sizes = []
        for memory in (one, one + more):
            patch.setattr(resolve, "_memory", lambda _, memory=memory: memory)
            sizes.append(resolve.decoded_together(tiny))
        assert 1 <= sizes[0] <= sizes[1] <= resolve.MOST_TOGETHER
        assert all(size.bit_count() == 1 for size in sizes)
        assert resolve.decoded_together(load("tiny_raft", ["generate.batch=7"])) == 7


def test_a_7b_model_on_80_gb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # by hand: half of 80e9 less 15.2e9 bytes of weights is 24.8e9; 28 layers x 2 x 4 x 128 x 2 bytes x 2,048 tokens = 117e6 a
    # sequence, 1.8e6 more for logits: 208 fit, so 128
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(15_231_271_864)  # a hole: it takes no room
    monkeypatch.setattr(resolve, "_memory", lambda _: 80 * 10**9)
    assert resolve.decoded_together(recipe_of(tmp_path, SEVEN_B, "train.precision=bfloat16")) == 128


def test_a_configuration_without_sizes_is_named(tmp_path: Path) -> None:
    # the error names the configuration file, the sizes expected in it, and what to do
    recipe = recipe_of(tmp_path, {"num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 9})
    with pytest.raises(
        ModelError, match=r"config\.json: expected .* to size batches by, found no num_attention_heads; set gen"
    ):
        resolve.decoded_together(recipe)
