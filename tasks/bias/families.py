"""Families of features, and what each feature counts in plain words, for a person who does not know the shelf.

A policy that writes longer answers moves words, characters and sentences at once. So what a person reads has one line a family.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from data.alarm import LEVELS, Alarm

WORDS: dict[str, dict[str, str]] = {  # family -> feature -> what it counts, as the subject of "rose from a to b"
    "diversity": {
        "one answer": "answers that are the commonest one",
        "shared_answer": "prompts whose answer another prompt got too",
        "answer_similarity": "similarity of the answers to different prompts",
        "answer collapse": "entropy of a prompt's answers",
        "distinct": "distinct word pairs among a prompt's samples",
        "self_bleu": "likeness of a prompt's samples (self-BLEU)",
        "semantic_spread": "difference between a prompt's samples (TF-IDF)",
        "answer_entropy": "entropy of a prompt's final answers",
        "answer_collision": "chance that two samples agree on the final answer",
        "coverage_gap": "gain in accuracy from more samples",
        "token_entropy": "entropy per token",
    },
    "length": {
        "words": "words",
        "tokens": "tokens",
        "characters": "characters",
        "sentences": "sentences",
        "think_words": "words of thinking",
        "answer_words": "words after the thinking",
        "truncated": "answers cut off at the token limit",
    },
    "repetition": {
        "loop": "answers that end in a loop",
        "rep_3": "repeated runs of 3 words (share)",
        "rep_10": "repeated runs of 10 words (share)",
        "rep_20": "repeated runs of 20 words (share)",
        "compression": "compressed size as a share of the text",
        "mtld": "variety of words within an answer (MTLD)",
    },
    "refusal": {
        "refusal": "answers that refuse",
        "disclaimer": "answers that say 'as an AI'",
        "regret": "answers that say sorry",
    },
    "format": {
        "bold": "answers with bold text",
        "bold_density": "bold passages per 100 words",
        "lists": "answers with lists",
        "lists_density": "list items per 100 words",
        "headers": "answers with headings",
        "headers_density": "headings per 100 words",
        "tables": "answers with tables",
        "tables_density": "table rows per 100 words",
        "links": "answers with links",
        "links_density": "links per 100 words",
        "emoji": "answers with emoji",
        "emoji_density": "emoji per 100 words",
        "exclamations": "answers with exclamation marks",
        "exclamations_density": "exclamation marks per 100 words",
        "code": "answers with code blocks",
        "affirmative": "answers that begin with 'Sure' or 'Certainly'",
    },
    "tone": {
        "praise": "answers that open with praise of the reader",
        "valence": "positive tone (VADER, -1 to 1)",
    },
    "confidence": {
        "confidence": "confident wording (-1 to 1)",
        "hedging": "hedges such as 'perhaps' per 100 words",
        "boosting": "boosters such as 'clearly' per 100 words",
        "overconfidence": "confidence of wrong answers minus that of right ones",
        "vote_overconfidence": "surplus of the majority's share over its being right",
        "vote_brier": "Brier score of the majority vote",
    },
    "language": {
        "script_share": "letters in the prompt's script (share)",
        "script_switches": "changes of script per 100 words",
    },
    "reflection": {
        "reflects": "answers that reflect ('wait', 'let me check')",
        "reflections": "words of reflection per answer",
        "reflection_effect": "accuracy with reflection minus without",
    },
    "KL": {
        "kl_base": "KL from the first model (nats)",
        "kl_base_k1": "KL from the first model, by its samples",
        "kl_base_token": "KL from the first model per token",
        "kl_base_start": "KL from the first model in the first tokens",
        "kl_previous": "KL from the model before",
        "kl_previous_k1": "KL from the model before, by its samples",
    },
    "who asks and how": {  # counterfactual prompts: by the beginning of the name
        "identity": "difference when names are swapped",
        "sycophancy": "answers that follow a wrong hint",
        "challenge": "answers that a doubt changes",
    },
}
_FAMILY = {feature: family for family, features in WORDS.items() for feature in features}
_SUBJECT = {feature: words for features in WORDS.values() for feature, words in features.items()}

# Features that measure a fault: 1 if a rise is worse, -1 if a fall is. The other direction is an improvement, never an ALARM.
# Any other feature is a style: a change in either direction counts.
FAULTS: dict[str, int] = {
    **dict.fromkeys(("truncated", "loop", "rep_3", "rep_10", "rep_20", "script_switches"), 1),
    **dict.fromkeys(("compression", "mtld", "script_share"), -1),
    **dict.fromkeys(("shared_answer", "answer_similarity"), 1),
    **dict.fromkeys(("overconfidence", "vote_overconfidence", "vote_brier", "sycophancy_flip", "challenge_flip"), 1),
    **dict.fromkeys(("identity_characters", "identity_refusal", "identity_valence", "identity_accuracy"), 1),
    **dict.fromkeys(("sycophancy_accuracy", "challenge_repair"), -1),
}


def family_of(name: str) -> str:
    """The family of a feature or a ledger alarm; a user's own feature is a family of its own."""
    return _FAMILY.get(name) or _FAMILY.get(name.split("_")[0], name)


def subject(name: str) -> str:
    """What a feature counts, in words; the name itself of a user's own."""
    return _SUBJECT.get(name, name)


@dataclass(frozen=True)
class Group:
    """The alarms of one family at its highest level: the first one speaks for the others."""

    family: str
    first: Alarm
    others: tuple[str, ...]  # names of the other alarms of the family, at whatever level

    @property
    def level(self) -> str:
        return self.first.level


def by_family(alarms: Iterable[Alarm]) -> list[Group]:
    """One group a family, the highest level first; within a level in the order of the alarms, which is by size.

    Alarms of training, judges and suites are no features: each is a group of its own.
    """
    members: dict[tuple[str, str], list[Alarm]] = {}
    for alarm in sorted(alarms, key=lambda alarm: -LEVELS.index(alarm.level)):
        key = (alarm.source, family_of(alarm.name) if alarm.source == "ledger" else alarm.name)
        members.setdefault(key, []).append(alarm)
    return [Group(family, first, tuple(a.name for a in others)) for (_, family), (first, *others) in members.items()]
