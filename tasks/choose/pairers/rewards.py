"""Pairers by verdict or reward: right against wrong, high against low, most against least voted."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Ge, Gt, Le, MinLen

from data.rows.completions import Row, Values, by_prompt, finished, unique_texts, verifier
from tasks.choose.pairers import pair_row
from tasks.choose.selectors.best import accepted

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
        right = unique_texts(row for row in rows if finished(row) and verdict.get(row["completion_id"]) == 1.0)
        wrong = unique_texts((row for row in rows if verdict.get(row["completion_id"]) == 0.0), besides=right)
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
        if best is None or (verdict.get(best[1]["completion_id"]) == 0.0 and not allow_wrong_chosen):
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
        candidates = [r for r in known if finished(r) and (allow_wrong_chosen or verdict.get(r["completion_id"]) != 0.0)]
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

    RSO, https://arxiv.org/abs/2309.06657: the pairs follow the policy tilted by exp(reward / beta), not the sampler (there 8
    accepted of 64, ranked in one round). Verdicts are not used; facts.json counts wrong chosen ones.
    """
    pairs = []
    for rows in accepted(completions, reward, beta, count).values():
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

    So the pair differs from the first wrong step on. The shared steps cancel in DPO's margin, token by token, as if they were
    part of the prompt. `separator` ends a step. Step-DPO, https://arxiv.org/abs/2406.18629, here with the rest of both texts.
    """
    verdict, pairs = verifier(scores), []
    for rows in by_prompt(completions).values():
        right = unique_texts(row for row in rows if finished(row) and verdict.get(row["completion_id"]) == 1.0)
        wrong = unique_texts((row for row in rows if verdict.get(row["completion_id"]) == 0.0), besides=right)
        pairs_of_prompt = []
        for row in wrong:
            shared, best = max(((_shared(row, r, separator), r) for r in right), key=lambda pair: pair[0], default=(0, row))
            pairs_of_prompt += [pair_row(best, row, reward)] if shared else []
        pairs += pairs_of_prompt[: cap or None]
    return pairs


def _shared(a: Row, b: Row, separator: str) -> int:
    """How many whole steps two texts have in common at their start."""
    steps = zip(a["text"].split(separator)[:-1], b["text"].split(separator)[:-1], strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], steps))
