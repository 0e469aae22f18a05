"""Settings that a recipe leaves to the device: precision, recomputing, batch sizes. Resolved before they enter a key."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from data.errors import ModelError
from data.recipe.loss import Loss
from data.recipe.recipe import Recipe
from data.recipe.settings import Train
from tasks.run.work import device_of

MOST_TOGETHER = 512  # sequences decoded together, however small the model
MICRO_TOKENS = 16_384  # per micro-batch on a GPU: our choice for 7B with activations recomputed, not measured


def precision(recipe: Recipe) -> str:
    """The number format, resolved before it enters a key: bfloat16 on a GPU, float32 on a CPU, unless the recipe says."""
    if recipe.train.precision != "auto":
        return recipe.train.precision
    return "bfloat16" if device_of(recipe.hardware) == "cuda" else "float32"


def checkpointing(recipe: Recipe) -> bool:
    """Whether activations are recomputed to save memory, resolved like `precision`: on a GPU, unless the recipe says."""
    if recipe.train.checkpointing != "auto":
        return recipe.train.checkpointing == "on"
    return device_of(recipe.hardware) == "cuda"


def decoded_together(recipe: Recipe) -> int:
    """Sequences decoded at the same time. If the recipe says 0, the largest power of two whose caches and logits fit.

    Caches are keys and values of a prompt and a completion of full length each. They and the logits get half the device's
    memory, minus the weights. The device's total memory counts, not the free part, so that a resumed round gives the same
    samples.

    Raises:
        ModelError: the model's configuration does not say its sizes.
    """
    if recipe.generate.batch:
        return recipe.generate.batch
    model, size = _shape(recipe), 2 if precision(recipe) == "bfloat16" else 4
    cached = 2 * model["layers"] * model["cached"] * size * 2 * recipe.generate.longest
    logits = 3 * 4 * model["vocabulary"]  # of the last position, in float32: raw, as log-probabilities, sorted
    available = _memory(recipe) // 2 - model["weights"]
    fits = max(1, min(MOST_TOGETHER, available // (cached + logits)))
    return int(1 << (fits.bit_length() - 1))


def _shape(recipe: Recipe) -> dict[str, int]:
    """The model's sizes that decoding memory depends on. `cached`: numbers per layer and token in keys. `weights`: bytes."""
    if not recipe.model.path:
        m = recipe.model
        return {"layers": m.layers, "cached": m.hidden, "vocabulary": 64, "weights": 0}
    file = Path(recipe.model.path) / "config.json"
    configuration: dict[str, Any] = json.loads(file.read_text())
    configuration = configuration.get("text_config", configuration)
    needed = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    if missing := [name for name in needed if name not in configuration]:
        raise ModelError(f"{file}: expected {', '.join(needed)} to size batches by, found no {missing[0]}; set generate.batch")
    layers, hidden, heads, vocabulary = (configuration[name] for name in needed)
    per_head = configuration.get("head_dim") or hidden // heads
    cached_heads = configuration.get("num_key_value_heads") or heads
    weights = sum(shard.stat().st_size for shard in file.parent.glob("*.safetensors"))
    return {"layers": layers, "cached": cached_heads * per_head, "vocabulary": vocabulary, "weights": weights}


def _memory(recipe: Recipe) -> int:
    """Bytes of the device: the GPU's, or the machine's."""
    if device_of(recipe.hardware) == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def accumulation(recipe: Recipe, t: Train, loss: Loss) -> int:
    """Micro-batches per optimizer step of a training, resolved like `precision`; KTO's KL estimate needs two rows in each."""
    listed = recipe.generate.n * (1 + recipe.pool.earlier)  # a row is a prompt with its completions
    sides = {"pairs": 2, "ranked": listed}.get(loss.kind.data, 1)
    return t.accumulate or micro_batches(
        recipe, t.batch, sides * t.max_length, least=2 if loss.name in ("kto", "aot", "aot_unpaired") else 1
    )


def micro_batches(recipe: Recipe, batch: int, tokens: int, least: int = 1) -> int:
    """On a GPU the fewest micro-batches of at most MICRO_TOKENS tokens, with at most `tokens` per row. On a CPU one."""
    if device_of(recipe.hardware) != "cuda":
        return 1
    most = max(least, MICRO_TOKENS // tokens)
    return next(parts for parts in range(1, batch + 1) if batch % parts == 0 and batch // parts <= most)
