"""Checkpoints on disk and in memory: loading, prompt rendering, and teacher-forced log-probabilities."""

from __future__ import annotations

import ctypes
import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import ModelError

SHORT = 512  # positions; on a CPU, models of at most this length use plain attention
# The date for chat templates that print today's, so that rounds do not differ. Llama 3's template has it as its default.
DAY = datetime.date(2024, 7, 26)
CELLS = 1 << 30  # logits in memory at once: 4 GiB in float32, and as much again while they are summed
KL_CELLS = 1 << 24  # logits of which the KL is computed at once: 64 MiB for each of its five terms
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


def inspect_checkpoint(path: Path) -> list[Path]:
    """The files of a Hugging Face directory that belong to its checkpoint.

    Raises:
        ModelError: the directory is missing or incomplete, or has weights only in a format that can run code when loaded.
    """
    if not path.is_dir():
        raise ModelError(f"expected a model directory, found nothing at '{path}'; pass --model DIR (nothing is downloaded)")
    files = [
        p
        for p in sorted(path.iterdir())
        if p.is_file() and p.suffix in (".json", ".safetensors", ".model", ".txt", ".jinja", ".py")
    ]
    names = {p.name for p in files}
    if "config.json" not in names:
        raise ModelError(
            f"{path}: expected config.json of a Hugging Face model, found {', '.join(sorted(names)) or 'no files'}; "
            "pass the directory that save_pretrained wrote"
        )
    if not any(p.suffix == ".safetensors" for p in files):
        raise ModelError(f"{path}: expected weights as .safetensors (pickled weights can run code); convert them first")
    if not names & set(TOKENIZER_FILES):
        raise ModelError(f"{path}: expected a tokenizer (one of {', '.join(TOKENIZER_FILES)}), found none; save it there")
    return files


