"""One error type per kind of mistake. Each message says what was expected, what was found and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from data.redact import redacted


class RatchetError(Exception):
    """An error that Ratchet raises on purpose. `exit_code` is the exit code of the command line.

    Secrets are left out of the message, since messages reach the terminal, manifests, Prefect and MLflow.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(message))


class WrongUse(RatchetError):
    """The user asked for something that cannot be done. Nothing was started."""

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
    """A prompts file that is missing, lacks a column or has a bad row, which is named."""


class LogError(WrongUse):
    """A training log that is missing, has a bad row (which is named) or none of the columns."""


class ModelError(WrongUse):
    """A model directory that is missing, incomplete or not safetensors."""


class EndpointError(WrongUse):
    """A server that cannot answer any request: a wrong address, an unknown model, a wrong or missing key."""


class HomeError(WrongUse):
    """The home directory cannot be written, has too little free space, or is in use by another command."""


class CampaignError(WrongUse):
    """A campaign name that does not exist, is malformed or belongs to another recipe, or a campaign that is running."""


class DamagedCampaign(CampaignError):
    """A file of a campaign that cannot be read, or is missing between others. The message says what can be done about it."""


class PortTaken(WrongUse):
    """A port on which another program listens."""


class ServiceFailed(RatchetError):
    """A service (Prefect's server or worker, MLflow's UI) that did not start, or ended; its log says why."""


class LimitReached(RatchetError):
    """Memory, open files, processes or the size of a file reached a limit of this machine or of `ulimit`."""


class TableError(RatchetError):
    """A table that breaks its schema or its rules. The column or row is named."""


class DamagedArtifact(RatchetError):
    """Stored bytes that no longer match their manifest."""


class StageFailed(RatchetError):
    """A stage that could not finish. The cause is chained or named."""


class ScorerFailed(StageFailed):
    """A scorer that raised, or did not return one score per completion. The row is named."""


class FeatureFailed(StageFailed):
    """A feature that raised, or did not return one number or None per row. The feature is named."""


class ReferenceMismatch(StageFailed):
    """The reference in the trainer's memory is not the checkpoint that the round names."""


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown word: the closest of the names that exist, or nothing."""
    closest = difflib.get_close_matches(word, list(names), n=1, cutoff=0.6)
    return f" (did you mean '{closest[0]}'?)" if closest else ""
