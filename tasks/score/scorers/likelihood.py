"""Scorers that read a model's probabilities instead of sampling from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.models import models
from tasks.score.scorers import Row, Score

LIBRARIES = {"mean_logprob": ("torch", "transformers", "tokenizers")}
VERSIONS = {"mean_logprob": 2}  # 2: a completion without tokens has a status that says so


class mean_logprob:
    """The mean log-probability per token, in nats, of the completion under the model of score.checkpoint.

    With the policy as the model this is self-rewarding by likelihood ("sharpening", https://arxiv.org/abs/2412.01951, which
    uses the sum). It can only make the policy more certain of what it prefers already. A completion that was cut at the token
    limit is scored as it is.

    The best of n by this score is mostly short. A mean over few tokens varies more than one over many, so the highest of n is
    often one over few, even where no text deserves more than another. `check` says so; `length_gap` of a round shows it.
    """

    def __init__(
        self, *, checkpoint: Path, device: str = "cpu", dtype: str = "float32", trust_remote_code: bool = False
    ) -> None:
        self.tokenizer = models.load_tokenizer(checkpoint, trust_remote_code)
        self.model = models.load_model(checkpoint, device, dtype, trust_remote_code)

    def __call__(self, prompts: Sequence[Row], completions: Sequence[Row]) -> list[Score]:
        sequences = [
            (models.render(self.tokenizer, prompt["messages"]), models.completion_ids(self.tokenizer, completion))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        distinct = list(dict.fromkeys((tuple(p), tuple(c)) for p, c in sequences))
        order = sorted(
            range(len(distinct)), key=lambda i: len(distinct[i][0]) + len(distinct[i][1])
        )  # so that batches need little padding
        values = models.completion_logprobs(self.model, [distinct[i] for i in order], self.tokenizer.pad_token_id)
        mean = {distinct[i]: sum(v) / len(v) if v else None for i, v in zip(order, values, strict=True)}
        found = [mean[tuple(p), tuple(c)] for p, c in sequences]
        return [Score(value, "no_tokens" if value is None else "ok") for value in found]
