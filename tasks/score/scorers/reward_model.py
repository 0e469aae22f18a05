"""Reward models: any sequence-classification checkpoint with one output, from a folder or trained in the round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from data.errors import ModelError
from tasks.models import models
from tasks.run.work import chunks
from tasks.score.scorers import Row, Score

LIBRARIES = {"reward_model": ("torch", "transformers", "tokenizers")}


class reward_model:
    """The unbounded output of a sequence-classification model for prompt and completion. score.checkpoint names the model.

    Bradley-Terry reward models: https://arxiv.org/abs/2203.02155. The model's own tokenizer is used. A completion that was cut
    gets no end-of-sequence token. A sequence of more than `max_length` tokens has status too_long and no value. If
    score.checkpoint = "trained" and there were too few pairs to fit, the status is not_fitted and the round has no reward.
    """

    def __init__(
        self,
        *,
        checkpoint: Path | None = None,
        device: str = "cpu",
        trust_remote_code: bool = False,
        batch: Annotated[int, Ge(1)] = 32,
        max_length: Annotated[int, Ge(8)] = 4096,
    ) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification

        self.batch, self.max_length, self.fitted = batch, max_length, checkpoint is not None
        if checkpoint is None:
            return
        self.tokenizer = models.load_tokenizer(checkpoint, trust_remote_code)
        self.model = AutoModelForSequenceClassification.from_pretrained(
            checkpoint,
            dtype=torch.float32,  # from 4 on bfloat16 has steps of 1/32, which would make ties and change orders
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
        )
        if self.model.config.num_labels != 1:
            raise ModelError(
                f"{checkpoint}: expected a reward model with one output, found {self.model.config.num_labels}; "
                "set score.checkpoint to another model"
            )
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model.to(device).eval()

    def __call__(self, prompts: Sequence[Row], completions: Sequence[Row]) -> list[Score]:
        if not self.fitted:
            return [Score(None, "not_fitted")] * len(completions)
        sequences = [
            models.render(self.tokenizer, prompt["messages"])
            + models.completion_ids(self.tokenizer, completion | {"token_ids": None})
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        scores = [Score(None, "too_long")] * len(sequences)
        fitting = sorted((i for i, ids in enumerate(sequences) if len(ids) <= self.max_length), key=lambda i: len(sequences[i]))
        for members in chunks(len(fitting), self.batch):
            batch = [fitting[member] for member in members]
            for i, value in zip(batch, self._values([sequences[i] for i in batch]), strict=True):
                scores[i] = Score(value)
        return scores

    def _values(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        import torch

        width = max(map(len, sequences))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in sequences])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in sequences])
        with torch.inference_mode():
            logits = self.model(input_ids=ids.to(self.model.device), attention_mask=mask.to(self.model.device)).logits
        values: list[float] = logits[:, 0].float().cpu().tolist()
        return values
