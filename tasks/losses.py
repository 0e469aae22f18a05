"""Our one DPOTrainer subclass: TRL's losses by their own names, on rows that are token ids already."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def pair_trainer() -> type[Any]:
    """The subclass (made on first use: importing TRL takes seconds). Rows are prompt_ids, chosen_ids, rejected_ids."""
    from trl import DPOTrainer

    class PairTrainer(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # sampled ids are used as they are; stock TRL would tokenise texts and append end-of-sequence

    return PairTrainer
