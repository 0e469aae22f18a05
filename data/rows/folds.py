"""Folds of the prompts, so that a model can be judged on prompts that it was not fitted on (cross-fitting)."""

from __future__ import annotations

from data.store.store import sha256_text

FOLDS = 2  # two models fitted on half of the prompts each cost together what the round's own reward model costs


def fold_of(prompt_id: str) -> int:
    """The fold of a prompt, 0 to FOLDS - 1, by the hash of its id: the same in every round and stage."""
    return int(sha256_text(f"fold\0{prompt_id}")[:8], 16) % FOLDS
