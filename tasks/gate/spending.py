"""How much error a round's gate may make, so that a whole campaign makes little; and how small a change it can detect.

The promise: where no checkpoint is better or worse than another, at most 5% of campaigns promote one, and at most 5% roll one
back, whatever their number of rounds. `./ratchet bench gate` plays such campaigns.

A campaign has an error to spend on promotions and one on roll-backs. Each round spends an equal share of what is left. The
shares are counted as if one round more were to come, and a fork that adds rounds goes on with that one. Errors add up at most
(Bonferroni), so the promise holds however the rounds depend on one another.

Measured before choosing, 500 to 600 campaigns each:
- shares of 1 / (k (k + 1)): half is spent in round 1, a lucky checkpoint is crowned early, and the rounds after it look worse
  than it. 6.0% of null campaigns of 20 rounds and 200 prompts rolled back; equal shares of the same 5%: 5.2%. So half of it.
- 2.5% for promotions: a gain of 5 points is found at once in 81% of cases, with 5% in 87% (500 prompts, 3 rounds).
- the interval that is shown as the test, instead of the exact one: finds +2 points in 14% of campaigns instead of 19% (200
  prompts, 10 rounds).
- giving the share of a promotion back to later rounds: no difference that could be measured, and more to explain.
- an anytime-valid sequence is for one comparison whose data grow. Here data stay, and each round compares anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

FACT = "gate"  # name of the fact of a Round that says what it spent
POWER = 0.8
NORMAL = NormalDist()


@dataclass(frozen=True)
class Error:
    """Chances of a wrong decision where checkpoints are equal: of a promotion, and of a roll-back."""

    promote: float
    roll_back: float


# A checkpoint crowned by luck looks better than it is, so equal ones look worse than it. Half of the 5% is kept for that.
OF_A_CAMPAIGN = Error(promote=0.05, roll_back=0.025)


def error_of_round(rounds: int, facts: Sequence[Mapping[str, Any]]) -> Error:
    """What the next round may spend.

    Args:
        rounds: of the campaign.
        facts: of its rounds so far, round 0 among them; of a fork also those of the rounds that it shares.
    """
    before = [Error(**past[FACT]["spent"]) for past in facts if FACT in past]
    shares = max(1, rounds + 1 - len(facts)) + 1
    return Error(
        promote=(OF_A_CAMPAIGN.promote - sum(e.promote for e in before)) / shares,
        roll_back=(OF_A_CAMPAIGN.roll_back - sum(e.roll_back for e in before)) / shares,
    )


def spent(error: Error, **found: Any) -> dict[str, Any]:
    """The fact of a Round: the error that it spent, and what else its gate found."""
    return {FACT: {"spent": asdict(error), **found}}


# -- how much can be seen --------------------------------------------------------------------------------------------------
def smallest_difference(spread: float, prompts: int, error: float) -> float:
    """The smallest true difference that a test finds in 80% of cases: (z(1 - error) + z(0.8)) spread / sqrt(prompts).

    Args:
        spread: standard deviation over prompts of the difference in the share of right answers. It counts as at least that of
            one prompt won, since a round in which no prompt differs does not prove that none can.
        error: chance of a wrong decision in the direction of the difference.
    """
    spread = max(spread, 1 / sqrt(prompts))
    return (_z(error) + NORMAL.inv_cdf(POWER)) * spread / sqrt(prompts)


def expected_spread(samples: int) -> float:
    """The spread before anything is measured: what changes between checkpoints, and the noise of 1 + samples answers.

    Campaigns on the tiny world had .24 to .32 with one answer and .20 to .29 with three. The formula gives .33 and .28.
    """
    return sqrt(0.064 + 0.045 / (1 + samples))


def gain_to_count_on(difference: float, spread: float, prompts: int, error: Error) -> float:
    """The lower end of the one-sided interval whose error is the round's; at least 0, since it is asked after a promotion."""
    return max(0.0, difference - _z(error.promote) * spread / sqrt(prompts))


def _z(error: float) -> float:
    """The standard normal's upper quantile."""
    return NORMAL.inv_cdf(1 - error)
