"""Losses that TRL lacks, as plain functions of log-probabilities, and the two trainers that use them.

Per-pair weights, soft labels, ODPO's offset, R-DPO's length term and the NLL per completion live in one DPOTrainer subclass:
without these terms it is stock TRL. RRHF, PRO and LiPO-lambda train on ranked completions. Log-probabilities are sums in nats.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from data.recipe.loss import Loss

PAIR_COLUMNS = ("weight", "margin", "certainty")


def pair_loss(loss: Loss, h_chosen: Any, h_rejected: Any, chosen: Any, lengths: tuple[Any, Any], row: Mapping[str, Any]) -> Any:
    """The sigmoid loss with our terms, averaged over the pairs of a batch. Tensors have the shape (pairs,).

    z = beta (h_w - h_l) + length (len_w - len_l) - offset log(margin)
    L = weight [ certainty (-log s(z)) + (1 - certainty) (-log s(-z)) + nll (-log pi(y_w)) / len_w ]

    h is log pi - log pi_ref. Sources: DPO arXiv 2305.18290, conservative DPO (certainty = 1 - smoothing) and CREAM 2410.12735
    (certainty = rank agreement), R-DPO 2403.19159 (length), ODPO 2402.10571 (offset), IRPO 2404.19733 (nll), ScPO 2411.04109
    (weight = vote margin, on both terms).
    """
    from torch.nn.functional import logsigmoid

    long, short = lengths
    z = loss.beta * (h_chosen - h_rejected) + loss.length * (long - short) - loss.offset * row["margin"].log()
    preference = -row["certainty"] * logsigmoid(z) - (1 - row["certainty"]) * logsigmoid(-z)
    each = loss.weights["sigmoid"] * preference - loss.terms.get("nll", 0.0) * chosen / long
    return (row["weight"] * each).mean()


def rrhf(logps: Any, lengths: Any, ranks: Any) -> Any:
    """Sum over pairs of max(0, p_worse - p_better), p the mean log-probability per token. RRHF, arXiv 2304.05302."""
    from torch import relu

    p = logps / lengths
    better = ranks[:, None] < ranks[None, :]
    return (relu(p[None, :] - p[:, None]) * better).sum()


def pro(logps: Any, lengths: Any, ranks: Any) -> Any:
    """Each completion against those ranked below it: sum of -log exp(p_k) / (exp(p_k) + sum of worse exp(p_i)).

    p is the mean log-probability per token; without the paper's temperature by reward gap. PRO, arXiv 2306.17492.
    """
    import torch

    p, total = logps / lengths, logps.new_zeros(())
    for k in range(len(p)):
        worse = p[ranks > ranks[k]]
        if len(worse):
            total = total + torch.cat([p[k : k + 1], worse]).logsumexp(0) - p[k]
    return total


def lipo(h: Any, ranks: Any, beta: float) -> Any:
    """Sum over pairs of Delta log(1 + exp(-(s_i - s_j))), s = beta h, i ranked better. LiPO-lambda, arXiv 2402.01878.

    Delta = |G_i - G_j| |1/D(i) - 1/D(j)|, G = 2^psi - 1 with psi from 1 (best rank) to 0 (worst), D = log(1 + place). The
    place of a completion is its rank by its score s.
    """
    import torch

    s = beta * h
    psi = 1 - ranks.float() / ranks.max()
    gain = 2**psi - 1
    place = s.detach().argsort(descending=True).argsort() + 1
    discount = 1 / torch.log1p(place.float())
    delta = (gain[:, None] - gain[None, :]).abs() * (discount[:, None] - discount[None, :]).abs()
    better = ranks[:, None] < ranks[None, :]
    return (delta * torch.nn.functional.softplus(s[None, :] - s[:, None]) * better).sum()


@functools.cache
def pair_trainer() -> type[Any]:
    """The DPOTrainer subclass, for rows of tasks.train.rows.of_pairs. Made on first use: importing TRL needs seconds."""
    import torch
    from trl import DPOTrainer

    from tasks.train.whole_batch import chosen_tokens, over_whole_batches

    class PairTrainer(DPOTrainer):  # type: ignore[misc]
        def __init__(self, *, loss: Loss, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.loss = loss
            self.data_collator: Any = _with_columns(self.data_collator)

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # sampled ids are used as they are; stock TRL would tokenise texts and append end-of-sequence

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            row = {name: inputs.pop(name) for name in PAIR_COLUMNS if name in inputs}
            if row:  # our forward pass of the reference, handed to TRL so that it does not run a second one
                reference = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
                inputs |= {"ref_chosen_logps": reference[0], "ref_rejected_logps": reference[1]}
            self.precompute_ref_logps = bool(row)
            outputs: list[Any] = []

            def forward(**batch: Any) -> Any:
                outputs.append(model(**batch))
                return outputs[-1]

            result = super().compute_loss(forward, inputs, *args, **kwargs)
            width = inputs["completion_mask"].shape[1] - 1
            chosen, rejected = outputs[0].log_probs[:, -width:].sum(1).chunk(2)
            # The order of log pi itself; TRL's rewards/accuracies is that of log pi - log pi_ref (arXiv 2405.19534).
            ranked = self.accelerator.gather((chosen > rejected).float()).mean().item()
            self._metrics["train" if self.model.training else "eval"]["ranking_accuracy"].append(ranked)
            if "sft" in self.loss.terms:
                return self._with_sft(result, chosen, inputs)
            if not row:
                return result
            lengths = inputs["completion_mask"].sum(1).float().chunk(2)
            h_chosen, h_rejected = chosen - reference[0], rejected - reference[1]
            ours = pair_loss(self.loss, h_chosen, h_rejected, chosen, lengths, row)
            return (ours, result[1]) if isinstance(result, tuple) else ours

        def _with_sft(self, result: Any, chosen: Any, inputs: Any) -> Any:
            """With TRL's term `sft`: mean of -log pi over the chosen tokens of the step, not of the micro-batch."""
            shares = self.shares(inputs)
            nll = -chosen.sum() / chosen_tokens(inputs)
            loss, *rest = result if isinstance(result, tuple) else (result,)
            loss = loss + self.loss.terms["sft"] * nll * (shares.tokens / shares.rows)  # times shares.rows afterwards
            return (loss, *rest) if rest else loss

    def _with_columns(collate: Any) -> Any:
        def collator(examples: Sequence[Mapping[str, Any]]) -> Any:
            batch = collate(examples)
            for name in PAIR_COLUMNS:
                if name in examples[0]:
                    batch[name] = torch.tensor([example[name] for example in examples], dtype=torch.float32)
            return batch

        return collator

    return over_whole_batches(PairTrainer, "dpo")


