"""Which cell of a sweep is the best, and how good it is once it is taken into account that it was picked.

The best of several cells is partly the luckiest: of 9 equally good cells on 200 prompts it shows 4 points too many.

- Its **gain** over checkpoint 0 gets an interval at level 1 - 0.05 / m, for m checkpoints that could have been picked
  (Bonferroni). So it covers at least 95% however the pick is made: among cells, and among the rounds of a cell.
- The **estimate** of the gain comes from halves: a cell is picked on one half of the prompts and measured on the other, over
  HALVES random splits. Picking cannot flatter it, since the other half took no part. It is the gain of picking by half as many
  prompts, so it is rather low than high.
- A cell **cannot be told from the best** unless the exact test of the two is significant after Holm's correction over all pairs
  of cells. All pairs count, since the best was picked after looking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.statistics import LEVEL, holm
from tasks.evaluate.paired_shares import shares_interval

HALVES = 200  # random splits; the estimate's own noise is then far below that of the prompts


@dataclass(frozen=True)
class Cell:
    """A campaign of a sweep: whether its champion and its checkpoint 0 answer each held-out prompt right (1.0) or not."""

    name: str
    champion: Mapping[str, float]  # by prompt id
    base: Mapping[str, float]


@dataclass(frozen=True)
class Standing:
    """A cell compared. All numbers are shares of prompts."""

    name: str
    accuracy: float
    gain: float  # over checkpoint 0, as measured
    low: float  # of the gain, corrected for the pick
    high: float
    like_best: bool  # it is the best, or cannot be told from it


@dataclass(frozen=True)
class Choice:
    """The best cell and all standings, in the order of the cells."""

    best: str
    gain: float  # of the best, estimated on prompts that took no part in picking it
    candidates: int
    standings: tuple[Standing, ...]


def choose_cell(cells: Sequence[Cell], candidates: int) -> Choice | None:
    """The cell whose champion has the highest held-out accuracy, the first of equal ones. None if nothing can be compared.

    Args:
        candidates: how many checkpoints the sweep measured on held-out, those of round 0 left out; at least the cells.
    """
    if not cells or not all(cell.champion.keys() & cell.base.keys() for cell in cells):
        return None
    right, base, asked = _table(cells)
    n = asked.sum(1)
    accuracy, best = right.sum(1) / n, int((right.sum(1) / n).argmax())
    gains = [(right[i] - base[i])[asked[i] > 0] for i in range(len(cells))]
    level, like = 1 - (1 - LEVEL) / max(candidates, len(cells)), _like_best(right, asked, best)
    standings = tuple(
        Standing(c.name, float(accuracy[i]), float(gains[i].mean()), *shares_interval(gains[i], level), like[i])
        for i, c in enumerate(cells)
    )
    return Choice(cells[best].name, _gain_on_other_half(right, base, asked), candidates, standings)


def _table(cells: Sequence[Cell]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right answers of champions and of checkpoints 0, and which prompts were asked: cells x prompts, 0 or 1.

    Cells may have other prompts, e.g. if the seed is swept.
    """
    prompts = sorted({prompt for cell in cells for prompt in cell.champion.keys() & cell.base.keys()})
    asked = np.array([[float(p in c.champion and p in c.base) for p in prompts] for c in cells])
    right, base = (
        np.array([[answers.get(p, 0.0) for p in prompts] for answers in each])
        for each in ([c.champion for c in cells], [c.base for c in cells])
    )
    return right * asked, base * asked, asked


def _gain_on_other_half(right: np.ndarray, base: np.ndarray, asked: np.ndarray) -> float:
    """Mean gain of the cell picked on a random half of the prompts, measured on the other half, over HALVES splits both ways.

    A prompt is in the same half for all cells, so that pairs stay pairs.
    """
    order = np.random.default_rng(0).random((HALVES, right.shape[1])).argsort(1)
    first = order < right.shape[1] // 2
    halves = np.concatenate([first, ~first]).astype(float)
    others = 1 - halves
    with np.errstate(invalid="ignore", divide="ignore"):  # a cell without a prompt in a half
        accuracy, gain = (halves @ right.T) / (halves @ asked.T), (others @ (right - base).T) / (others @ asked.T)
    picked = np.nan_to_num(accuracy, nan=-1.0).argmax(1)
    return float(np.nanmean(gain[np.arange(len(picked)), picked]))


def _like_best(right: np.ndarray, asked: np.ndarray, best: int) -> list[bool]:
    """Which cells are the best, or cannot be told from it."""
    from scipy.stats import binom

    first, second = np.triu_indices(len(right), 1)
    wins, losses = (right @ (asked - right).T)[first, second], ((asked - right) @ right.T)[first, second]
    p_values = np.minimum(1.0, 2 * binom.cdf(np.minimum(wins, losses), wins + losses, 0.5))  # McNemar's exact test
    for place in np.flatnonzero((asked @ asked.T)[first, second] == 0):
        p_values[place] = _unpaired(right, asked, int(first[place]), int(second[place]))
    sure = np.array(holm(p_values.tolist())) < 1 - LEVEL
    worse = {*first[sure & (second == best)].tolist(), *second[sure & (first == best)].tolist()}
    return [place not in worse for place in range(len(right))]


def _unpaired(right: np.ndarray, asked: np.ndarray, i: int, j: int) -> float:
    """The p value that two cells without a common prompt are equally good, by Fisher's exact test."""
    from scipy.stats import fisher_exact

    return float(fisher_exact([[right[c].sum(), (asked[c] - right[c]).sum()] for c in (i, j)]).pvalue)
