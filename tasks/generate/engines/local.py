"""The engine that samples with transformers, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.errors import StageFailed
from data.limits import ran_out
from tasks.generate.engines import Batch, Decoding, Engine, OutOfMemory, Row, Texts
from tasks.models.models import load_model
from tasks.run.work import give_back_memory

VERSIONS = {"transformers": 2}  # 2: ignores the checkpoint's own generation settings

BLOWN_UP = (
    "the model's logits are not finite numbers: expected finite logits, found NaN or infinity, so its training diverged; "
    "lower train.learning_rate, or use another model"
)


def transformers(checkpoint: Path, *, device: str = "cpu", dtype: str = "float32", trust_remote_code: bool = False) -> Engine:
    """Samples with `generate` of transformers. It runs everywhere, and is slow for large models."""
    return _Transformers(checkpoint, device, dtype, trust_remote_code)


class _Transformers(Texts):
    def __init__(self, checkpoint: Path, device: str, dtype: str, trust_remote_code: bool) -> None:
        from transformers import GenerationConfig

        super().__init__(checkpoint, trust_remote_code)
        self.tokenizer.padding_side = "left"
        self.model = load_model(checkpoint, device, dtype, trust_remote_code)
        self.model.generation_config = (
            GenerationConfig()
        )  # else the checkpoint's own, such as a repetition penalty, would apply

    def sample(self, batches: Sequence[Batch], decoding: Decoding) -> Iterator[tuple[int, list[Row]]]:
        for index, batch in enumerate(batches):
            lost = ""
            try:
                rows = self._sample_batch(batch.prompts, decoding, batch.seed)
            except (RuntimeError, MemoryError) as error:  # torch has no type of its own for a CPU without memory
                if ran_out(error) != "memory":
                    raise
                lost = str(error) or "no memory left"  # only the text: the error's frames hold the model and its cache
            if lost:
                raise OutOfMemory(lost)
            yield index, [{**row, "seed": batch.seed} for row in rows]

    def _sample_batch(self, prompts: Sequence[Row], decoding: Decoding, seed: int) -> list[Row]:
        """The rows of one padded batch, sampled from one stream of random numbers."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        ids = [ids for prompt in prompts for ids in [self.render(prompt)] * decoding.n]
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.model.device)
        greedy = decoding.temperature == 0
        settings = {} if greedy else {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
        config = GenerationConfig(
            do_sample=not greedy,
            max_new_tokens=decoding.max_tokens,
            eos_token_id=self.stops,
            pad_token_id=self.tokenizer.pad_token_id,
            **settings,
        )
        tap = _LogprobTap()
        with (
            torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []),
            torch.inference_mode(),
        ):
            torch.manual_seed(seed)
            out = self.model.generate(
                **batch,
                generation_config=config,
                logits_processor=LogitsProcessorList([tap]),
                stopping_criteria=StoppingCriteriaList([tap.after_token]),
            )
        new = out[:, batch["input_ids"].shape[1] :].tolist()
        return [self.row(tokens, logprobs) for tokens, logprobs in zip(new, tap.rows(), strict=True)]

    def close(self) -> None:
        del self.model
        give_back_memory()


class _LogprobTap:
    """Keeps the log-probability of each sampled token (at temperature 1), not those of the whole vocabulary.

    As a logits processor it sees the raw logits, because custom processors run before temperature and top-p. As a stopping
    criterion it sees the token that was sampled from them.
    """

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.logits: Any = None
        self.norms: Any = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.logits = scores.float()
        self.norms = self.logits.logsumexp(-1)
        if not self.norms.isfinite().all():  # greedy decoding would continue without an error
            raise StageFailed(BLOWN_UP)
        return scores

    def after_token(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        sampled = self.logits.gather(1, input_ids[:, -1:])[:, 0]
        self.steps.append(sampled - self.norms)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def rows(self) -> list[list[float]]:
        import torch

        rows: list[list[float]] = torch.stack(self.steps, dim=1).tolist()
        return rows
