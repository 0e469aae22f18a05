"""Counterfactual copies of prompts: with a wrong answer suggested, with names, pronouns and groups swapped, or challenged.

The right answer should not depend on any of these changes. A copy is a row of PROMPTS of its own, with its kind as stratum.
COUNTERFACTUALS links it to its prompt. Not every prompt has a copy of each kind: there must be an answer to be wrong about,
somebody named, or a first completion to doubt.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.recipe.settings import HINT
from data.rows import tables

Row = dict[str, Any]

# Each word stands for its partner and the other way round. First names: pairs of the resume study of Bertrand and Mullainathan
# (2004), and common ones across gender. "her" is "him" or "his", by what follows; see `swapped`.
SWAPS = (
    *(("he", "she"), ("himself", "herself"), ("man", "woman"), ("men", "women"), ("boy", "girl"), ("boys", "girls")),
    *(("father", "mother"), ("son", "daughter"), ("brother", "sister"), ("husband", "wife"), ("mr", "ms"), ("king", "queen")),
    *(("emily", "lakisha"), ("greg", "jamal"), ("anne", "aisha"), ("brad", "darnell"), ("john", "mary"), ("james", "linda")),
    *(("muslim", "christian"), ("muslims", "christians"), ("black", "white"), ("gay", "straight"), ("young", "old")),
)
PARTNER = {word: other for pair in SWAPS for word, other in (pair, pair[::-1])}
OBJECT = r"(?=\s*(?:[.,;:!?)\"']|$|\s(?:and|or|to|in|on|at|for|with|from|by|that|if|when|because|who)\b))"  # "her" as "him"
WORD = re.compile(rf"\b(?:{'|'.join(sorted(PARTNER, key=len, reverse=True))}|his|him|hers|her)\b", re.IGNORECASE)
ENDS = re.compile(OBJECT)
INTEGER = re.compile(r"-?\d{1,18}")


def swapped(text: str) -> str:
    """The text with identities exchanged, capitals kept. Swapping twice gives it back, but for his/hers and him/her."""
    return WORD.sub(lambda match: _as(match[0], _partner(match[0].lower(), text, match.end())), text)


def _partner(word: str, text: str, end: int) -> str:
    if word == "her":
        return "him" if ENDS.match(text, end) else "his"
    return {"his": "her", "him": "her", "hers": "his"}.get(word) or PARTNER[word]


def _as(model: str, word: str) -> str:
    return word.upper() if model.isupper() and len(model) > 1 else word.capitalize() if model[0].isupper() else word


def identity_copies(prompts: Sequence[Row]) -> list[tuple[Row, Row]]:
    """(row of PROMPTS, row of COUNTERFACTUALS) for every prompt in which something was swapped; the answer is swapped too."""
    made = []
    for prompt in prompts:
        messages = [{**message, "content": swapped(message["content"])} for message in prompt["messages"]]
        if messages != prompt["messages"]:
            answer = None if prompt["answer"] is None else swapped(prompt["answer"])
            made.append(_copy(prompt, messages, answer, "identity", None))
    return made


def sycophancy_copies(prompts: Sequence[Row], hint: str = HINT) -> list[tuple[Row, Row]]:
    """(row of PROMPTS, row of COUNTERFACTUALS) for every prompt with an answer: a wrong one is suggested."""
    made = []
    given = {prompt["answer"] for prompt in prompts if prompt["answer"]}
    answers = sorted(answer for answer in given if not INTEGER.fullmatch(answer))
    for prompt in prompts:
        wrong = wrong_answer(prompt, answers)
        if wrong is not None:
            *before, last = prompt["messages"]
            content = hint.replace("{prompt}", last["content"]).replace("{wrong}", wrong)
            made.append(_copy(prompt, [*before, {**last, "content": content}], prompt["answer"], "sycophancy", wrong))
    return made


def challenge_copies(prompts: Sequence[Row], answers: Mapping[str, str], challenge: str) -> list[tuple[Row, Row]]:
    """(row of PROMPTS, row of COUNTERFACTUALS) for every prompt with a completion: a second turn doubts it.

    Args:
        answers: by prompt_id.
    """
    made = []
    for prompt in prompts:
        if answer := answers.get(prompt["prompt_id"]):
            doubted = [{"role": "assistant", "content": answer}, {"role": "user", "content": challenge}]
            made.append(_copy(prompt, [*prompt["messages"], *doubted], prompt["answer"], "challenge", None))
    return made


def wrong_answer(prompt: Mapping[str, Any], answers: Sequence[str]) -> str | None:
    """A near miss of an integer, else another prompt's answer; None without any. The same one every time."""
    answer, draw = prompt["answer"], int(hashlib.sha256(prompt["prompt_id"].encode()).hexdigest(), 16)
    if not answer:
        return None
    if INTEGER.fullmatch(answer):
        return str(int(answer) + (1, -1, 10, -10)[draw % 4])
    others = [other for other in answers if other != answer]
    return others[draw % len(others)] if others else None


def _copy(prompt: Row, messages: list[dict[str, str]], answer: str | None, kind: str, hint: str | None) -> tuple[Row, Row]:
    copy = {**prompt, "prompt_id": tables.prompt_id(messages), "messages": messages, "answer": answer, "stratum": kind}
    return copy, {"counterfactual_id": copy["prompt_id"], "prompt_id": prompt["prompt_id"], "kind": kind, "hint": hint}
