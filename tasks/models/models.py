"""Checkpoints on disk and in memory: loading, prompt rendering, and teacher-forced log-probabilities."""

from __future__ import annotations

import ctypes
import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import ModelError

SHORT = 512  # positions
DAY = datetime.date(
    2024, 7, 26
)  # today, to templates that ask: Llama 3's own word where there is no clock. Rounds must not differ
CELLS = 1 << 30  # logits held at once: 4 GiB in float32, and as much again while they are summed
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


def inspect_checkpoint(path: Path) -> list[Path]:
    """The files of a Hugging Face directory that make a checkpoint.

    Raises:
        ModelError: missing, incomplete, or with weights only in a format that can run code when loaded.
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
            f"{path}: expected config.json of a Hugging Face model, found {', '.join(sorted(names)) or 'no files'}"
        )
    if not any(p.suffix == ".safetensors" for p in files):
        raise ModelError(f"{path}: expected weights as .safetensors (pickled weights can run code); convert them first")
    if not names & set(TOKENIZER_FILES):
        raise ModelError(f"{path}: expected a tokenizer (one of {', '.join(TOKENIZER_FILES)}), found none")
    return files


def load_tokenizer(path: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer with a pad token and an end-of-sequence token.

    Raises:
        ModelError: it has no end-of-sequence token, so no completion could ever finish.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: expected a tokenizer with an end-of-sequence token, found none")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def stop_tokens(path: Path, tokenizer: Any, trust_remote_code: bool = False) -> list[int]:
    """The tokens that end a completion: the tokenizer's end of sequence and what the checkpoint's generation settings add."""
    from transformers import AutoConfig, GenerationConfig

    if (path / "generation_config.json").exists():
        settings = GenerationConfig.from_pretrained(path, local_files_only=True)
    else:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
        settings = GenerationConfig.from_model_config(config)
    known = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    return sorted({tokenizer.eos_token_id, *(stop for stop in known if stop is not None)})


def load_model(path: Path, device: str, dtype: str, trust_remote_code: bool = False, four_bit: bool = False) -> Any:
    """The causal language model in evaluation mode, from safetensors only. With `four_bit` every linear layer but the head is
    held in NF4, doubly quantized (arXiv 2305.14314), and only adapters on it can be trained."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    common = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    config = AutoConfig.from_pretrained(path, **common)
    # On a CPU plain attention decodes short sequences a fifth faster; on long ones its memory grows with their square.
    short = device == "cpu" and (getattr(config, "max_position_embeddings", None) or SHORT + 1) <= SHORT
    attention = {"attn_implementation": "eager"} if short else {}
    held = _in_four_bits(device) if four_bit else {}
    model = AutoModelForCausalLM.from_pretrained(
        path, config=config, dtype=getattr(torch, dtype), use_safetensors=True, **attention, **held, **common
    )
    if device == "cpu":
        keep_freed_memory()
        for module in model.modules():  # some CPUs would pack weights anew, and round more, whenever nothing is trained
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    return (model if four_bit else model.to(device)).eval()


def _in_four_bits(device: str) -> dict[str, Any]:
    import torch
    from transformers import BitsAndBytesConfig

    compute = torch.float32 if device == "cpu" else torch.bfloat16  # as the paper computes on a GPU
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )
    place = torch.cuda.current_device() if device == "cuda" else device  # by its number: accelerate compares it with its own
    return {"quantization_config": config, "device_map": {"": place}}


def keep_freed_memory() -> None:
    """Tell glibc to keep what tensors free: it would give it back and fault it in again at every decoding step (a tenth of a
    round on a CPU). Elsewhere than glibc nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its largest
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def render(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a prompt: through the chat template where there is one, else the plain texts, one per line.

    Where the assistant speaks last, its text is a start to go on from: it stands as it would had it been sampled.
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
    """Token ids of a completion: the sampled ones as they are. A text that nobody here sampled is tokenised, and ends with the
    end-of-sequence token unless it is known to have been cut."""
    if completion["token_ids"]:
        return list(completion["token_ids"])
    ids = tokenizer(completion["text"], add_special_tokens=False)["input_ids"]
    return list(ids) if completion["finish_reason"] == "length" else [*ids, tokenizer.eos_token_id]


def completion_logprobs(
    model: Any, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int, batch: int = 64
) -> list[list[float]]:
    """Log-probabilities of each completion token given everything before it, at temperature 1.

    Args:
        sequences: (prompt ids, completion ids) per row.

    Returns:
        One list per row, as long as its completion, in nats.
    """
    import torch

    results: list[list[float]] = []
    vocabulary = model.get_input_embeddings().num_embeddings
    for rows in _within(sequences, batch, CELLS // vocabulary):
        width = max(len(p) + len(c) for p, c in rows)
        ids = torch.full((len(rows), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, (prompt, completion) in enumerate(rows):
            length = len(prompt) + len(completion)
            ids[index, :length] = torch.tensor([*prompt, *completion])
            mask[index, :length] = 1
        with torch.inference_mode():
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, :-1].float()
            taken = ids[:, 1:, None].to(logits.device)
            logprobs = (logits.gather(2, taken)[..., 0] - logits.logsumexp(-1)).cpu()
        for index, (prompt, completion) in enumerate(rows):
            first = len(prompt) - 1
            results.append(logprobs[index, first : first + len(completion)].tolist())
    return results


def _within(
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]], rows: int, positions: int
) -> Iterator[list[tuple[Sequence[int], Sequence[int]]]]:
    """Batches in order, each of at most `rows` sequences and, padded to its longest, `positions`; one too long stands alone."""
    held: list[tuple[Sequence[int], Sequence[int]]] = []
    width = 0
    for sequence in sequences:
        wider = max(width, sum(map(len, sequence)))
        if held and (len(held) == rows or (len(held) + 1) * wider > positions):
            yield held
            held, wider = [], sum(map(len, sequence))
        held, width = [*held, sequence], wider
    if held:
        yield held


def next_token_probabilities(
    model: Any, sequences: Sequence[Sequence[int]], tokens: Sequence[int], pad: int, batch: int = 64
) -> list[list[float]]:
    """The probability of each of `tokens` as the next one after each sequence, at temperature 1: one row per sequence."""
    import torch

    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))  # of like length together
    results: list[list[float]] = [[] for _ in sequences]
    for start in range(0, len(order), batch):
        members = order[start : start + batch]
        width = max(len(sequences[i]) for i in members)
        ids = torch.full((len(members), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, i in enumerate(members):  # on the left, so that every row ends in the last column
            ids[index, width - len(sequences[i]) :] = torch.tensor(sequences[i])
            mask[index, width - len(sequences[i]) :] = 1
        places = (mask.cumsum(1) - 1).clamp(min=0)
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
        with torch.inference_mode():
            last = model(**{name: value.to(model.device) for name, value in given.items()}, logits_to_keep=1).logits[:, -1]
            chosen = last.float().softmax(-1)[:, list(tokens)].cpu().tolist()
        for i, row in zip(members, chosen, strict=True):
            results[i] = row
    return results
