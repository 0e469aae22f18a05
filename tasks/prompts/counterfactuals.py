"""Counterfactual copies of prompts: with a wrong answer suggested, with names, pronouns and groups swapped, or challenged.

A challenge comes with a neutral copy, which asks again without a doubt. Being asked twice changes answers too: that is noise.

The correct answer should not depend on any of these changes. A copy is a row of PROMPTS, with its kind as stratum, and
COUNTERFACTUALS links it to its prompt. A kind needs something to change: an answer, a named person or group, or a first
completion.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.recipe.settings import HINT
from data.rows import tables

Row = dict[str, Any]

# Each word is replaced by its partner, in both directions. First names: pairs of the resume study of Bertrand and Mullainathan
# (2004), and common names of both genders. "her" becomes "him" or "his", depending on the next word; see `_partner`.
SWAPS = (
    *(("he", "she"), ("himself", "herself"), ("man", "woman"), ("men", "women"), ("boy", "girl"), ("boys", "girls")),
    *(("father", "mother"), ("son", "daughter"), ("brother", "sister"), ("husband", "wife"), ("mr", "ms"), ("king", "queen")),
    *(("emily", "lakisha"), ("greg", "jamal"), ("anne", "aisha"), ("brad", "darnell"), ("john", "mary"), ("james", "linda")),
    *(("muslim", "christian"), ("muslims", "christians"), ("black", "white"), ("gay", "straight"), ("young", "old")),
)
PARTNER = {word: other for pair in SWAPS for word, other in (pair, pair[::-1])}
# what follows "her" where it means "him"
OBJECT = r"(?=\s*(?:[.,;:!?)\"']|$|\s(?:and|or|to|in|on|at|for|with|from|by|that|if|when|because|who)\b))"
WORD = re.compile(rf"\b(?:{'|'.join(sorted(PARTNER, key=len, reverse=True))}|his|him|hers|her)\b", re.IGNORECASE)
ENDS = re.compile(OBJECT)
INTEGER = re.compile(r"-?\d{1,18}")


def swapped(text: str) -> str:
    """The text with identities swapped, in the same case. Swapping twice restores it, except for his/hers and him/her."""
    return WORD.sub(lambda match: _in_case_of(match[0], _partner(match[0].lower(), text, match.end())), text)


def _partner(word: str, text: str, end: int) -> str:
    if word == "her":
        return "him" if ENDS.match(text, end) else "his"
    return {"his": "her", "him": "her", "hers": "his"}.get(word) or PARTNER[word]


def _in_case_of(original: str, word: str) -> str:
    if original.isupper() and len(original) > 1:
        return word.upper()
    return word.capitalize() if original[0].isupper() else word


def identity_copies(prompts: Sequence[Row]) -> list[tuple[Row, Row]]:
    """(row of PROMPTS, row of COUNTERFACTUALS) for every prompt with a word to swap. The answer is swapped too."""
    copies = []
    for prompt in prompts:
        messages = [{**message, "content": swapped(message["content"])} for message in prompt["messages"]]
        if messages != prompt["messages"]:
            answer = None if prompt["answer"] is None else swapped(prompt["answer"])
            copies.append(_copy(prompt, messages, answer, "identity", None))
    return copies


def sycophancy_copies(prompts: Sequence[Row], hint: str = HINT) -> list[tuple[Row, Row]]:
    """(row of PROMPTS, row of COUNTERFACTUALS) for every prompt with an answer. The copy suggests a wrong one."""
    copies = []
    distinct = {prompt["answer"] for prompt in prompts if prompt["answer"]}
    answers = sorted(answer for answer in distinct if not INTEGER.fullmatch(answer))
    for prompt in prompts:
        wrong = wrong_answer(prompt, answers)
        if wrong is not None:
            *before, last = prompt["messages"]
            content = hint.replace("{prompt}", last["content"]).replace("{wrong}", wrong)
            copies.append(_copy(prompt, [*before, {**last, "content": content}], prompt["answer"], "sycophancy", wrong))
    return copies


def challenge_copies(prompts: Sequence[Row], answers: Mapping[str, str], challenge: str, neutral: str) -> list[tuple[Row, Row]]:
    """Two (row of PROMPTS, row of COUNTERFACTUALS) for every prompt with a completion. The second turn doubts, or asks again.

    Args:
        answers: the completions' texts by prompt_id.
    """
    copies = []
    for prompt in prompts:
        if answer := answers.get(prompt["prompt_id"]):
            for kind, turn in (("challenge", challenge), ("neutral", neutral)):
                turns = [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
                copies.append(_copy(prompt, [*prompt["messages"], *turns], prompt["answer"], kind, None))
    return copies


def wrong_answer(prompt: Mapping[str, Any], answers: Sequence[str]) -> str | None:
    """A number close to an integer answer, else another prompt's answer, or None. It depends only on the arguments."""
    answer, number = prompt["answer"], int(hashlib.sha256(prompt["prompt_id"].encode()).hexdigest(), 16)
    if not answer:
        return None
    if INTEGER.fullmatch(answer):
        return str(int(answer) + (1, -1, 10, -10)[number % 4])
    others = [other for other in answers if other != answer]
    return others[number % len(others)] if others else None


def _copy(prompt: Row, messages: list[dict[str, str]], answer: str | None, kind: str, hint: str | None) -> tuple[Row, Row]:
    copy = {**prompt, "prompt_id": tables.prompt_id(messages), "messages": messages, "answer": answer, "stratum": kind}
    return copy, {"counterfactual_id": copy["prompt_id"], "prompt_id": prompt["prompt_id"], "kind": kind, "hint": hint}
