"""How alike the answers to different prompts are: a policy that collapses gives every prompt the same one.

They are means over pairs of prompts, so the values of two prompts are not independent. The value of a prompt is therefore its
jackknife pseudo-value: the mean over prompts is the statistic itself, and the ledger's tests over prompts are those of the
jackknife (Efron and Stein 1981, whose variance is not too small on average). A single value may lie outside 0 to 1.
"""

from __future__ import annotations

import numpy as np

from tasks.bias.effects import Array
from tasks.bias.features import listed
from tasks.bias.marks import Marks
from tasks.bias.prompt_features import Groups, Values

KINDS = {"shared_answer": "rate", "answer_similarity": "rate"}  # shares, so a change must be of 2 points to count
NOT_PARTS = ("pseudo_values",)


def shared_answer(groups: Groups, *, marks: Marks) -> Values:
    """1.0 if another prompt got the same answer, up to case and white space; as jackknife values; with one sample too."""
    _, which, counts = np.unique(marks.answers, return_inverse=True, return_counts=True)
    prompts = counts[which]
    shared, lost = prompts > 1, prompts == 2  # without one prompt of two, the answer of the other is no longer shared
    return listed(shared.mean() + lost - lost.mean() + shared - shared.mean())


def answer_similarity(groups: Groups, *, marks: Marks) -> Values:
    """Mean Jaccard similarity (5 characters) with the answers to the other prompts, as jackknife values; 1 = all alike."""
    values = np.full(len(marks.prompts), np.nan)
    if marks.sketched.sum() > 2:
        values[marks.sketched] = pseudo_values(_similarities(marks.sketches[marks.sketched]))
    return [None if np.isnan(value) else value for value in values.tolist()]


def _similarities(sketches: Array) -> Array:
    """Per prompt the mean similarity with all others: the share of places in which two sketches agree."""
    agreeing = np.zeros(len(sketches))
    for place in sketches.T:
        _, which, counts = np.unique(place, return_inverse=True, return_counts=True)
        agreeing += counts[which] - 1
    similarities: Array = agreeing / (len(sketches) - 1) / sketches.shape[1]
    return similarities


def pseudo_values(means: Array) -> Array:
    """The jackknife values of a mean over pairs, from each member's mean over its own pairs.

    Without member i the mean is (n U - 2 h_i) / (n - 2), so n U - (n - 1) times that is (2 (n - 1) h_i - n U) / (n - 2).
    """
    n = len(means)
    values: Array = (2 * (n - 1) * means - n * means.mean()) / (n - 2)
    return values
