"""The KL of the policy from earlier checkpoints, on its own samples, and its entropy per token. In nats.

The sampler's log-probabilities come with the completions; those of other checkpoints are LOGPROBS artifacts, in float32. If the
sampler computes in another format, its checkpoint's are a LOGPROBS artifact too: a difference of formats would count as KL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tasks.bias.features import Row, Values

TokenLogprobs = Sequence[Sequence[float] | None]
START = 32  # first tokens; alignment changes mostly these (Qi et al., arXiv 2406.05946)
NOT_PARTS = ("k1", "k3")


def token_entropy(completions: Sequence[Row]) -> Values:
    """Mean of -log p over the sampled tokens: an unbiased estimate of the sampler's entropy per token, at temperature 1."""
    return [-float(np.mean(row["logprobs"])) if row.get("logprobs") else None for row in completions]


def kl_base(completions: Sequence[Row], *, own_logprobs: TokenLogprobs, base_logprobs: TokenLogprobs) -> Values:
    """Sum over tokens of log p - log p of checkpoint 0 (the k1 estimate of the sequence's KL)."""
    return _each(own_logprobs, base_logprobs, lambda p, q: float(k1(p, q).sum()))


def kl_base_token(completions: Sequence[Row], *, own_logprobs: TokenLogprobs, base_logprobs: TokenLogprobs) -> Values:
    """Mean over tokens of the k3 estimate of the KL to checkpoint 0: never negative, little variance."""
    return _each(own_logprobs, base_logprobs, lambda p, q: float(k3(p, q).mean()))


def kl_base_start(completions: Sequence[Row], *, own_logprobs: TokenLogprobs, base_logprobs: TokenLogprobs) -> Values:
    """`kl_base_token` over the first 32 tokens."""
    return _each(own_logprobs, base_logprobs, lambda p, q: float(k3(p[:START], q[:START]).mean()))


def kl_previous(completions: Sequence[Row], *, own_logprobs: TokenLogprobs, previous_logprobs: TokenLogprobs) -> Values:
    """Sum over tokens of log p - log p of the checkpoint before (k1)."""
    return _each(own_logprobs, previous_logprobs, lambda p, q: float(k1(p, q).sum()))


def k1(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """log p - log q per token, on samples of p."""
    difference: np.ndarray = ours - theirs
    return difference


def k3(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """exp(u) - 1 - u with u = log q - log p, per token (Schulman, "Approximating KL divergence", 2020)."""
    u = theirs - ours
    estimate: np.ndarray = np.expm1(u) - u
    return estimate


def _each(own: TokenLogprobs, others: TokenLogprobs, estimate: Callable[[np.ndarray, np.ndarray], float]) -> Values:
    both = zip(own, others, strict=True)
    return [estimate(np.asarray(p, float), np.asarray(q, float)) if p and q else None for p, q in both]
