"""The best cell of a sweep: what is said of it stays true although it was picked."""

from __future__ import annotations

import numpy as np

from data.statistics import t_interval
from tasks.evaluate.best_cell import Cell, choose_cell

REPETITIONS = 200  # decided beforehand: the standard error of a coverage of 95% is 1.5 points


def draw(rng: np.random.Generator, n: int, cells: int, lift: np.ndarray | float = 0.0) -> list[Cell]:
    """Cells whose champions solve each prompt with the chance of checkpoint 0, or `lift` more."""
    ease = rng.beta(1, 1, n) * 0.8
    base = dict(enumerate((rng.random(n) < ease).astype(float)))
    lifts = np.broadcast_to(lift, cells)
    return [
        Cell(
            str(i),
            {str(p): float(v) for p, v in enumerate(rng.random(n) < ease + lifts[i])},
            {str(p): v for p, v in base.items()},
        )
        for i in range(cells)
    ]


def test_the_interval_of_the_best_cell_covers_and_its_estimate_is_not_flattered() -> None:
    # Claim: for equally good cells the corrected interval covers the true gain (0) in 95% of sweeps or more, where the plain
    # interval of the best does not, and the estimate is 0 on average where the best shows points that it does not have.
    rng, cells, n = np.random.default_rng(1), 9, 100
    covers, plain, shown, estimated = [], [], [], []
    for _ in range(REPETITIONS):
        drawn = draw(rng, n, cells)
        choice = choose_cell(drawn, cells)
        assert choice is not None
        best = next(s for s in choice.standings if s.name == choice.best)
        covers.append(best.low <= 0 <= best.high)
        picked = drawn[int(choice.best)]
        low, high = t_interval(np.array([picked.champion[p] - picked.base[p] for p in picked.base]))
        plain.append(low <= 0 <= high)
        shown.append(best.gain)
        estimated.append(choice.gain)
    noise = np.std(estimated) / REPETITIONS**0.5
    assert np.mean(covers) >= 0.95 - 2 * 0.015
    assert np.mean(plain) < np.mean(covers) - 0.05
    assert abs(np.mean(estimated)) < 3 * noise
    assert np.mean(shown) > 10 * noise


def test_a_planted_best_cell_is_found_and_its_gain_is_right() -> None:
    # Claim: the correction costs no truth: a cell that is 15 points better is picked, its interval covers 15 points and not 0,
    # and the estimate is 15 points within its noise.
    rng, estimates, found, covers = np.random.default_rng(2), [], [], []
    for _ in range(40):
        choice = choose_cell(draw(rng, 400, 6, np.array([0, 0, 0.15, 0, 0, 0])), 18)
        assert choice is not None
        best = next(s for s in choice.standings if s.name == choice.best)
        estimates.append(choice.gain)
        found.append(choice.best == "2" and best.low > 0)
        covers.append(best.low <= 0.15 <= best.high)
    assert np.mean(found) >= 0.85
    assert np.mean(covers) >= 0.95
    assert abs(np.mean(estimates) - 0.15) < 3 * np.std(estimates) / 40**0.5


def test_equal_cells_are_rarely_told_apart_and_unequal_ones_are() -> None:
    # Claim: among equal cells at most 5% of sweeps say of any cell that it is surely worse than the best; a cell that is 25
    # points worse is said to be.
    rng, wrong, found = np.random.default_rng(3), 0, 0
    for _ in range(REPETITIONS):
        equal = choose_cell(draw(rng, 150, 8), 8)
        assert equal is not None
        wrong += not all(s.like_best for s in equal.standings)
    for _ in range(20):
        unequal = choose_cell(draw(rng, 300, 4, np.array([0.0, 0.2, 0.2, 0.2])), 4)
        assert unequal is not None
        found += not unequal.standings[0].like_best
    assert wrong / REPETITIONS <= 0.05 + 2 * 0.015
    assert found >= 18


def test_cells_with_other_prompts_are_compared_too() -> None:
    # Claim: a sweep over seeds has other held-out prompts in each cell: gains are within the cell, cells are compared unpaired.
    rng = np.random.default_rng(4)
    first, second = draw(rng, 200, 1, 0.2)[0], draw(rng, 200, 1)[0]
    apart = Cell("other", *({f"x{p}": v for p, v in answers.items()} for answers in (second.champion, second.base)))
    choice = choose_cell([first, apart], 2)
    assert choice is not None
    assert choice.best == "0"
    assert abs(choice.gain - 0.2) < 0.1


def test_without_verdicts_nothing_is_chosen() -> None:
    # Claim: where no prompt has an answer to verify, no cell is the best.
    assert choose_cell([Cell("a", {}, {}), Cell("b", {}, {})], 2) is None
    assert choose_cell([], 0) is None
