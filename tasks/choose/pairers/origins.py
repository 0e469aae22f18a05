"""Pairers by the origin of completions. They need the recipe's `[pool]`.

`origins` is by completion_id: "policy", "given", "base", "earlier" or "contrast".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Ge

from data.rows.completions import Row, Values, by_prompt, finished, is_wrong, unique_texts, verifier
from tasks.choose.pairers import pair_row

USES_GOLD = ("prompt_contrast", "best_vs_base")  # unless allow_wrong_chosen
IGNORES_REWARD = ("given_vs_sample", "prompt_contrast")
VERSIONS = {
    "given_vs_sample": 2,
    "prompt_contrast": 2,  # 2: partial credit is wrong
    "best_vs_base": 2,  # 2: as prompt_contrast
}

Origins = Mapping[str, str]


def given_vs_sample(
    completions: Sequence[Row],
    reward: Values,
    scores: Mapping[str, Values],
    *,
    cap: Annotated[int, Ge(0)] = 1,
    origins: Origins,
) -> list[Row]:
    """The given answer against the policy's own samples, right or not, each text once, up to `cap` a prompt (0 = no cap).

    Needs pool.given. With pool.earlier, samples of earlier rounds follow those of this round. SPIN,
    https://arxiv.org/abs/2401.01335 (one sample per prompt; its iterations train on the samples of two rounds).
    """
    return _across(completions, reward, origins, ("given",), ("policy", "earlier"), cap)


def prompt_contrast(
    completions: Sequence[Row],
    reward: Values,
    scores: Mapping[str, Values],
    *,
    cap: Annotated[int, Ge(0)] = 1,
    allow_wrong_chosen: bool = False,
    origins: Origins,
) -> list[Row]:
    """Completions of the prompt against those of the contrasting prompt, each text once a side, up to `cap` a prompt.

    RLCD, https://arxiv.org/abs/2307.12950. The label comes from the prompts alone, so the chosen completion may be wrong. A
    completion that the verifier calls wrong is chosen only with `allow_wrong_chosen`, or where `gold` keeps verdicts out of
    training. Needs pool.contrast.
    """
    verdict = verifier(scores)
    wrong = {key for key, value in verdict.items() if is_wrong(value) and not allow_wrong_chosen}
    return _across(completions, reward, origins, ("policy",), ("contrast",), cap, wrong)


def best_vs_base(
    completions: Sequence[Row],
    reward: Values,
    scores: Mapping[str, Values],
    *,
    allow_wrong_chosen: bool = False,
    origins: Origins,
) -> list[Row]:
    """The policy's best sample against the worst of checkpoint 0's, if its reward is higher; ties give no pair.

    A best sample that the verifier calls wrong gives no pair, but with `allow_wrong_chosen` or where `gold` keeps verdicts out
    of training. The two still differ when the policy's own samples become alike: Temporal Self-Rewarding's anchored rejection,
    https://arxiv.org/abs/2508.06026. Needs pool.base.
    """
    verdict, pairs = verifier(scores), []
    for rows in by_prompt(completions).values():
        known = [(value, row) for row in rows if (value := reward.get(row["completion_id"])) is not None]
        own = [pair for pair in known if origins[pair[1]["completion_id"]] == "policy" and finished(pair[1])]
        base = [pair for pair in known if origins[pair[1]["completion_id"]] == "base"]
        best = max(own, key=lambda pair: pair[0], default=None)
        worst = min(base, key=lambda pair: pair[0], default=None)
        if best is None or worst is None or best[0] <= worst[0] or best[1]["text"] == worst[1]["text"]:
            continue
        if allow_wrong_chosen or not is_wrong(verdict.get(best[1]["completion_id"])):
            pairs.append(pair_row(best[1], worst[1], reward))
    return pairs


def _across(
    completions: Sequence[Row],
    reward: Values,
    origins: Origins,
    chosen: Sequence[str],
    rejected: Sequence[str],
    cap: int,
    never_chosen: frozenset[str] | set[str] = frozenset(),
) -> list[Row]:
    """Pairs between two groups of origins. Each side is in the order of origins, then samples; the shorter repeats."""
    pairs = []
    for rows in by_prompt(completions).values():
        high, low = (
            [row for name in side for row in rows if origins[row["completion_id"]] == name] for side in (chosen, rejected)
        )
        high = unique_texts(row for row in high if finished(row) and row["completion_id"] not in never_chosen)
        low = unique_texts(low, besides=high)
        count = max(len(high), len(low)) if high and low else 0
        pairs += [pair_row(high[i % len(high)], low[i % len(low)], reward) for i in range(min(count, cap or count))]
    return pairs
