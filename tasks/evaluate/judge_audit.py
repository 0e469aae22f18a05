"""What verdicts on pairs tell about judges: position, length, self-preference, accuracy and agreement, or why it is unknown.

`tell` reads Verdicts, one per row of a file. `./ratchet audit-judge` makes and prints them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.evaluate import judge_bias
from tasks.evaluate.judge_bias import Measured, Pair, over_prompts

FEWEST = 2  # prompts below which nothing is told


@dataclass(frozen=True)
class Text:
    """One side of a pair. None = the file does not say."""

    key: str  # the same text of the same writer has the same key within a prompt
    length: float | None = None
    writer: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What a judge said of two texts, in the order in which it read them."""

    judge: str
    prompt: str
    first: Text
    second: Text
    first_wins: float | None  # 1.0, 0.0 or between; None = unreadable
    gold: float | None = None  # the same by gold; None = unknown


@dataclass
class Report:
    """What is known of one judge, and why the rest is not."""

    judge: str
    verdicts: int
    unreadable: int
    pairs: int
    both_orders: int
    measures: dict[str, Measured] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)  # measure -> reason


@dataclass(frozen=True)
class _Judged:
    """The verdicts of one judge on distinct pairs, as tasks/evaluate/judge_bias.py reads them."""

    games: list[dict[str, Any]]  # one per pair and order
    pairs: list[Pair]  # those in both orders; if there are none, all, each with its only verdict in both places
    both_orders: bool
    lengths: dict[str, float]
    writers: dict[str, str]
    gold: dict[str, float | None]  # by text of a pair: 1.0, 0.0, or 0.5 for both where gold ties


def tell(verdicts: Sequence[Verdict]) -> tuple[list[Report], dict[tuple[str, str], tuple[Measured, Measured]]]:
    """A report per judge, and the agreement and kappa of each two judges with common pairs.

    Args:
        verdicts: on two different texts each.
    """
    names = _names(verdicts)
    reports, said = [], {}
    for judge in dict.fromkeys(verdict.judge for verdict in verdicts):
        own = [verdict for verdict in verdicts if verdict.judge == judge]
        judged = _judged(own, names)
        both = len(judged.pairs) if judged.both_orders else 0
        report = Report(judge, len(own), sum(v.first_wins is None for v in own), len(set(map(_pair_of, own))), both)
        for part in (_position, _accuracy, _length, _own_texts):
            part(report, judged)
        reports.append(report)
        said[judge] = {pair.a: pair.wins for pair in judged.pairs}
    prompts = {name: prompt for (prompt, *_), of_text in names.items() for name in of_text.values()}
    two = itertools.combinations(said, 2)
    together = {(one, other): judge_bias.kappa(said[one], said[other], prompts) for one, other in two}
    return reports, {judges: found for judges, found in together.items() if found[0].n >= FEWEST}


# -- pairs ----------------------------------------------------------------------------------------------------------------
PairKey = tuple[str, str, str]  # the prompt, and the two texts in alphabetical order


def _pair_of(verdict: Verdict) -> PairKey:
    one, other = sorted((verdict.first.key, verdict.second.key))
    return verdict.prompt, one, other


def _names(verdicts: Iterable[Verdict]) -> dict[PairKey, dict[str, str]]:
    """A name for each text of each pair. The text that is read first where the pair first occurs has the lower one.

    The same text has another name in another pair, because gold is of a pair and need not rank texts across pairs.
    """
    names: dict[PairKey, dict[str, str]] = {}
    for verdict in verdicts:
        number = len(names)
        numbered = {verdict.first.key: f"{number:09d}/1", verdict.second.key: f"{number:09d}/2"}
        names.setdefault(_pair_of(verdict), numbered)
    return names


def _judged(verdicts: Iterable[Verdict], all_names: Mapping[PairKey, Mapping[str, str]]) -> _Judged:
    won: dict[tuple[str, str], list[float]] = {}
    prompts, lengths, writers, gold = dict[str, str](), dict[str, float](), dict[str, str](), dict[str, list[float]]()
    for verdict in verdicts:
        of_text = all_names[_pair_of(verdict)]
        names = of_text[verdict.first.key], of_text[verdict.second.key]
        for name, text in zip(names, (verdict.first, verdict.second), strict=True):
            prompts[name] = verdict.prompt
            lengths |= {name: text.length} if text.length is not None else {}
            writers |= {name: text.writer} if text.writer is not None else {}
        if verdict.gold is not None:
            gold.setdefault(names[0], []).append(verdict.gold)
            gold.setdefault(names[1], []).append(1 - verdict.gold)
        if verdict.first_wins is not None:
            won.setdefault(names, []).append(verdict.first_wins)
    games: list[dict[str, Any]] = [
        {"prompt_id": prompts[a], "first_id": a, "second_id": b, "first_wins": math.fsum(values) / len(values)}
        for (a, b), values in won.items()
    ]
    both = judge_bias.pairs(games)
    alone = [Pair(g["prompt_id"], g["first_id"], g["second_id"], g["first_wins"], g["first_wins"]) for g in games]
    single = [pair if pair.a < pair.b else Pair(pair.prompt_id, pair.b, pair.a, 1 - pair.wins, 1 - pair.wins) for pair in alone]
    better: dict[str, float | None] = {name: math.fsum(values) / len(values) for name, values in gold.items()}
    return _Judged(games, both or single, bool(both), lengths, writers, better)


