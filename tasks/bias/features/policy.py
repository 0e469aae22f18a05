"""The KL of the policy from earlier checkpoints, on its own samples, and its entropy per token. In nats.

The KL is that of the whole vocabulary at each position, from the logits of both checkpoints in float32. Summed over a sampled
completion it estimates the KL of completions without bias, is never negative, and varies less than the sampled tokens' k1
(Amini et al., arXiv 2504.10637). k3 is not used: of a collapsed policy it shows a fraction of the truth in most samples.

k1 needs the log-probabilities of the sampled tokens alone. The sampler's come with the completions; those of other checkpoints
are LOGPROBS artifacts, in float32. If the sampler computes in another format, its checkpoint's are a LOGPROBS artifact too: a
difference of formats would count as KL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tasks.bias.features import Row, Values

PerToken = Sequence[Sequence[float] | None]
START = 32  # first tokens; alignment changes mostly these (Qi et al., arXiv 2406.05946)
NOT_PARTS = ("k1",)
VERSIONS = {"kl_base": 2, "kl_base_token": 2, "kl_base_start": 2, "kl_previous": 2}  # 2: over the whole vocabulary


def token_entropy(completions: Sequence[Row]) -> Values:
    """Mean of -log p over the sampled tokens: an unbiased estimate of the sampler's entropy per token, at temperature 1."""
    return [-float(np.mean(row["logprobs"])) if row.get("logprobs") else None for row in completions]


def kl_base(completions: Sequence[Row], *, base_kl: PerToken) -> Values:
    """Sum over tokens of the KL from checkpoint 0 over the whole vocabulary (arXiv 2504.10637)."""
    return _each(base_kl, np.sum)


def kl_base_token(completions: Sequence[Row], *, base_kl: PerToken) -> Values:
    """Mean over tokens of the KL from checkpoint 0 over the whole vocabulary."""
    return _each(base_kl, np.mean)


def kl_base_start(completions: Sequence[Row], *, base_kl: PerToken) -> Values:
    """`kl_base_token` over the first 32 tokens."""
    return _each(base_kl, lambda kl: np.mean(kl[:START]))


def kl_base_k1(completions: Sequence[Row], *, own_logprobs: PerToken, base_logprobs: PerToken) -> Values:
    """Sum over tokens of log p - log p of checkpoint 0: k1, the estimate of `kl_base` from the sampled tokens alone."""
    return _k1_of_each(own_logprobs, base_logprobs)


def kl_previous(completions: Sequence[Row], *, previous_kl: PerToken) -> Values:
    """Sum over tokens of the KL from the checkpoint before over the whole vocabulary."""
    return _each(previous_kl, np.sum)


def kl_previous_k1(completions: Sequence[Row], *, own_logprobs: PerToken, previous_logprobs: PerToken) -> Values:
    """Sum over tokens of log p - log p of the checkpoint before: k1, from the sampled tokens alone."""
    return _k1_of_each(own_logprobs, previous_logprobs)


def k1(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """log p - log q per token, on samples of p (Schulman, "Approximating KL divergence", 2020)."""
    difference: np.ndarray = ours - theirs
    return difference


def _each(kl: PerToken, summary: Callable[[np.ndarray], float]) -> Values:
    return [float(summary(np.asarray(of_row, float))) if of_row else None for of_row in kl]


def _k1_of_each(own: PerToken, others: PerToken) -> Values:
    both = zip(own, others, strict=True)
    return [float(k1(np.asarray(p, float), np.asarray(q, float)).sum()) if p and q else None for p, q in both]
