"""Scorers of length and repetition, for use with the verifier in a weighted reward. Lengths are in tokens.

A reward of accuracy and format, as in DeepSeek-R1 or TinyZero (1 for right, 0.1 for well-formed), needs no further scorer.
Give weights to the verifier and to `format`. A completion without token ids has no value here.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Annotated

from annotated_types import Ge, Gt

from data.rows.completions import is_right
from tasks.score.scorers import Row, Score

Verdicts = Sequence[float | None]


def kimi_length(prompts: Sequence[Row], completions: Sequence[Row], *, verdicts: Verdicts) -> list[Score]:
    """From 0.5 for a prompt's shortest sample to -0.5 for its longest. A wrong sample never gains by being short.

    Kimi k1.5, https://arxiv.org/abs/2501.12599: 0.5 - (len - min) / (max - min) over the samples of the prompt, at most 0 for
    wrong ones. It is 0 if all samples have the same length.
    """

    def shape(length: int, right: bool, lengths: list[int], _: list[int]) -> float:
        low, high = min(lengths), max(lengths)
        value = 0.5 - (length - low) / (high - low) if high > low else 0.0
        return value if right else min(0.0, value)

    return _shaped_within_prompts(completions, verdicts, shape)


def efficient_length(
    prompts: Sequence[Row], completions: Sequence[Row], *, alpha: Annotated[float, Ge(0)], verdicts: Verdicts
) -> list[Score]:
    """1 - alpha * sigmoid(z) for a right sample, 0 for a wrong one. z is the length, standardised over the right samples.

    Training language models to reason efficiently, https://arxiv.org/abs/2502.04463 (alpha from 0 to 0.4). The value includes
    the accuracy, so give the verifier weight 0, and set gold = "train".
    """

    def shape(length: int, right: bool, _: list[int], among: list[int]) -> float:
        if not right:
            return 0.0
        spread = statistics.pstdev(among)
        z = (length - statistics.fmean(among)) / spread if spread else 0.0
        return 1.0 - alpha / (1.0 + math.exp(-z))

    return _shaped_within_prompts(completions, verdicts, shape)


def cosine_length(
    prompts: Sequence[Row],
    completions: Sequence[Row],
    *,
    max_tokens: Annotated[int, Ge(1)],
    right_short: float = 2.0,
    right_long: float = 1.0,
    wrong_short: float = -10.0,
    wrong_long: float = 0.0,
    exceeded: float = -10.0,
    verdicts: Verdicts,
) -> list[Score]:
    """Follows a cosine from `_short` at 0 tokens to `_long` at `max_tokens`. A cut or longer completion has `exceeded`.

    Demystifying long chain-of-thought, https://arxiv.org/abs/2502.03373, with the defaults of its run scripts. Among right
    completions short ones are best, among wrong ones they are worst.
    """

    def shape(row: Row, length: int, right: bool) -> float:
        if length > max_tokens or row["finish_reason"] == "length":
            return exceeded
        short, long = (right_short, right_long) if right else (wrong_short, wrong_long)
        return long + 0.5 * (short - long) * (1.0 + math.cos(math.pi * length / max_tokens))

    lengths = [_tokens(row) for row in completions]
    rows = zip(completions, lengths, verdicts, strict=True)
    return [_no_value(n, v) if n is None or v is None else Score(shape(row, n, is_right(v))) for row, n, v in rows]


def soft_overlong(
    prompts: Sequence[Row], completions: Sequence[Row], *, max_tokens: Annotated[int, Ge(1)], cache: Annotated[int, Gt(0)]
) -> list[Score]:
    """0 up to `max_tokens - cache` tokens, then linearly down to -1 at `max_tokens` and beyond.

    DAPO, https://arxiv.org/abs/2503.14476 (16,384 tokens and a cache of 4,096).
    """
    lengths = [_tokens(row) for row in completions]
    return [
        _no_value(length, 0.0) if length is None else Score(-min(1.0, max(0.0, (length - max_tokens + cache) / cache)))
        for length in lengths
    ]


def repetition(prompts: Sequence[Row], completions: Sequence[Row], *, n: Annotated[int, Ge(1)] = 3) -> list[Score]:
    """Minus the share of token `n`-grams that are repeats: 0 without repetition, near -1 in a loop.

    The scalar form of https://arxiv.org/abs/2502.03373, with n and sign as in TRL's get_repetition_penalty_reward. The paper's
    runs punish single tokens inside repeated 40-grams, which a reward per completion cannot do.
    """
    return [_repeats(row["token_ids"], n) for row in completions]


def _repeats(tokens: Sequence[int] | None, n: int) -> Score:
    if tokens is None:
        return _no_value(None, 0.0)
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return Score(len(set(grams)) / len(grams) - 1.0 if grams else 0.0)


Shape = Callable[[int, bool, list[int], list[int]], float]  # length, right?, all lengths, lengths of the right ones


def _shaped_within_prompts(completions: Sequence[Row], verdicts: Verdicts, shape: Shape) -> list[Score]:
    lengths = [_tokens(row) for row in completions]
    every: dict[str, list[int]] = defaultdict(list)
    among: dict[str, list[int]] = defaultdict(list)
    for row, length, verdict in zip(completions, lengths, verdicts, strict=True):
        if length is not None:
            every[row["prompt_id"]].append(length)
            among[row["prompt_id"]] += [length] if is_right(verdict) else []
    scores = []
    for row, length, verdict in zip(completions, lengths, verdicts, strict=True):
        if length is None or verdict is None:
            scores.append(_no_value(length, verdict))
        else:
            prompt = row["prompt_id"]
            scores.append(Score(shape(length, is_right(verdict), every[prompt], among[prompt])))
    return scores


def _tokens(row: Row) -> int | None:
    return None if row["token_ids"] is None else len(row["token_ids"])


def _no_value(length: int | None, verdict: float | None) -> Score:
    return Score(None, "no_tokens" if length is None else "no_verdict")
