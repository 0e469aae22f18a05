"""One gradient per optimizer step, however the step's rows are divided into micro-batches and among processes.

The Trainer averages the means of micro-batches. That is the mean over a step's rows only if all micro-batches are equally long,
and it is never the mean over its tokens. `train.accumulate` is the device's choice, so a loss must not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Shares:
    """What a micro-batch holds of its step, times the number of micro-batches: 1.0 where all hold the same.

    The Trainer divides the loss of a micro-batch by their number. A mean over the rows of a micro-batch times `rows` thus
    becomes its part of the mean over the rows of the step; so does a mean over tokens times `tokens`.
    """

    rows: float = 1.0
    tokens: float = 1.0


@dataclass(frozen=True)
class Counted:
    """How many rows a micro-batch has, and over how many tokens its NLL term is averaged (0 = it has none)."""

    rows: Callable[[Batch], int]
    tokens: Callable[[Batch], int] = lambda batch: 0


def chosen_tokens(batch: Batch) -> int:
    """Tokens of the chosen completions in a batch of TRL's DPOTrainer, whose first half are the chosen sides."""
    mask = batch["completion_mask"]
    return int(mask[: len(mask) // 2, 1:].sum())


COUNTED: dict[str, Counted] = {  # by the trainer of data.recipe.loss.KINDS; SFT divides by the tokens of the step by itself
    "dpo": Counted(lambda batch: len(batch["completion_mask"]) // 2, chosen_tokens),
    "kto": Counted(lambda batch: len(batch["label"])),
    "listwise": Counted(lambda batch: len(batch["sizes"])),
    # ORPO's NLL is over the prompt too (TRL, as in its authors' code), CPO's over the completion.
    "orpo": Counted(lambda b: len(b["chosen_labels"]), lambda b: int(b["chosen_attention_mask"][:, 1:].sum())),
    "reward": Counted(lambda batch: len(batch["input_ids"]) // 2),
    "cpo": Counted(lambda b: len(b["chosen_labels"]), lambda b: int((b["chosen_labels"][:, 1:] != -100).sum())),
}


def over_whole_batches(kind: type[Any], trainer: str) -> type[Any]:
    """The trainer class `kind` with losses that are means over an optimizer step. `trainer` is its name in COUNTED."""
    import torch

    counted = COUNTED[trainer]

    class WholeBatches(kind):  # type: ignore[misc]
        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            batches, items = super().get_batch_samples(*args, **kwargs)
            own = [sum(map(count, batches)) for count in (counted.rows, counted.tokens)]
            everywhere = self.accelerator.gather(torch.tensor([own], device=self.args.device)).sum(0)
            self.in_step = [max(1, int(number)) for number in everywhere]
            self.micro_batches = len(batches) * self.args.world_size
            return batches, items

        def shares(self, batch: Batch) -> Shares:
            """Of a micro-batch in training. A validation batch stands for itself."""
            if not self.model.training:
                return Shares()
            rows, tokens = self.in_step
            return Shares(counted.rows(batch) * self.micro_batches / rows, counted.tokens(batch) * self.micro_batches / tokens)

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            shares = self.shares(inputs)
            result = super().compute_loss(model, inputs, return_outputs, **kwargs)
            loss, *rest = result if isinstance(result, tuple) else (result,)
            return (loss * shares.rows, *rest) if return_outputs else loss * shares.rows

    WholeBatches.__name__ = kind.__name__
    return WholeBatches


def with_nll_over_tokens(kind: type[Any]) -> type[Any]:
    """TRL's ORPO or CPO trainer, whose NLL term is the mean over the tokens of a step too."""

    class NllOverTokens(kind):  # type: ignore[misc]
        def concatenated_forward(self, model: Any, batch: Any) -> Any:
            outputs, shares = super().concatenated_forward(model, batch), self.shares(batch)
            nll = outputs[4] * (shares.tokens / shares.rows)  # compute_loss multiplies the whole loss by shares.rows
            return (*outputs[:4], nll, *outputs[5:])

    NllOverTokens.__name__ = kind.__name__
    return NllOverTokens
