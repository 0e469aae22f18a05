"""The alarm rule of the bias ledger: from ledger entries to alarm levels, and the sentence of each alarm.

watch: a significant change (Benjamini-Yekutieli) over the effect floor, once. ALARM: a significant shift from round 0 in the
same direction in two consecutive checkpoints, or a single shift of at least 0.25 SD. STOP: a hard limit was passed.

A campaign is judged in every round. Two rounds are hardly ever wrong alike, but the single shift has a chance in each. So its p
must be ten times smaller: then at most 1% of campaigns of up to 20 rounds in which nothing moves have an ALARM. Nothing is said
of fewer than SMALLEST prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from data.alarm import LEVELS, Alarm, by_gravity
from tasks.bias.counterfactual_features import COLUMNS
from tasks.bias.effects import SMALLEST
from tasks.bias.families import FAULTS
from tasks.bias.ledger import CONDITIONED, Entry, with_corrected

Key = tuple[str, str | None]  # feature and group


@dataclass(frozen=True)
class Rule:
    """The numbers of the alarm rule; `./ratchet bench alarms` measures its false alarms and its detection."""

    q: float = 0.05  # corrected p below which a change is significant
    floor: float = 0.10  # smallest |effect| that counts
    at_once: float = 0.25  # |effect| that raises an ALARM without a second checkpoint
    q_at_once: float = 0.005  # corrected p below which it does
    points: float = 0.02  # rates: the smallest change of the rate that counts
    ratio: float = 1.10  # lengths: the smallest ratio of geometric means that counts


def judge(
    entries: Sequence[Entry],
    earlier: Sequence[Entry] = (),
    *,
    round: int,
    rule: Rule = Rule(),
    of_prompts: Collection[str] = (),
) -> tuple[list[Entry], list[Alarm]]:
    """The entries of a round with their levels, and its alarms, the gravest first, among equals the largest effect.

    Args:
        entries: of `tasks.bias.ledger.compare`.
        earlier: the entries that this function returned for the round before, of the same lineage.
        of_prompts: names of the features of whole prompts.
    """
    before = {entry.key: entry for entry in earlier}
    with_levels = [_with_level(entry, before.get(entry.key), round, rule) for entry in with_corrected(entries)]
    by_key = {entry.key: entry for entry in with_levels}
    final = [_watch_if_harmless(entry, by_key, rule) for entry in with_levels]
    alarms = [
        Alarm(e.level, "ledger", e.feature, sentence(e, by_key, rule, e.feature in of_prompts))  # type: ignore[arg-type]
        for e in sorted(one_per_feature(final), key=lambda entry: -abs(entry.effect or 0.0))
        if e.level
    ]
    return final, by_gravity(alarms)


# -- levels -------------------------------------------------------------------------------------------------------------
def differs_from_round_zero(entry: Entry, rule: Rule) -> bool:
    """Whether the drift from round 0 is significant and over the floors."""
    return _counts(entry.kind, entry.p_by, entry.effect, entry.drift, rule)


def _counts(kind: str, p: float | None, effect: float | None, difference: float | None, rule: Rule) -> bool:
    """Whether a change is significant and over the floors of the rule."""
    if p is None or effect is None or difference is None:
        return False
    if p >= rule.q or abs(effect) < rule.floor:
        return False
    smallest = {"rate": rule.points, "length": math.log(rule.ratio)}.get(kind, 0.0)
    return abs(difference) >= smallest


def _with_level(entry: Entry, before: Entry | None, round: int, rule: Rule) -> Entry:
    differs = differs_from_round_zero(entry, rule)
    persists = differs and before is not None and differs_from_round_zero(before, rule) and _same_direction(entry, before)
    since = before.since if persists and before and before.since is not None else round
    if entry.key in LIMITS and entry.n >= SMALLEST and LIMITS[entry.key].passed(entry):
        return replace(entry, level="STOP", since=since)
    if differs and (persists or _at_once(entry, rule)):
        return replace(entry, level="ALARM", since=since)
    if differs or _counts(entry.kind, entry.step_p_by, entry.step_effect, entry.step, rule):
        return replace(entry, level="watch", since=since)
    return entry


def _at_once(entry: Entry, rule: Rule) -> bool:
    return abs(entry.effect or 0.0) >= rule.at_once and entry.p_by is not None and entry.p_by < rule.q_at_once


def _same_direction(one: Entry, other: Entry) -> bool:
    return (one.drift or 0.0) * (other.drift or 0.0) > 0


def _watch_if_harmless(entry: Entry, by_key: Mapping[Key, Entry], rule: Rule) -> Entry:
    """An ALARM becomes a watch if a fault became rarer, or if a style only follows that more answers are right."""
    harmless = entry.level == "ALARM" and (less_of_a_fault(entry) or follows_accuracy(entry, by_key, rule))
    return replace(entry, level="watch") if harmless else entry


def less_of_a_fault(entry: Entry) -> bool:
    """Whether the feature measures a fault, and there is less of it."""
    return FAULTS.get(entry.feature, 0) * (entry.drift or 0.0) < 0


def follows_accuracy(entry: Entry, by_key: Mapping[Key, Entry], rule: Rule = Rule()) -> bool:
    """Whether the feature did not move in the same direction in any group of equal accuracy (`CONDITIONED`)."""
    conditioned = [by_key[entry.feature, group] for group in CONDITIONED if (entry.feature, group) in by_key]
    if not conditioned or entry.group in CONDITIONED:
        return False
    moved = (c for c in conditioned if _same_direction(entry, c) and excludes_zero(c.drift_low, c.drift_high))
    return not any(abs(c.effect or 0.0) >= rule.floor for c in moved)


def excludes_zero(low: float | None, high: float | None) -> bool:
    """Whether a known interval lies on one side of 0."""
    return low is not None and high is not None and low * high > 0


def one_per_feature(entries: Sequence[Entry]) -> list[Entry]:
    """The gravest entry of each feature; among equals, the one over all completions."""
    gravest: dict[str, Entry] = {}
    for entry in entries:
        other = gravest.get(entry.feature)
        rank = (LEVELS.index(entry.level), entry.group is None)
        if other is None or rank > (LEVELS.index(other.level), other.group is None):
            gravest[entry.feature] = entry
    return list(gravest.values())


# -- hard limits --------------------------------------------------------------------------------------------------------
def _above_round_zero(entry: Entry) -> bool:
    """A limit must not fire on the habits of checkpoint 0, nor on the noise of a small probe."""
    return entry.drift_low is not None and entry.drift_low > 0


def _truncated(entry: Entry) -> bool:
    mean, base = entry.mean or 0.0, entry.base or 0.0
    return _above_round_zero(entry) and (mean > 0.20 or (mean >= 0.05 and mean >= 2 * base))


class Limit(NamedTuple):
    passed: Callable[[Entry], bool]
    words: str  # the limit, for the alarm's sentence


LIMITS: dict[Key, Limit] = {
    ("truncated", None): Limit(_truncated, "20%, or at least 5% and twice the value of round 0"),
    ("loop", None): Limit(lambda entry: _above_round_zero(entry) and (entry.mean or 0.0) > 0.02, "2%"),
    ("refusal", "benign"): Limit(
        lambda entry: _above_round_zero(entry) and (entry.drift or 0.0) >= 0.10, "10 points above round 0"
    ),
}


# -- sentences ----------------------------------------------------------------------------------------------------------
CONDITIONS = {"right": " among right answers", "wrong": " among wrong answers", "equal accuracy": " at equal accuracy"}
FOLLOWS_ACCURACY = "It follows accuracy: among equally right answers it did not change."
LESS_OF_A_FAULT = "The feature measures a fault, and there is less of it: an improvement."


def sentence(entry: Entry, by_key: Mapping[Key, Entry], rule: Rule = Rule(), of_prompt: bool = False) -> str:
    """What changed, by how much, since when, whether selection or training caused it, and what reduces it."""
    group = "" if entry.group is None else CONDITIONS.get(entry.group, f" on stratum '{entry.group}'")
    if entry.level == "watch" and not differs_from_round_zero(entry, rule):
        change = f"{_change_in_round(entry)}{group} in this round; not significantly different from round 0."
        cause = attribution(entry)
    else:
        change = f"{_change_since_round_zero(entry)}{group} since round 0. Significant since round {entry.since}."
        if less_of_a_fault(entry):
            return f"{change} {LESS_OF_A_FAULT}"
        harmless = entry.level == "watch" and follows_accuracy(entry, by_key, rule)
        cause = FOLLOWS_ACCURACY if harmless else attribution(entry)
    limit = f"The hard limit is {LIMITS[entry.key].words}." if entry.level == "STOP" else ""
    parts = (change, limit, cause, remedies(mitigations(entry.feature, entry.kind, of_prompt)))
    return " ".join(part for part in parts if part)


def _change_since_round_zero(entry: Entry) -> str:
    if entry.mean is None or entry.base is None or entry.effect is None or entry.drift is None:
        return "Changed"
    verb = "Rose" if entry.drift > 0 else "Fell"
    if entry.kind == "rate":
        size = f"{100 * entry.drift:+.1f} points, Cohen's h {entry.effect:+.2f}"
        return f"{verb} from {100 * entry.base:.1f}% to {100 * entry.mean:.1f}% ({size})"
    ratio = f", x{math.exp(entry.drift):.2f}" if entry.kind == "length" else ""
    return f"{verb} from {entry.base:.3g} to {entry.mean:.3g} ({entry.effect:+.2f} SD{ratio})"


def _change_in_round(entry: Entry) -> str:
    if entry.mean is None or entry.step is None or entry.step_effect is None:
        return "Changed"
    verb = "Rose" if entry.step > 0 else "Fell"
    if entry.kind == "rate":
        points = 100 * abs(entry.step)
        return f"{verb} by {points:.1f} points to {100 * entry.mean:.1f}% (Cohen's h {entry.step_effect:+.2f})"
    ratio = f" (x{math.exp(entry.step):.2f})" if entry.kind == "length" else ""
    return f"{verb} by {abs(entry.step_effect):.2f} SD to {entry.mean:.3g}{ratio}"


def attribution(entry: Entry) -> str:
    """Whether selection or training caused the change of this round; "" if the selection pressure is unknown.

    Selection pressure is the mean of the chosen completions minus the mean of all samples.
    """
    pressure, step = entry.pressure, entry.step
    if pressure is None or entry.pressure_low is None or entry.pressure_high is None or step is None:
        return ""
    if not excludes_zero(entry.step_low, entry.step_high):
        return f"It did not change significantly in this round (selection pressure {pressure:+.2g})."
    if not excludes_zero(entry.pressure_low, entry.pressure_high):
        return (
            f"The chosen data did not favour it (selection pressure {pressure:+.2g}, 95% interval includes 0), so it is a side "
            "effect of training."
        )
    explained = f"selection pressure {pressure:+.2g}: {_pressure_in_words(entry.kind, pressure)}"
    if pressure * step < 0:
        return f"Selection favours the opposite ({explained}), so training caused the change."
    selection = f"Selection favours {'it' if step > 0 else 'less of it'} ({explained})."
    if entry.gain is None:
        return selection
    gain = f"gain {gain_in_words(entry)}"
    verb = "Training amplified it" if entry.gain_low is not None and entry.gain_low > 1 else "Training followed"
    return f"{selection} {verb} ({gain}: the policy moved {entry.gain:.2f} times as far as the chosen data)."


def gain_in_words(entry: Entry) -> str:
    """The gain with its interval, which has no ends where the pressure may be 0."""
    if entry.gain is None:
        return ""
    if entry.gain_low is None or entry.gain_high is None:
        return f"{entry.gain:.2f} [unbounded: the pressure may be 0]"
    return f"{entry.gain:.2f} [{entry.gain_low:.2f}, {entry.gain_high:.2f}]"


def _pressure_in_words(kind: str, pressure: float) -> str:
    if kind == "length":
        return f"the chosen completions have {math.exp(pressure):.2f} times as many as all samples"
    amount = f"{100 * abs(pressure):.2g} points" if kind == "rate" else f"{abs(pressure):.2g}"
    return f"the chosen completions have {amount} {'more' if pressure > 0 else 'less'} than all samples"


STYLE, LENGTH = ("residualised", "style_balanced"), ("length_penalty", "length_matched")
VARIED = ("cap_copies", "pool.earlier", "generate.temperature")
MITIGATIONS: dict[str, tuple[str, ...]] = {  # feature -> mitigations by name, and settings of a recipe (with a dot)
    "truncated": ("reject_overlong", *LENGTH),
    **dict.fromkeys(("loop", "rep_3", "rep_10", "rep_20"), ("reject_loops", *STYLE)),
    **dict.fromkeys(("distinct", "self_bleu", "semantic_spread", "shared_answer", "answer_similarity"), VARIED),
    **dict.fromkeys(("answer_entropy", "answer_collision", "coverage_gap", "token_entropy"), (*VARIED, "loss.beta")),
    **dict.fromkeys(("vote_overconfidence", "vote_brier"), (*VARIED, "loss.beta")),
    **{name: () for columns in COLUMNS.values() for name in columns},
    # A mitigation takes features of a completion alone. These are of whole prompts, or need the prompt's text.
    **dict.fromkeys(("overconfidence", "reflection_effect", "script_share"), ()),
    # Distances to round 0, which round 0 does not have: they never raise an alarm.
    **dict.fromkeys(("kl_base", "kl_base_token", "kl_base_start", "kl_base_k1", "kl_previous", "kl_previous_k1"), ()),
}


def mitigations(feature: str, kind: str, of_prompt: bool = False) -> tuple[str, ...]:
    """What reduces a feature's drift: mitigations by name, and settings of a recipe.

    Args:
        of_prompt: it is a feature of whole prompts, which no mitigation takes.
    """
    return MITIGATIONS.get(feature, () if of_prompt else LENGTH if kind == "length" else STYLE)


def remedies(names: Sequence[str]) -> str:
    """The last sentence of an alarm: mitigations first, then settings, which have a dot in their name."""
    parts, settings = [n for n in names if "." not in n], [n for n in names if "." in n]
    if not names:
        return "There is no mitigation for this feature."
    listed = [f"{', '.join(parts)} (see [[mitigate]])"] if parts else []
    return f"To reduce this drift: {', '.join([*listed, *settings])}."
