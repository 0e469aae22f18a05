"""What an audit says to people who compare others' outputs: sources by their names, a line a family, and nothing to retrain."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from data.alarm import Alarm
from tasks.bias.alarm_rule import (
    CONDITIONS,
    FOLLOWS_ACCURACY,
    LESS_OF_A_FAULT,
    LIMITS,
    Rule,
    differs_from_round_zero,
    excludes_zero,
    follows_accuracy,
    less_of_a_fault,
    one_per_feature,
)
from tasks.bias.families import by_family, subject
from tasks.bias.iterations import Step
from tasks.bias.ledger import Entry
from tasks.bias.one_answer import ONE_ANSWER

MOST_LINES = 8  # families with a line of their own; the others share one
SIZES = ((0.2, "very small"), (0.5, "small"), (0.8, "medium"), (math.inf, "large"))  # Cohen 1988, for d and h alike


@dataclass(frozen=True)
class Compared:
    """The names of the sources, the oldest first, and which of them a step is about."""

    labels: Sequence[str]
    number: int

    @property
    def first(self) -> str:
        return self.labels[0]

    @property
    def now(self) -> str:
        return self.labels[self.number]


@dataclass(frozen=True)
class GoldVerdict:
    """Whether a source answers better than the first one by the gold column."""

    result: str  # "better", "worse" or "no difference"
    sentence: str


def gold_verdict(step: Step, compared: Compared) -> GoldVerdict | None:
    """None without a gold column."""
    gold = next((entry for entry in step.outcomes if entry.feature == "gold"), None)
    if gold is None or gold.mean is None or gold.base is None or gold.drift is None:
        return None
    certain = excludes_zero(gold.drift_low, gold.drift_high)
    result = ("better" if gold.drift > 0 else "worse") if certain else "no difference"
    verb = "did not change" if gold.drift == 0 else "rose" if gold.drift > 0 else "fell"
    interval = (
        "" if gold.drift_low is None else f", 95% interval {100 * gold.drift_low:+.1f} to {100 * (gold.drift_high or 0):+.1f}"
    )
    conclusion = f"the model got {result}" if certain else "no difference is shown at this size"
    return GoldVerdict(
        result,
        f"{compared.now}: gold accuracy {verb} from {100 * gold.base:.1f}% to {100 * gold.mean:.1f}% over {gold.n} prompts "
        f"({100 * gold.drift:+.1f} points{interval}): {conclusion}.",
    )


# -- sentences ----------------------------------------------------------------------------------------------------------
def reworded(step: Step, compared: Compared) -> list[Alarm]:
    """The alarms of a step with sentences for an audit."""
    entries = {entry.feature: entry for entry in one_per_feature(step.entries)}
    by_key = {entry.key: entry for entry in step.entries}
    return [
        replace(alarm, sentence=_sentence(entries[alarm.name], by_key, compared)) if alarm.name in entries else alarm
        for alarm in step.alarms
    ]


def _sentence(entry: Entry, by_key: Mapping[tuple[str, str | None], Entry], compared: Compared) -> str:
    change = f"{_changed(entry, compared)}."
    parts = [change[0].upper() + change[1:]]
    if entry.since is not None and entry.since < compared.number:
        parts.append(f"Different from {compared.first} since {compared.labels[entry.since]}.")
    if entry.level == "STOP":
        parts.append(f"The hard limit is {LIMITS[entry.key].words.replace('round 0', compared.first)}.")
    if less_of_a_fault(entry):
        parts.append(LESS_OF_A_FAULT)
    elif entry.level == "watch" and follows_accuracy(entry, by_key):
        parts.append(FOLLOWS_ACCURACY)
    return " ".join(parts)


def _changed(entry: Entry, compared: Compared) -> str:
    """`words rose from 104 to 178 (x1.71, a large change)`."""
    what = f"{subject(entry.feature)}{_group(entry)}"
    if not differs_from_round_zero(entry, Rule()):
        effect, before = entry.step_effect or 0.0, compared.labels[compared.number - 1]
        return f"{what} {'rose' if effect > 0 else 'fell'} since {before}, but not surely since {compared.first}"
    drift, effect = entry.drift or 0.0, entry.effect or 0.0
    size = next(word for limit, word in SIZES if abs(effect) < limit)
    ratio = f"x{math.exp(drift):.2f}, " if entry.kind == "length" else ""
    verb = "rose" if drift > 0 else "fell"
    return f"{what} {verb} from {_shown(entry, entry.base)} to {_shown(entry, entry.mean)} ({ratio}a {size} change)"


def _group(entry: Entry) -> str:
    return "" if entry.group is None else CONDITIONS.get(entry.group, f" on stratum '{entry.group}'")


def _shown(entry: Entry, value: float | None) -> str:
    if value is None:
        return "unknown"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{100 * value:.1f}%" if entry.kind == "rate" else f"{value:.3g}"


# -- lines --------------------------------------------------------------------------------------------------------------
def lines(step: Step, compared: Compared) -> list[str]:
    """What is printed about a step: the gravest alarm of each family, the largest first; then smaller changes in a line."""
    entries = {entry.feature: entry for entry in one_per_feature(step.entries)}
    grave = by_family(alarm for alarm in step.alarms if alarm.level != "watch")
    grave = sorted(grave, key=lambda group: group.first.name != ONE_ANSWER)  # the widest finding first
    told = []
    for group in grave[:MOST_LINES]:
        entry = entries.get(group.first.name)
        text = f"{_changed(entry, compared)}." if entry else group.first.sentence
        told.append(f"{group.level} {group.family}: {text}{_others(group.others, entries)}")
    if more := grave[MOST_LINES:]:
        told.append(f"ALARM, too: {', '.join(group.family for group in more)}.")
    return told + list(_quiet(step, entries))


def _others(names: Sequence[str], entries: Mapping[str, Entry]) -> str:
    """` Also rose: characters, sentences.`"""
    told = ""
    for verb, sign in (("rose", 1), ("fell", -1)):
        moved = [subject(name) for name in names if (entries[name].drift or 0.0) * sign > 0]
        told += f" Also {verb}: {', '.join(moved)}." if moved else ""
    return told


def _quiet(step: Step, entries: Mapping[str, Entry]) -> Iterator[str]:
    """Lines about alarms of the lowest level: improvements, and what else moved."""
    watched = [entries[alarm.name] for alarm in step.alarms if alarm.level == "watch" and alarm.name in entries]
    improved = [entry for entry in watched if less_of_a_fault(entry) and differs_from_round_zero(entry, Rule())]
    if improved:
        told = (f"{subject(e.feature)} {_shown(e, e.base)} -> {_shown(e, e.mean)}" for e in improved)
        yield f"less of a fault: {', '.join(told)}."
    if others := [entry for entry in watched if entry not in improved]:
        yield f"watch (small, new, or with accuracy): {', '.join(subject(e.feature) for e in others)}."
