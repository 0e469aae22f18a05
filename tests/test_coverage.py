"""The intervals that a person is shown hold the truth: a quick version of `./ratchet bench coverage`."""

from __future__ import annotations

import numpy as np
import pytest

from data.statistics import finite, in_brackets, mean_interval, share_interval, t_interval
from tests import bench_coverage as bench
from tests.bench_coverage import Case


@pytest.mark.parametrize(
    ("case", "n"),
    [
        (bench.finished(0.99), 50),  # Student's t: 40%
        (bench.accuracy(0.99), 50),  # Wilson: 91%
        (bench.finished_of_four(0.5, 0.5), 100),  # over completions instead of prompts: 78%
        (bench.pass_at(4, 2.97, 0.03), 50),  # Student's t: 3%
        (bench.pass_at(1, 0.3, 0.3), 50),
        (bench.mean_tokens(1.0), 32),  # Student's t: 88%, too near to be told apart by 150 draws; test_a_skewed_mean does
        (bench.gain(1.0), 200),  # told beyond two standard errors alone: in 17% of campaigns, and .40 on average
        (bench.pressure_of_rate(0.01), 50),
        (bench.seeds(5), 5),
    ],
    ids=lambda value: f"{value.number}, {value.world}" if isinstance(value, Case) else str(value),
)
def test_intervals_hold_the_truth(case: Case, n: int) -> None:
    # 95% intervals hold it in at least the promised share of 150 draws, less two standard errors of so many draws
    assert bench.covered(case, n, 150) >= case.promise - 2 * np.sqrt(0.05 * 0.95 / 150)


def test_the_list_has_every_case() -> None:
    # each number on the list is measured, and each number measured is on it
    assert {case.number for case in bench.cases()} == bench.SHOWN.keys()


@pytest.mark.parametrize("values", [[1.8], [1.8, 1.8, 1.8], [0.1 + 0.2, 0.3], []])
def test_equal_values_are_no_certainty(values: list[float]) -> None:
    # one value, or values that differ by rounding alone: no interval, said as such, and null in a table
    for ends in (t_interval(np.array(values)), mean_interval(np.array(values))):
        assert in_brackets(ends) == "[no interval: too few or equal values]"
        assert [finite(end) for end in ends] == [None, None]
    assert in_brackets(t_interval(np.array([1.7, 1.8, 1.9]))) == "[+1.6, +2.0]"


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", [1, 3, 200])
def test_a_share_always_has_a_width_within_its_bounds(value: float, n: int) -> None:
    # equal values of 0, 1 or between: a width that shrinks with n, and never an end beyond 0 and 1, or the bounds given
    low, high = share_interval(np.full(n, value))
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0.5 / n
    assert high - low < 4 / n or n < 4
    wide = share_interval(np.full(n, 10 * value - 5), -5.0, 5.0)
    assert wide == pytest.approx((10 * low - 5, 10 * high - 5))


def test_a_skewed_mean_has_a_longer_upper_side() -> None:
    # lengths: the interval reaches further up than down, covers Student's, and equals it where values are symmetric
    values = np.random.default_rng(1).lognormal(5, 1, 64)
    low, high = mean_interval(values)
    plain = t_interval(values)
    assert high - values.mean() > 1.2 * (values.mean() - low)
    assert low <= plain[0]
    assert high >= plain[1]
    even = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    assert mean_interval(even) == pytest.approx(t_interval(even))
