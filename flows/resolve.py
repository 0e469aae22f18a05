"""What a recipe leaves to the device, resolved before it enters a key: precision, recomputing, micro-batches."""

from __future__ import annotations

from data.loss import Loss
from data.recipe import Recipe
from data.settings import Train
from tasks.work import device_of

MICRO_TOKENS = 16_384  # of a micro-batch on a GPU, chosen by us: 7B with activations recomputed; not measured


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


def accumulation(recipe: Recipe, t: Train, loss: Loss) -> int:
    """Micro-batches per optimizer step of a training, resolved like `precision`; KTO's KL estimate needs two rows in each."""
    sides = 2 if loss.kind.data == "pairs" else 1
    return t.accumulate or micro_batches(recipe, t.batch, sides * t.max_length, least=2 if loss.name == "kto" else 1)


def micro_batches(recipe: Recipe, batch: int, tokens: int, least: int = 1) -> int:
    """On a GPU the fewest that keep each within MICRO_TOKENS tokens, a row having `tokens` at most; on a CPU one."""
    if device_of(recipe.hardware) != "cuda":
        return 1
    most = max(least, MICRO_TOKENS // tokens)
    return next(parts for parts in range(1, batch + 1) if batch % parts == 0 and batch // parts <= most)
