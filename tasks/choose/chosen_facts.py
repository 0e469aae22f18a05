"""Facts about a selection or a set of pairs, for facts.json: counts, lengths, faults. Null if unknown, never NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set

from data.rows.completions import Row, Values, by_prompt, finished, is_right, is_wrong, unique_texts, verifier

NONE: Set[str] = frozenset()


def pair_facts(
    pairs: Sequence[Row], completions: Sequence[Row], reward: Values, scores: Mapping[str, Values], too_long: Set[str] = NONE
) -> Row:
    """Facts about PAIRS rows. Gaps are chosen minus rejected, in `length_unit`: tokens, or characters if no tokens are known.

    `mean_reward` is of all completions with a reward, `mean_chosen_reward` of the chosen sides: what choosing gains.
    `too_long` are the ids of completions that were not offered, because training could not read them.

    Raises:
        KeyError: a pair names a completion that `completions` does not contain.
    """
    row_of = {row["completion_id"]: row for row in completions}
    chosen = [row_of[pair["chosen_id"]] for pair in pairs]
    rejected = [row_of[pair["rejected_id"]] for pair in pairs]
    both = list(zip(chosen, rejected, strict=True))
    without = _without(pairs, completions)
    texts = {(c["prompt_id"], c["text"], r["text"]) for c, r in both}
    gaps, unit = _gaps([([c], [r]) for c, r in both])
    return {
        "pairs": len(pairs),
        **_prompts(pairs, completions, "pairs"),
        "too_long": len(too_long),
        "prompts_without": _reasons(without, reward, scores, too_long),
        "ties_skipped": sum(_tied(rows, reward) for rows in without),
        "duplicate_pairs": len(pairs) - len(texts),
        "identical_texts": sum(c["text"] == r["text"] for c, r in both),
        "wrong_chosen": _count(chosen, verifier(scores), is_wrong),
        "right_rejected": _count(rejected, verifier(scores), is_right),
        "truncated_chosen": sum(not finished(row) for row in chosen),
        "truncated_rejected": sum(not finished(row) for row in rejected),
        "mean_chosen_tokens": _mean(map(_tokens, chosen)),
        "mean_rejected_tokens": _mean(map(_tokens, rejected)),
        "length_gap": _mean(gaps),
        "length_unit": unit,
        "chosen_longer_share": _mean(gap > 0 for gap in gaps),
        "mean_chosen_reward": _mean(_known(chosen, reward)),
        "mean_rejected_reward": _mean(_known(rejected, reward)),
        "mean_reward": _mean(_known(completions, reward)),
    }


def selection_facts(
    selected: Sequence[Row], completions: Sequence[Row], reward: Values, scores: Mapping[str, Values], too_long: Set[str] = NONE
) -> Row:
    """Facts about SELECTED rows. `too_long` is as in `pair_facts`.

    `length_gap` is the mean length of the selected completions minus that of the rest, averaged over prompts that have both. It
    is in `length_unit`: tokens, or characters if no tokens are known.
    `mean_reward` is of all completions with a reward, `mean_selected_reward` of the selected ones: what choosing gains.

    Raises:
        KeyError: a row names a completion that `completions` does not contain.
    """
    row_of = {row["completion_id"]: row for row in completions}
    chosen = [row_of[row["completion_id"]] for row in selected]
    ids = {row["completion_id"] for row in chosen}
    rest = [row for row in completions if row["completion_id"] not in ids]
    chosen_of_prompt, rest_of_prompt = by_prompt(chosen), by_prompt(rest)

    gaps, unit = _gaps([(rows, rest_of_prompt[p]) for p, rows in chosen_of_prompt.items() if p in rest_of_prompt])
    return {
        "rows": len(selected),
        **_prompts(selected, completions, "rows"),
        "too_long": len(too_long),
        "prompts_without": _reasons(_without(selected, completions), reward, scores, too_long),
        "duplicates": len(chosen) - sum(len(unique_texts(rows)) for rows in chosen_of_prompt.values()),
        "wrong_selected": _count(chosen, verifier(scores), is_wrong),
        "truncated_selected": sum(not finished(row) for row in chosen),
        "mean_rows_per_prompt": _mean(map(len, chosen_of_prompt.values())),
        "mean_selected_tokens": _mean(map(_tokens, chosen)),
        "mean_other_tokens": _mean(map(_tokens, rest)),
        "length_gap": _mean(gaps),
        "length_unit": unit,
        "selected_share": len(ids) / len(completions) if completions else None,
        "mean_selected_reward": _mean(_known(chosen, reward)),
        "mean_reward": _mean(_known(completions, reward)),
    }


def _prompts(chosen: Sequence[Row], completions: Sequence[Row], unit: str) -> dict[str, int]:
    return {
        "prompts": len({row["prompt_id"] for row in completions}),
        f"prompts_with_{unit}": len({row["prompt_id"] for row in chosen}),
    }


def _without(chosen: Sequence[Row], completions: Sequence[Row]) -> list[list[Row]]:
    """The completions of each prompt from which nothing was chosen."""
    prompts_with = {row["prompt_id"] for row in chosen}
    return [rows for prompt, rows in by_prompt(completions).items() if prompt not in prompts_with]


def _reasons(
    prompts: Sequence[Sequence[Row]], reward: Values, scores: Mapping[str, Values], too_long: Set[str]
) -> dict[str, int]:
    """Why nothing was chosen, counted over prompts; the first reason that holds. "too long" holds if a completion is."""
    reasons = dict.fromkeys(("all right", "all wrong", "no score", "tied", "too long", "other"), 0)
    for rows in prompts:
        verdicts = set(map(is_right, _known(rows, verifier(scores))))
        if not verdicts and not _known(rows, reward):
            reasons["no score"] += 1
        elif len(verdicts) == 1:
            reasons["all right" if verdicts == {True} else "all wrong"] += 1
        else:
            long = any(row["completion_id"] in too_long for row in rows)
            reasons["tied" if _tied(rows, reward) else "too long" if long else "other"] += 1
    return reasons


def _tied(rows: Sequence[Row], reward: Values) -> bool:
    rewards = _known(rows, reward)
    return len(rewards) > 1 and len(set(rewards)) == 1


def _known(rows: Iterable[Row], values: Values) -> list[float]:
    return [value for row in rows if (value := values.get(row["completion_id"])) is not None]


def _count(rows: Iterable[Row], values: Values, has: Callable[[float | None], bool]) -> int:
    return sum(has(values.get(row["completion_id"])) for row in rows)


def _tokens(row: Row) -> int | None:
    return None if row["token_ids"] is None else len(row["token_ids"])


def _characters(row: Row) -> int:
    return len(row["text"])


def _gaps(sides: Sequence[tuple[Sequence[Row], Sequence[Row]]]) -> tuple[list[float], str | None]:
    """Mean length of the first side minus that of the second, where both are known, and the unit; no unit without a gap."""
    for unit, length in (("tokens", _tokens), ("characters", _characters)):
        means = [(_mean(map(length, one)), _mean(map(length, other))) for one, other in sides]
        known = [one - other for one, other in means if one is not None and other is not None]
        if known:
            return known, unit
    return [], None


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the known values. fsum, so that the order of the rows does not change the last digit."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
