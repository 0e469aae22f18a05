"""The cost of a recipe on a 7B model and one 80 GB GPU: upper bounds from formulas with stated assumptions, not measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.recipe import templates
from data.recipe.recipe import Recipe
from data.recipe.settings import Score
from data.rows.folds import FOLDS
from tasks.run import parts

PARAMETERS = 7.6e9  # Qwen2.5-7B
DECODED_PER_SECOND = 5000.0  # tokens: assumed, of an engine with large batches on one H100
PEAK, UTILISATION = 989e12, 0.4  # H100's dense bfloat16 FLOP/s (data sheet), and the share assumed for training
GPU_GB = 80.0
NF4_BITS = 4.127  # per weight in QLoRA: four, and its share of the doubly quantized constants (arXiv 2305.14314)


@dataclass(frozen=True)
class Cost:
    decoded: int  # tokens at most
    trained: int  # tokens at most, without prompts
    decode_hours: float
    train_hours: float
    disk_gb: float
    memory_gb: float  # for training, without activations

    def lines(self) -> list[str]:
        fits = "fits" if self.memory_gb < GPU_GB else "does not fit: set train.lora"
        return [
            f"at most {self.decode_hours + self.train_hours:,.0f} GPU-hours: {self.decoded:,} tokens sampled, assuming "
            f"{DECODED_PER_SECOND:,.0f} per second ({self.decode_hours:,.0f} h); {self.trained:,} tokens trained on, "
            f"assuming {UTILISATION:.0%} of peak FLOP/s ({self.train_hours:,.0f} h)",
            f"{self.memory_gb:.0f} GB for weights, gradients and moments ({fits}); disk at most {self.disk_gb:,.0f} GB",
        ]


def sampled_to_train_on(recipe: Recipe, per_round: int) -> tuple[int, int]:
    """Completions that one round samples to train on, and the most tokens that they and judges' answers have."""
    g = recipe.generate
    if recipe.online:
        count = recipe.train.steps * recipe.train.batch or round(recipe.train.epochs * per_round * g.n)
        return count, count * g.max_tokens
    if not recipe.samples:
        return 0, 0
    own = per_round * g.n * (1 + recipe.pool.base + bool(recipe.pool.contrast))
    count = 0 if recipe.recorded else own
    each = own // max(per_round, 1)
    scoring = sum(judge_tokens(score, each) + continuations(score, each) * g.longest for score in recipe.score)
    return count, count * g.longest + per_round * scoring


def continuations(score: Score, n: int) -> int:
    """The most continuations that a process score samples from the steps of `n` completions."""
    if score.scorer != "step_rollouts":
        return 0
    s = parts.check_settings("scorers", score.scorer, score.settings)
    return int(n * (s["steps"] - 1) * s["samples"])


def judge_tokens(score: Score, n: int) -> int:
    """The most tokens that a judge writes about `n` completions of a prompt."""
    if score.scorer != "judge":
        return 0
    s = parts.check_settings("scorers", "judge", score.settings)
    if s["reading"] != "sampled":
        return 0
    comparisons = min(2 * n * (s["opponents"] or n), n * (n - 1))  # of two texts each, in both orders
    questions = comparisons if templates.load(s["template"]).compares else n
    return int(questions * s["samples"] * s["max_tokens"])


def seven_b(recipe: Recipe, per_round: int, decoded: int) -> Cost:
    """The estimate. FLOP per trained token of N parameters: 6 N, plus 2 N to recompute activations, plus 2 N for a reference.

    Args:
        per_round: prompts per round.
        decoded: the most tokens to sample, including those for measuring.
    """
    trained, flop = 0, 0.0
    for number in range(1, recipe.rounds + 1):
        now = recipe.at_round(number)
        rows = per_round * rows_per_prompt(now)
        steps = now.train.steps or math.ceil(now.train.epochs * math.ceil(rows / now.train.batch))
        tokens = steps * now.train.batch * (2 if now.pair else 1) * now.generate.max_tokens
        flop += tokens * PARAMETERS * (8 + 2 * now.loss.needs_reference)
        if any(score.checkpoint == "trained" for score in now.score):
            f = now.fit_reward
            pairs = f.epochs * per_round * most_rows("pairers", f.pairer, f.settings, now.generate.n)
            fitted = 2 * now.generate.max_tokens * (f.steps * f.batch or math.ceil(pairs))
            fitted *= FOLDS  # the model that rewards, and those that judge health out of fold: FOLDS - 1 times as much together
            tokens, flop = tokens + fitted, flop + fitted * PARAMETERS * 8
        trained += tokens
    float32, lora = 4 * PARAMETERS / 1e9, recipe.train.lora
    referred = any(recipe.at_round(number).loss.needs_reference for number in range(1, recipe.rounds + 1))
    copies = 1 + (0 if lora else 3 + referred)  # weights; gradient, two moments, reference
    memory = float32 * copies
    if lora and lora.four_bit:  # policy and reference in four bits; before that the whole reference, which is checked first
        memory = max(float32 * (1 + referred) * NF4_BITS / 32, float32 * referred)
    kept = 3 if recipe.keep.checkpoints == "best+last" else recipe.rounds + 1
    saves = 0 if lora else 2 * 3
    return Cost(
        decoded=decoded,
        trained=trained,
        decode_hours=decoded / DECODED_PER_SECOND / 3600,
        train_hours=flop / (PEAK * UTILISATION) / 3600,
        disk_gb=float32 * (kept + saves),
        memory_gb=memory,
    )


def rows_per_prompt(recipe: Recipe) -> int:
    """The most rows or pairs that a prompt gives. With an online loss each completion is a row."""
    n = recipe.generate.n * (1 + recipe.pool.earlier)
    if recipe.pair:
        return most_rows("pairers", recipe.pair.pairer, recipe.pair.settings, n)
    if recipe.select:
        return most_rows("selectors", recipe.select.selector, recipe.select.settings, n)
    return recipe.generate.n


def most_rows(family: str, name: str, settings: Mapping[str, Any], n: int) -> int:
    """The most rows that a part chooses from `n` completions: its cap, if it has one. Our pairers without one give one pair."""
    checked = parts.check_settings(family, name, settings)
    cap = checked.get("cap", checked.get("count"))
    if family == "pairers":
        return cap or (1 if cap is None and ":" not in name else n * (n - 1) // 2)
    sides = 2 if name in ("labelled", "ranked") else 1  # a cap per side
    return min(n, cap * sides) if cap else n
