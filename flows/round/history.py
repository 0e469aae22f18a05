"""The finished rounds of a campaign: their records, their checkpoints by role, and their artifacts by label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data.labels import Label
from data.store.campaign import Ref, Round
from data.store.store import Artifact, Store
from flows.round.artifacts import load


@dataclass(frozen=True)
class History:
    """The rounds of a campaign before the one that runs, and the store with their artifacts."""

    store: Store
    rounds: Sequence[Round]

    @property
    def first(self) -> Round:
        """Round 0, which measured checkpoint 0."""
        return self.rounds[0]

    @property
    def last(self) -> Round:
        return self.rounds[-1]

    @property
    def checkpoints_by_role(self) -> dict[str, Ref]:
        """By their names in a recipe: `previous` (the head), `base` (checkpoint 0) and `best` (the champion)."""
        return {"previous": self.last.head, "base": self.first.checkpoint, "best": self.last.champion}

    @property
    def judge_models(self) -> dict[str, Artifact]:
        """The campaign's checkpoints that a scorer can use as its model: `policy` (the head) and `base`."""
        return {"policy": self.load(self.last.head), "base": self.load(self.first.checkpoint)}

    def load(self, ref: Ref) -> Artifact:
        return load(self.store, ref)

    def artifact(self, finished: Round, label: Label) -> Artifact:
        return self.load(finished.artifacts[label.text])

    def of_first(self, label: Label) -> Artifact:
        return self.artifact(self.first, label)

    def with_labels(self, *labels: Label) -> Iterator[Round]:
        """The rounds that have all of these artifacts, the earliest first."""
        return (finished for finished in self.rounds if all(label.text in finished.artifacts for label in labels))

    def measured(self, digest: str, *labels: Label) -> Round:
        """The latest round that measured the checkpoint with this digest and has these artifacts.

        Raises:
            LookupError: there is no such round.
        """
        matching = [r for r in self.with_labels(*labels) if r.checkpoint.digest == digest]
        if not matching:
            raise LookupError(f"no finished round measured checkpoint {digest[:12]}")
        return matching[-1]
