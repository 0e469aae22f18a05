"""Two checkpoints on the same prompts: the share of right answers of each, their difference, and an exact test of it."""

from __future__ import annotations

import math

import numpy as np

from data.statistics import LEVEL, t_interval

Right = dict[str, list[float]]  # per prompt_id, 1.0 or 0.0 for each answer


def all_answers(*sets: Right) -> Right:
    """Per prompt the answers of several sets, e.g. the greedy one and the sampled ones. A prompt must be in each of them."""
    shared = set.intersection(*(set(right) for right in sets))
    return {prompt: [value for right in sets for value in right[prompt]] for prompt in sorted(shared)}


def differences(ours: Right, theirs: Right) -> np.ndarray:
    """Per shared prompt, our share of right answers minus theirs: from -1 to 1."""
    return np.array(
        [sum(ours[p]) / len(ours[p]) - sum(theirs[p]) / len(theirs[p]) for p in sorted(ours.keys() & theirs.keys())]
    )


def shares_interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The interval of a mean of differences between shares: Student's t, with one prompt won and one lost added.

    Where few prompts differ, a plain t interval is far too narrow, and of equal values it has no width. The two added prompts
    are Bonett and Price's (2012) adjustment for pairs of right and wrong, https://doi.org/10.3102/1076998611411915.
    """
    low, high = t_interval(np.concatenate([values, [1.0, -1.0]]), level)
    return max(-1.0, min(low, float(values.mean()))), min(1.0, max(high, float(values.mean())))


def sign_flip_p(values: np.ndarray, answers: int) -> float:
    """The exact one-sided p value of a mean difference, in the direction that it has: a sign-flip (randomisation) test.

    If two checkpoints are equally good, each prompt's difference is as likely to be positive as negative. p is the share of all
    2^n ways to flip the signs whose sum is at least as far in this direction. With one answer per prompt it is McNemar's exact
    test. The distribution of the sum is a product of cosines, turned into probabilities by one Fourier transform.

    Args:
        answers: per prompt. Differences are counted in units of 1 / answers, and rounded to it where answers are missing.
    """
    steps = np.rint(values * answers).astype(int)
    sizes, counts = np.unique(np.abs(steps[steps != 0]), return_counts=True)
    farthest, found = int(sizes @ counts), abs(int(steps.sum()))
    length = 1 << (2 * farthest + 1).bit_length()
    angle = 2 * math.pi / length * np.arange(length // 2 + 1)
    waves = np.prod([np.cos(angle * size) ** count for size, count in zip(sizes, counts, strict=True)], axis=0)
    chances = np.fft.irfft(np.broadcast_to(waves, angle.shape), length)
    return float(np.clip(chances[found : farthest + 1].sum(), 0.0, 1.0))