# -- what is told ---------------------------------------------------------------------------------------------------------
def _put(report: Report, name: str, found: Measured, reason: str) -> None:
    if found.n >= FEWEST:
        report.measures[name] = found
    else:
        report.unknown[name] = reason


def _position(report: Report, judged: _Judged) -> None:
    games = judged.games
    first = over_prompts(
        [Pair(g["prompt_id"], "", "", g["first_wins"], g["first_wins"]) for g in games], lambda pair: pair.wins
    )
    _put(report, "first_wins", first, "no readable verdict")
    reason = "each pair was judged in one order only, so a preference for a position cannot be told from the texts' quality"
    _put(report, "position_bias", judge_bias.position_bias(games), reason)
    _put(report, "order_agreement", judge_bias.position_consistency(games), reason)


def _accuracy(report: Report, judged: _Judged) -> None:
    if not judged.gold:
        report.unknown |= dict.fromkeys(("accuracy", "kappa"), "the file has no gold verdicts")
        return
    decided = [g for g in judged.games if judged.gold.get(g["first_id"], 0.5) != 0.5]
    right = {True: list[Pair](), False: list[Pair]()}  # by whether the better text was read first
    for game in decided:
        better_first = (judged.gold[game["first_id"]] or 0.0) > 0.5
        share = game["first_wins"] if better_first else 1 - game["first_wins"]
        right[better_first].append(Pair(game["prompt_id"], "", "", share, share))
    reason = "gold prefers one text in fewer than two prompts"
    _put(report, "accuracy", over_prompts(right[True] + right[False], lambda pair: pair.wins), reason)
    for name, where in (("accuracy_better_first", True), ("accuracy_better_second", False)):
        _put(report, name, over_prompts(right[where], lambda pair: pair.wins), f"{reason} in this order")
    said = {pair.a: pair.wins for pair in judged.pairs}
    gold = {name: value for name, value in judged.gold.items() if value is not None}
    agreed, kappa = judge_bias.kappa(said, gold, {pair.a: pair.prompt_id for pair in judged.pairs})
    _put(report, "agreement", agreed, "fewer than two prompts have a gold verdict")
    _put(report, "kappa", kappa, "judge or gold gives all pairs the same verdict, or fewer than two prompts have gold")


def _length(report: Report, judged: _Judged) -> None:
    known = [pair for pair in judged.pairs if pair.a in judged.lengths and pair.b in judged.lengths]
    ordered = judge_bias.longer_first(known, judged.lengths)
    if len({pair.prompt_id for pair in ordered}) < FEWEST:
        report.unknown["length_bias"] = "the file has no texts or lengths, or all pairs are of equal length"
        return
    report.measures["longer_wins"] = over_prompts(ordered, lambda pair: pair.wins)
    _errors(report, "length_bias", ordered, judged.gold, "longer")


def _own_texts(report: Report, judged: _Judged) -> None:
    names = sorted(set(judged.writers.values()))
    own = {name for name, writer in judged.writers.items() if writer == report.judge}
    known = [pair for pair in judged.pairs if pair.a in judged.writers and pair.b in judged.writers]
    ordered = judge_bias.marked_first(known, own, None)
    if not names or len({pair.prompt_id for pair in ordered}) < FEWEST:
        told = f"the writers are {', '.join(names)}" if names else "the file does not say who wrote the texts"
        report.unknown["self_preference"] = f"no pair sets a text of {report.judge or 'the judge'} against another's: {told}"
        return
    report.measures["own_wins"] = over_prompts(ordered, lambda pair: pair.wins)
    equal = judge_bias.marked_first(known, own, judged.gold)
    if len({pair.prompt_id for pair in equal}) >= FEWEST:
        found = over_prompts(equal, lambda pair: pair.wins - 0.5, judge_bias.HALF)
        report.measures["self_preference_at_equal_gold"] = found
    _errors(report, "self_preference", ordered, judged.gold, "own")


def _errors(report: Report, name: str, ordered: Sequence[Pair], gold: Mapping[str, float | None], side: str) -> None:
    """The judge's errors in favour of one side minus those against it."""
    favour, against, difference = judge_bias.errors_in_favour(ordered, gold)
    if min(favour.n, against.n) >= FEWEST:
        report.measures |= {f"{side}_wins_if_worse": favour, f"{side}_loses_if_better": against, name: difference}
    elif not gold:
        report.unknown[name] = f"without gold, a preference for the {side} text cannot be told from its quality"
    else:
        report.unknown[name] = (
            f"gold prefers the {side} text in {against.n} prompts and the other in {favour.n}; both need at least {FEWEST}"
        )
