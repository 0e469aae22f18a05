"""Corrections and tests that studies share."""

from __future__ import annotations

import numpy as np
import pytest

from data.statistics import holm, t_test


def test_holm_is_rs_p_adjust() -> None:
    # Claim: the values of R's p.adjust(c(.01, .04, .03, .005), "holm"), in the order given; none exceeds 1.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_study_where_nothing_differs_is_rarely_sure_of_anything() -> None:
    # Claim: of studies with 8 comparisons of 5 seeds that differ in nothing, at most 5% are sure of one; uncorrected a third.
    draw = np.random.default_rng(0)
    raw = [[t_test(draw.normal(size=5)) for _ in range(8)] for _ in range(600)]
    assert np.mean([min(holm(ps)) < 0.05 for ps in raw]) < 0.07
    assert np.mean([min(ps) < 0.05 for ps in raw]) > 0.25


def test_equal_differences_prove_nothing() -> None:
    # Claim: without spread there is no test: p is 1, not 0.
    assert t_test(np.array([1.8, 1.8, 1.8])) == 1.0
    assert t_test(np.array([3.0])) == 1.0
