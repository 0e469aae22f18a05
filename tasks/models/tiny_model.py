"""A tiny, randomly initialised model for the built-in addition problems, saved as a Hugging Face directory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from data.worlds.addition import ALPHABET
from tasks.run.work import StageSettings, Work

VERSION = 1
LIBRARIES = ("torch", "transformers", "tokenizers")

# One message is one line of plain text: the prompt itself.
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


class Settings(StageSettings):
    hidden: int
    layers: int


def tiny_model(work: Work) -> None:
    """A Qwen3-shaped model (109k parameters at the defaults) and a 32-character tokenizer.

    Head size 32 is the smallest that vLLM accepts.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    s: Settings = work.settings
    heads = max(1, s.hidden // 32)
    config = Qwen3Config(
        vocab_size=len(ALPHABET) + 3,
        hidden_size=s.hidden,
        intermediate_size=3 * s.hidden,
        num_hidden_layers=s.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(work.seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 1
    model.save_pretrained(work.out)
    write_tokenizer(work.out, ALPHABET)


def write_tokenizer(folder: Path, alphabet: Sequence[str]) -> None:
    """A tokenizer with one token per entry of `alphabet`: characters, and tags such as `</think>`. Others become <unk>."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", "<unk>", *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pattern = "|".join([*(re.escape(token) for token in alphabet if len(token) > 1), "."])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=256
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
