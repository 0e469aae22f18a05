"""One error type per kind of mistake; each message says what was expected, what was found and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class RatchetError(Exception):
    """Anything Ratchet stops for on purpose. `exit_code` is what the command line returns."""

    exit_code = 1


class WrongUse(RatchetError):
    """The user asked for something that cannot be done; nothing was started."""

    exit_code = 2


class RecipeError(WrongUse):
    """A recipe that does not validate: unknown key, wrong type, contradictory settings."""


class Contradictions(ValueError):
    """All contradictions that a table of settings has. Raised inside pydantic; the RecipeError that follows names each."""

    def __init__(self, messages: Sequence[str]) -> None:
        super().__init__("; ".join(messages))
        self.messages = tuple(messages)


class PartError(WrongUse):
    """A part (scorer, selector, pairer, engine) that does not exist or refuses its settings."""


class PromptsError(WrongUse):
    """A prompts file that is missing, lacks a column or has a bad row (the row is named)."""


class ModelError(WrongUse):
    """A model directory that is missing, incomplete or not safetensors."""


class EndpointError(WrongUse):
    """A server that will answer no request of this kind: no such address or model, a wrong or missing key."""


class HomeError(WrongUse):
    """The home directory cannot be written, or has too little room."""


class CampaignError(WrongUse):
    """A campaign name that does not exist, is malformed, is taken by another recipe, or is already running."""


class PortTaken(WrongUse):
    """A port that somebody else listens on."""


class ServiceFailed(RatchetError):
    """A program that runs beside campaigns (Prefect's server or worker, MLflow's UI) did not start, or ended; see its log."""


class TableError(RatchetError):
    """A table that breaks its schema or its rules; the column or row is named."""


class DamagedArtifact(RatchetError):
    """Stored bytes that no longer match their manifest."""


class StageFailed(RatchetError):
    """A stage that could not finish; the cause is chained or named."""


class ScorerFailed(StageFailed):
    """A scorer raised, or returned something that is not one score per completion; the row is named."""


class FeatureFailed(StageFailed):
    """A feature raised, or returned something that is not one number or None per row; the feature is named."""


class ReferenceMismatch(StageFailed):
    """The reference in the trainer's memory is not the checkpoint the round names."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest known one, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""
