"""Pairers by verdict or reward: right against wrong, high against low, most against least voted."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Ge, Gt, Le, MinLen

from data.rows.completions import Row, Values, by_prompt, finished, is_right, is_wrong, unique_texts, verifier
from tasks.choose.pairers import pair_row
from tasks.choose.selectors.best import acceptance, accepted

VERSIONS = {
    "right_vs_wrong": 2,  # 2: a verdict above 1.0 is right too, partial credit is wrong
    "best_vs_worst": 2,  # 2: as right_vs_wrong
    "all_over_margin": 2,  # 2: as right_vs_wrong
    "rejection_sampled": 2,  # 2: one pass, so that the accepted follow the tilted policy
    "longest_shared_prefix": 2,  # 2: no pair parts where only the wording differs; right and wrong as right_vs_wrong
}
FACTS = {"rejection_sampled": acceptance}

NUMBER, WORD = re.compile(r"\d+(?:[.,]\d+)*"), re.compile(r"\w+")

NEEDS_GOLD = IGNORES_REWARD = ("right_vs_wrong", "longest_shared_prefix")
USES_GOLD = ("best_vs_worst", "all_over_margin")  # unless allow_wrong_chosen


def right_vs_wrong(
    completions: Sequence[Row], reward: Values, scores: Mapping[str, Values], *, cap: Annotated[int, Ge(0)] = 4
) -> list[Row]:
    """Verified right against verified wrong, each text once a side, up to `cap` pairs per prompt (0 = no cap).

    Both sides are read in sample order, and the shorter one repeats. So every pair is new, and no completion is used twice
    before all of its side are used once. Margin: difference of the rewards, 1.0 if one is unknown.
    Iterative RPO, https://arxiv.org/abs/2404.19733 (there up to 10 pairs per prompt).
    """
    verdict, pairs = verifier(scores), []
    for rows in by_prompt(completions).values():
        right = unique_texts(row for row in rows if finished(row) and is_right(verdict.get(row["completion_id"])))
        wrong = unique_texts((row for row in rows if is_wrong(verdict.get(row["completion_id"]))), besides=right)
        count = max(len(right), len(wrong)) if right and wrong else 0
        pairs += [pair_row(right[i % len(right)], wrong[i % len(wrong)], reward) for i in range(min(count, cap or count))]
    return pairs


def best_vs_worst(
    completions: Sequence[Row],
    reward: Values,
    scores: Mapping[str, Values],
    *,
    minimum_margin: Annotated[float, Ge(0)] = 0.0,
    allow_wrong_chosen: bool = False,
) -> list[Row]:
    """The highest against the lowest reward of every prompt, the first sample of those that tie; equal rewards give no pair.

    A prompt whose best completion the verifier calls wrong gives no pair: a prompt that was never solved would teach a wrong
    answer. `allow_wrong_chosen` allows it, and so does a `gold` that keeps verdicts out of training. Margin: difference of the
    rewards.
    Online DPO with max_min, https://arxiv.org/abs/2405.07863; https://github.com/RLHFlow/Online-DPO-R1.
    """
    verdict, pairs = verifier(scores), []
    for rows in by_prompt(completions).values():
        known = [(value, row) for row in rows if (value := reward.get(row["completion_id"])) is not None]
        best = max((pair for pair in known if finished(pair[1])), key=lambda pair: pair[0], default=None)
        if best is None or (is_wrong(verdict.get(best[1]["completion_id"])) and not allow_wrong_chosen):
            continue
        lower = [pair for pair in known if pair[0] < best[0] and pair[1]["text"] != best[1]["text"]]
        worst = min(lower, key=lambda pair: pair[0], default=None)  # max and min keep the first of equals
        if worst and best[0] - worst[0] >= minimum_margin:
            pairs.append(pair_row(best[1], worst[1], reward))
    return pairs


def all_over_margin(
    completions: Sequence[Row],
    reward: Values,
    scores: Mapping[str, Values],
    *,
    minimum_margin: Annotated[float, Gt(0)],
    cap: Annotated[int, Ge(0)] = 0,
    allow_wrong_chosen: bool = False,
) -> list[Row]:
    """Every two completions of a prompt whose rewards differ by at least `minimum_margin`, the widest first, up to `cap`.

    Each text counts once, with its first sample's reward. A completion that the verifier calls wrong is chosen only with
    `allow_wrong_chosen`, or where `gold` keeps verdicts out of training.
    All pairs of a ranking as InstructGPT does (https://arxiv.org/abs/2203.02155), large margins only as DNO does
    (https://arxiv.org/abs/2404.03715).
    """
    verdict, pairs = verifier(scores), []
    for rows in by_prompt(completions).values():
        known = unique_texts(row for row in rows if reward.get(row["completion_id"]) is not None)
        candidates = [r for r in known if finished(r) and (allow_wrong_chosen or not is_wrong(verdict.get(r["completion_id"])))]
        all_pairs = [pair_row(a, b, reward) for a in candidates for b in known if a is not b]
        wide = [pair for pair in all_pairs if pair["margin"] >= minimum_margin]
        pairs += sorted(wide, key=lambda pair: -pair["margin"])[: cap or None]
    return pairs


def most_vs_least_voted(
    completions: Sequence[Row],
    reward: Values,
    scores: Mapping[str, Values],
    *,
    minimum_votes: Annotated[float, Gt(0), Le(1)] = 0.5,
) -> list[Row]:
    """The most voted answer's first sample against the least voted one's, if the former has `minimum_votes` of the samples.

    For a reward that is `votes` alone. Verdicts are not used (there may be none); facts.json counts wrong chosen ones. The
    pair's weight is its vote margin, as in ScPO, https://arxiv.org/abs/2411.04109; equal votes give no pair.
    """
    pairs = []
    for rows in by_prompt(completions).values():
        known = [(value, row) for row in rows if finished(row) and (value := reward.get(row["completion_id"])) is not None]
        most = max(known, key=lambda pair: pair[0], default=None)
        least = min(known, key=lambda pair: pair[0], default=None)
        if most and least and most[0] >= minimum_votes and most[0] > least[0] and most[1]["text"] != least[1]["text"]:
            pairs.append(pair_row(most[1], least[1], reward, weight=most[0] - least[0]))
    return pairs


def rejection_sampled(
    completions: Sequence[Row],
    reward: Values,
    scores: Mapping[str, Values],
    *,
    beta: Annotated[float, Gt(0)],
    count: Annotated[int, Ge(2)] = 8,
) -> list[Row]:
    """Neighbours among the completions that rejection sampling accepts, the one with the higher reward chosen; ties give none.

    RSO, https://arxiv.org/abs/2309.06657: both sides of a pair follow the policy tilted by exp(reward / beta), not the sampler
    (there beta 0.5, 8 accepted of 64, first-round ranking). Verdicts are not used; facts.json counts wrong chosen ones and has
    the acceptance rate.
    """
    pairs = []
    for passed in accepted(completions, reward, beta).values():
        rows = passed[:count]
        for one, other in zip(rows[::2], rows[1::2], strict=False):
            better, worse = sorted((one, other), key=lambda row: -(reward[row["completion_id"]] or 0.0))
            pair = pair_row(better, worse, reward)
            pairs += [pair] if pair["margin"] > 0 and better["text"] != worse["text"] else []
    return pairs


def longest_shared_prefix(
    completions: Sequence[Row],
    reward: Values,
    scores: Mapping[str, Values],
    *,
    separator: Annotated[str, MinLen(1)] = "\n",
    cap: Annotated[int, Ge(0)] = 4,
) -> list[Row]:
    """Every verified wrong completion against the right one that shares the most of its first steps, at least one.

    The shared steps cancel in DPO's margin, token by token, as if they were part of the prompt. `separator` ends a step. A pair
    parts where the two say something else, not where only the wording differs: the numbers of the step differ, or its words if
    it has none. So the less steps are worded alike, the fewer pairs there are.
    Step-DPO, https://arxiv.org/abs/2406.18629, here with the rest of both texts. There a judge finds the first wrong step. A
    verdict is about the whole text, so a pair can part before the error, where right solutions take several ways.
    """
    verdict, pairs = verifier(scores), []
    for rows in by_prompt(completions).values():
        right = unique_texts(row for row in rows if finished(row) and is_right(verdict.get(row["completion_id"])))
        wrong = unique_texts((row for row in rows if is_wrong(verdict.get(row["completion_id"]))), besides=right)
        pairs_of_prompt = []
        for row in wrong:
            shared, best = max(((_shared(row, r, separator), r) for r in right), key=lambda pair: pair[0], default=(0, row))
            pairs_of_prompt += [pair_row(best, row, reward)] if shared else []
        pairs += pairs_of_prompt[: cap or None]
    return pairs


def _shared(a: Row, b: Row, separator: str) -> int:
    """How many whole steps two texts have in common at their start; 0 if the next step differs only in its wording."""
    one, other = a["text"].split(separator), b["text"].split(separator)
    steps = zip(one[:-1], other[:-1], strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], steps))
    reworded = one[shared] != other[shared] and _said(one[shared]) == _said(other[shared])
    return 0 if reworded else shared


def _said(step: str) -> frozenset[str] | str:
    """What a step says, without its wording: the numbers in it; without numbers its words in lower case."""
    numbers = frozenset(number.replace(",", "") for number in NUMBER.findall(step))
    return numbers or " ".join(WORD.findall(step.casefold()))
