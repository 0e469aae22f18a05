"""A random Llama-shaped model with a byte-level BPE tokenizer and a ChatML template, built on the spot: nothing to download.

`python -m tests.tiny_llama DIR` writes one. It knows nothing; it is for running real inputs through the real code.
"""

import random
import sys
from pathlib import Path

SPECIAL = ["<|pad|>", "<|im_end|>", "<|im_start|>"]  # ids 0, 1, 2
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

NAMES = ["Natalia", "Weng", "Betty", "Julie", "James", "Mark", "Albert", "Ken", "Alexis", "Tina"]
THINGS = ["apples", "clips", "pages", "letters", "flowers", "pizzas", "crayons", "stickers", "eggs", "books"]
PLACES = ["the market", "school", "the farm", "her office", "the library", "a bakery"]
STORIES = [
    "{a} has {x} {t}. {b} gives {a} {y} more {t}. How many {t} does {a} have now?",
    "{a} sold {x} {t} at {p} in April, and then half as many in May. How many {t} did {a} sell altogether?",
    "Every day {a} buys {x} {t} at {p} for ${y} each. How much does {a} spend in a week?",
    "There are {x} boxes of {t} at {p}. Each box holds {y} {t}. If {a} takes {y} of them, how many {t} are left?",
]
SOLUTIONS = [
    "{a} starts with {x} {t} and gets {y}, so {x} + {y} = <<{x}+{y}={s}>>{s} {t}.\n#### {s}",
    "First multiply: {x} * {y} = <<{x}*{y}={m}>>{m}. The answer is \\boxed{{{m}}}.",
    "Let's think step by step. {b} counted {m} {t}, then lost {x}. Therefore the total is {s}.\n#### {s}",
]


def lines(count: int = 600, seed: int = 0) -> list[str]:
    """Word problems and worked solutions in the manner of GSM8K."""
    draw = random.Random(seed)
    out = []
    for number in range(count):
        (a, b), x, y = draw.sample(NAMES, 2), draw.randint(2, 99), draw.randint(2, 99)
        template = draw.choice(STORIES if number % 2 else SOLUTIONS)
        words = {"t": draw.choice(THINGS), "p": draw.choice(PLACES), "x": x, "y": y, "s": x + y, "m": x * y}
        out.append(template.format(a=a, b=b, **words))
    return out


def make(folder: Path, vocab: int = 1000, seed: int = 0) -> Path:
    """A Hugging Face directory; the same arguments give the same bytes.

    Raises:
        ValueError: `vocab` cannot hold the 256 bytes and the special tokens.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    if vocab < 256 + len(SPECIAL):
        raise ValueError(f"vocab: expected at least {256 + len(SPECIAL)}, found {vocab}")
    _tokenizer(folder, vocab)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=1)
    model.save_pretrained(folder)
    return folder


def _tokenizer(folder: Path, vocab: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # every byte, so that no text is unknown
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
        model_max_length=2048,
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
