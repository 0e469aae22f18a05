"""How different the samples of a prompt are from each other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from annotated_types import Ge

from tasks.bias.features import units
from tasks.bias.prompt_features import Groups, Row, Values


def distinct(groups: Groups, *, n: Annotated[int, Ge(1)] = 2, budget: Annotated[int, Ge(1)] = 100) -> Values:
    """Distinct n-grams / n-grams over the samples (Li et al., arXiv 1510.03055), each cut to the same length.

    That is the shortest sample's, at most `budget` units (tokens, else words): distinct-n falls with length, and a budget
    keeps it comparable between rounds whose completions grow.
    """
    return _each(groups, lambda samples: _distinct(samples, n, budget))


def _distinct(samples: Sequence[Row], n: int, budget: int) -> float | None:
    sequences = [units(row) for row in samples]
    length = min(budget, *map(len, sequences))
    grams = [gram for s in sequences for gram in zip(*(s[i:length] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(groups: Groups) -> Values:
    """Mean BLEU-4 of each sample against the others, 0-100 (Zhu et al., arXiv 1802.01886; sacrebleu); high = alike."""
    return _each(groups, _self_bleu)


def _self_bleu(samples: Sequence[Row]) -> float | None:
    texts = [row["text"] for row in samples]
    scores = [_bleu().sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)]
    return float(sum(scores) / len(scores))


@functools.cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)


def semantic_spread(groups: Groups) -> Values:
    """1 - mean pairwise cosine of TF-IDF vectors of character 3- and 4-grams, fitted on the prompt's own samples."""
    return _each(groups, _spread)


def _spread(samples: Sequence[Row]) -> float | None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [row["text"] for row in samples]
    if not all(text.strip() for text in texts):
        return None  # an empty text has no direction
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4)).fit_transform(texts)
    total, k = float((vectors @ vectors.T).sum()), len(texts)
    return 1 - (total - k) / (k * (k - 1))  # unit vectors: k ones on the diagonal


def _each(groups: Groups, measure: Callable[[Sequence[Row]], float | None]) -> Values:
    return [measure(samples) if len(samples) > 1 else None for samples in groups]