@functools.cache
def list_trainer() -> type[Any]:
    """A Trainer for rows of tasks.train.rows.of_ranked: a batch is of prompts, and the loss is the mean over prompts."""
    import torch
    from transformers import Trainer

    from tasks.train.whole_batch import over_whole_batches

    class ListTrainer(Trainer):  # type: ignore[misc]
        model_accepts_loss_kwargs = False  # the loss is a mean over prompts, so accumulation averages it

        def __init__(self, *, loss: Loss, reference: Any, pad: int, **arguments: Any) -> None:
            super().__init__(**arguments, data_collator=functools.partial(_collate_lists, pad))
            self.loss, self.reference = loss, reference
            if reference is not None:
                self.reference = self.accelerator.prepare_model(reference, evaluation_mode=True)

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            logps, lengths = _sums(model, inputs)
            h = logps - self._of_reference(model, inputs) if self.loss.needs_reference else logps
            total, start = logps.new_zeros(()), 0
            for size in inputs["sizes"].tolist():
                group = slice(start, start + size)
                ranks, start = inputs["ranks"][group], start + size
                if self.loss.name == "lipo":
                    total = total + lipo(h[group], ranks, self.loss.beta)
                else:
                    total = total + {"rrhf": rrhf, "pro": pro}[self.loss.name](logps[group], lengths[group], ranks)
                total = total - self.loss.terms.get("nll", 0.0) * logps[group.start] / lengths[group.start]  # the best one
            mean = total / len(inputs["sizes"])
            return (mean, logps) if return_outputs else mean

        def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            """Overridden because the Trainer looks for `labels` to decide whether there is a loss, and these rows have none."""
            with torch.no_grad():
                return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

        def _of_reference(self, model: Any, inputs: Any) -> Any:
            """Log-probabilities by the reference; if adapters start from it, it is the policy with adapters switched off."""
            off = contextlib.nullcontext() if self.reference else self.accelerator.unwrap_model(model).disable_adapter()
            with torch.no_grad(), off:
                return _sums(self.reference or model, inputs)[0]

    def _sums(model: Any, inputs: Any) -> tuple[Any, Any]:
        ids, mask = inputs["input_ids"], inputs["completion_mask"]
        logits = model(input_ids=ids, attention_mask=inputs["attention_mask"], use_cache=False).logits[:, :-1].float()
        token_logps = logits.gather(2, ids[:, 1:, None])[..., 0] - logits.logsumexp(-1)
        return (token_logps * mask[:, 1:]).sum(1), mask[:, 1:].sum(1).float()

    def _collate_lists(pad: int, examples: Sequence[Mapping[str, Any]]) -> Any:
        flat = [(e["prompt_ids"], c) for e in examples for c in e["completions"]]
        width = max(len(p) + len(c) for p, c in flat)
        ids = torch.full((len(flat), width), pad)
        attention, completion = torch.zeros_like(ids), torch.zeros_like(ids)
        for index, (p, c) in enumerate(flat):
            ids[index, : len(p) + len(c)] = torch.tensor([*p, *c])
            attention[index, : len(p) + len(c)] = 1
            completion[index, len(p) : len(p) + len(c)] = 1
        ranks = torch.tensor([rank for e in examples for rank in e["ranks"]])
        sizes = torch.tensor([len(e["completions"]) for e in examples])
        return {"input_ids": ids, "attention_mask": attention, "completion_mask": completion, "ranks": ranks, "sizes": sizes}

    return over_whole_batches(ListTrainer, "listwise")
