"""What a recipe would cost on a 7B model and one 80 GB GPU: formulas with stated assumptions, an upper bound, not measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from data.recipe import Recipe

PARAMETERS = 7.6e9  # Qwen2.5-7B
DECODED_PER_SECOND = 5000.0  # tokens: assumed, of an engine with large batches on one H100
PEAK, UTILISATION = 989e12, 0.4  # H100's dense bfloat16 FLOP/s (data sheet), and the share that training is assumed to reach
GPU_GB = 80.0


@dataclass(frozen=True)
class Cost:
    decoded: int  # tokens at most
    trained: int  # tokens at most, prompts left aside
    decode_hours: float
    train_hours: float
    disk_gb: float
    memory_gb: float  # of training, activations left aside

    def lines(self) -> list[str]:
        fits = "fits" if self.memory_gb < GPU_GB else "does not fit: set train.lora"
        return [
            f"at most {self.decode_hours + self.train_hours:,.0f} GPU-hours: {self.decoded:,} tokens decoded at an assumed "
            f"{DECODED_PER_SECOND:,.0f} a second ({self.decode_hours:,.0f} h), {self.trained:,} trained on "
            f"at {UTILISATION:.0%} of the peak ({self.train_hours:,.0f} h)",
            f"{self.memory_gb:.0f} GB of weights, gradients and moments ({fits}); disk at most {self.disk_gb:,.0f} GB",
        ]


def seven_b(recipe: Recipe, per_round: int, decoded: int) -> Cost:
    """The estimate. FLOP per trained token: 6 N, 2 N more where activations are recomputed, 2 N where there is a reference.

    Args:
        per_round: prompts of a round. decoded: tokens to decode at most, measuring included.
    """
    trained = 0
    for number in range(1, recipe.rounds + 1):
        now = recipe.at_round(number)
        sides = 2 if now.pair else 1
        steps = now.train.steps or math.ceil(now.train.epochs * per_round * now.generate.n / now.train.batch)
        trained += steps * now.train.batch * sides * now.generate.max_tokens
    flop = PARAMETERS * (8 + 2 * recipe.loss.needs_reference)
    float32 = 4 * PARAMETERS / 1e9
    copies = 1 + (0 if recipe.train.lora else 3 + recipe.loss.needs_reference)  # weights; gradient, two moments, reference
    kept = 3 if recipe.keep.checkpoints == "best+last" else recipe.rounds + 1
    saves = 0 if recipe.train.lora else 2 * 3
    return Cost(
        decoded=decoded,
        trained=trained,
        decode_hours=decoded / DECODED_PER_SECOND / 3600,
        train_hours=trained * flop / (PEAK * UTILISATION) / 3600,
        disk_gb=float32 * (kept + saves),
        memory_gb=float32 * copies,
    )