def load_tokenizer(path: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer with a pad token and an end-of-sequence token.

    Raises:
        ModelError: it has no end-of-sequence token, so that no completion could ever end.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: expected a tokenizer with an end-of-sequence token, found none; set its eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def stop_tokens(path: Path, tokenizer: Any, trust_remote_code: bool = False) -> list[int]:
    """The tokens that end a completion: the tokenizer's end of sequence, and those in the checkpoint's generation settings."""
    from transformers import AutoConfig, GenerationConfig

    if (path / "generation_config.json").exists():
        settings = GenerationConfig.from_pretrained(path, local_files_only=True)
    else:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
        settings = GenerationConfig.from_model_config(config)
    stops = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    return sorted({tokenizer.eos_token_id, *(stop for stop in stops if stop is not None)})


def load_model(path: Path, device: str, dtype: str, trust_remote_code: bool = False, four_bit: bool = False) -> Any:
    """The causal language model in evaluation mode, from safetensors only.

    With `four_bit` every linear layer except the output layer is loaded in NF4 with double quantization (arXiv 2305.14314).
    Then only adapters can be trained.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    common = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    config = AutoConfig.from_pretrained(path, **common)
    # On a CPU plain attention decodes short sequences a fifth faster. Its memory grows with the square of the length.
    short = device == "cpu" and (getattr(config, "max_position_embeddings", None) or SHORT + 1) <= SHORT
    attention = {"attn_implementation": "eager"} if short else {}
    quantized = _in_four_bits(device) if four_bit else {}
    model = AutoModelForCausalLM.from_pretrained(
        path, config=config, dtype=getattr(torch, dtype), use_safetensors=True, **attention, **quantized, **common
    )
    if device == "cpu":
        keep_freed_memory()
        for module in model.modules():  # else some CPUs pack the weights again, and round more, outside training
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    return (model if four_bit else model.to(device)).eval()


def _in_four_bits(device: str) -> dict[str, Any]:
    import torch
    from transformers import BitsAndBytesConfig

    compute = torch.float32 if device == "cpu" else torch.bfloat16  # on a GPU as in the paper
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )
    target = torch.cuda.current_device() if device == "cuda" else device  # a number: accelerate compares it with its own
    return {"quantization_config": config, "device_map": {"": target}}


def keep_freed_memory() -> None:
    """Tell glibc to keep the memory that tensors free. Other C libraries are left as they are.

    Otherwise glibc returns the memory to the system and gets it again at every decoding step, a tenth of a round on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its largest
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def render(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a prompt: by the chat template if the tokenizer has one, else of the plain texts, one per line.

    If the last message is the assistant's, its text is the start of the completion. It is tokenised like a sampled text.
    """
    if len(messages) > 1 and messages[-1]["role"] == "assistant":
        start = tokenizer(messages[-1]["content"], add_special_tokens=False)["input_ids"]
        return [*render(tokenizer, messages[:-1]), *start]
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False, strftime_now=DAY.strftime
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # the template wrote the special tokens already
    else:
        ids = tokenizer("\n".join(m["content"] for m in messages))["input_ids"]
    return list(ids)


def completion_ids(tokenizer: Any, completion: Mapping[str, Any]) -> list[int]:
    """Token ids of a completion. Sampled ids are used as they are; a text without ids is tokenised.

    A tokenised text ends with the end-of-sequence token, unless its finish reason is "length".
    """
    if completion["token_ids"]:
        return list(completion["token_ids"])
    ids = tokenizer(completion["text"], add_special_tokens=False)["input_ids"]
    return list(ids) if completion["finish_reason"] == "length" else [*ids, tokenizer.eos_token_id]


def completion_logprobs(
    model: Any, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int, batch: int = 64
) -> list[list[float]]:
    """Log-probability of each completion token given all tokens before it, at temperature 1.

    Args:
        sequences: (prompt ids, completion ids) per row.

    Returns:
        One list per row, as long as its completion, in nats.
    """
    import torch

    results: list[list[float]] = []
    for rows in _batches(sequences, batch, CELLS // vocabulary(model)):
        ids, mask = _padded(rows, pad)
        with torch.inference_mode():
            results += _of_completions(_of_tokens(_logits(model, ids, mask), ids), rows)
    return results


def completion_kl(
    model: Any, other: Any, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int, batch: int = 64
) -> tuple[list[list[float]], list[list[float]]]:
    """The log-probabilities of the other model, as `completion_logprobs`, and the KL from it, per completion token and row.

    The KL is that of the two distributions over the whole vocabulary: sum of p (log p - log q), p of `model`, in nats. Both
    models are in memory; their logits together take no more than those of one model in `completion_logprobs`.
    """
    import torch

    logprobs: list[list[float]] = []
    divergences: list[list[float]] = []
    for rows in _batches(sequences, batch, CELLS // 2 // vocabulary(model)):
        ids, mask = _padded(rows, pad)
        with torch.inference_mode():
            ours, theirs = _logits(model, ids, mask), _logits(other, ids, mask)
            logprobs += _of_completions(_of_tokens(theirs, ids), rows)
            divergences += _of_completions(full_kl(ours, theirs).cpu(), rows)
    return logprobs, divergences


def full_kl(ours: Any, theirs: Any, cells: int = KL_CELLS) -> Any:
    """KL of softmax(ours) from softmax(theirs): logits of rows x positions x vocabulary to nats of rows x positions.

    A few positions at a time, at most `cells` logits (at least one position): no further copy of all logits is made.
    """
    import torch

    positions = max(1, cells // ours.shape[-1])
    rows = [
        torch.cat([_kl_of_positions(p, q) for p, q in zip(a.split(positions), b.split(positions), strict=True)])
        for a, b in zip(ours, theirs, strict=True)
    ]
    return torch.stack(rows)


def _kl_of_positions(ours: Any, theirs: Any) -> Any:
    log_p, log_q = ours.log_softmax(-1), theirs.log_softmax(-1)
    p = log_p.exp()
    each = (p * (log_p - log_q)).masked_fill(p == 0, 0.0)  # a token that the model cannot sample counts as nothing
    return each.sum(-1).clamp(min=0.0)  # rounding


def vocabulary(model: Any) -> int:
    size: int = model.get_input_embeddings().num_embeddings
    return size


def _padded(rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int) -> tuple[Any, Any]:
    """Token ids, padded on the right to the longest row, and the attention mask."""
    import torch

    width = max(len(p) + len(c) for p, c in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, (prompt, completion) in enumerate(rows):
        length = len(prompt) + len(completion)
        ids[index, :length] = torch.tensor([*prompt, *completion])
        mask[index, :length] = 1
    return ids, mask


def _logits(model: Any, ids: Any, mask: Any) -> Any:
    """The logits of every token but the first, in float32."""
    return model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, :-1].float()


def _of_tokens(logits: Any, ids: Any) -> Any:
    """The log-probability of every token but the first."""
    targets = ids[:, 1:, None].to(logits.device)
    return (logits.gather(2, targets)[..., 0] - logits.logsumexp(-1)).cpu()


def _of_completions(values: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
    """Of values of every token but the first, those of the completions."""
    return [values[i, len(p) - 1 : len(p) - 1 + len(c)].tolist() for i, (p, c) in enumerate(rows)]


def _batches(
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]], rows: int, positions: int
) -> Iterator[list[tuple[Sequence[int], Sequence[int]]]]:
    """Batches in order, of at most `rows` sequences and, padded to the longest, at most `positions` positions.

    A sequence that is longer than `positions` is a batch of its own.
    """
    batch: list[tuple[Sequence[int], Sequence[int]]] = []
    width = 0
    for sequence in sequences:
        wider = max(width, sum(map(len, sequence)))
        if batch and (len(batch) == rows or (len(batch) + 1) * wider > positions):
            yield batch
            batch, wider = [], sum(map(len, sequence))
        batch, width = [*batch, sequence], wider
    if batch:
        yield batch


def next_token_probabilities(
    model: Any, sequences: Sequence[Sequence[int]], tokens: Sequence[int], pad: int, batch: int = 64
) -> list[list[float]]:
    """The probability of each of `tokens` as the next token after each sequence, at temperature 1. One row per sequence."""
    import torch

    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))  # so that a batch has similar lengths
    results: list[list[float]] = [[] for _ in sequences]
    for start in range(0, len(order), batch):
        members = order[start : start + batch]
        width = max(len(sequences[i]) for i in members)
        ids = torch.full((len(members), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, i in enumerate(members):  # pad on the left, so that every row ends in the last column
            ids[index, width - len(sequences[i]) :] = torch.tensor(sequences[i])
            mask[index, width - len(sequences[i]) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        with torch.inference_mode():
            last = model(**{name: value.to(model.device) for name, value in inputs.items()}, logits_to_keep=1).logits[:, -1]
            probabilities = last.float().softmax(-1)[:, list(tokens)].cpu().tolist()
        for i, row in zip(members, probabilities, strict=True):
            results[i] = row
    return results
