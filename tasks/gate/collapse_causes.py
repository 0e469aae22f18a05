"""Why a reward fell: what entropy, length and KL of an online training did meanwhile, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from tasks.gate.training_curves import Course, TrainingCurves

# On 71 public GRPO logs and on the trainings of the tiny world, healthy courses stay on the other side of these limits.
KL_PER_TOKEN = 1.0  # nats
NOISE_RISE = (3.0, 1.0)  # entropy: this many times its lowest, and this many nats above it
NOISE_SHARE = (0.9, 0.7)  # of ln V, the entropy of a uniform draw: now above the first, at its lowest below the second
ONE_ANSWER = (0.05, 0.1)  # entropy: nats per token, and share of its highest
CUT = (0.9, 0.5)  # truncated: share now, and at its lowest
EMPTY = 0.2  # length: share of its highest


@dataclass(frozen=True)
class Cause:
    finding: str  # a clause
    remedy: str  # sentences


def causes(curves: TrainingCurves, vocabulary: int | None) -> list[Cause]:
    """Everything that went wrong beside the reward, the likeliest cause first. `vocabulary`: tokens the model knows."""
    found = [
        of_kl(curves),
        of_noise(curves.entropy, vocabulary),
        _of_one_answer(curves.entropy),
        of_limit(curves, from_start=False),
        of_empty(curves.length),
    ]
    return [cause for cause in found if cause]


def in_words(causes: Sequence[Cause]) -> str:
    """What went wrong, and the remedy for the likeliest cause: the others mostly follow from it."""
    if not causes:
        return f"Entropy, length and KL do not say why. {GENTLER}"
    return f"Likely cause: {'; '.join(cause.finding for cause in causes)}. {causes[0].remedy}"


GENTLER = "Lower the learning rate (train.learning_rate), or raise the KL coefficient (loss.beta)."


def of_kl(curves: TrainingCurves) -> Cause | None:
    kl = curves.kl_per_token
    if kl is None or kl.now < KL_PER_TOKEN:
        return None
    return Cause(f"KL went from {kl.lowest:.2g} to {kl.now:.3g} nats per token: the policy left its reference", GENTLER)


def of_noise(entropy: Course | None, vocabulary: int | None) -> Cause | None:
    if entropy is None:
        return None
    now, lowest, limit = entropy.now, entropy.lowest, log(vocabulary) if vocabulary else None
    rose = now >= NOISE_RISE[0] * lowest and now >= lowest + NOISE_RISE[1]
    uniform = limit is not None and now >= NOISE_SHARE[0] * limit and lowest <= NOISE_SHARE[1] * limit
    if not rose and not uniform:
        return None
    most = f", at most {limit:.2f} = ln {vocabulary} is possible" if limit else ""
    return Cause(f"entropy rose from {lowest:.2g} to {now:.3g} nats per token{most}: the text is turning to noise", GENTLER)


def _of_one_answer(entropy: Course | None) -> Cause | None:
    if entropy is None:
        return None
    now, highest = entropy.now, entropy.highest
    if now > ONE_ANSWER[0] or now > ONE_ANSWER[1] * highest:
        return None
    return Cause(
        f"entropy fell from {highest:.2g} to {now:.2g} nats per token: the policy gives one answer",
        f"{GENTLER} A higher generate.temperature keeps answers apart.",
    )


def of_limit(curves: TrainingCurves, from_start: bool) -> Cause | None:
    """Answers that no longer end; with `from_start` also answers that never did. A constant length is that of the limit."""
    cut, length = curves.truncated, curves.length
    if cut is not None:
        if cut.now < CUT[0] or not (from_start or cut.lowest <= CUT[1]):
            return None
        return Cause(f"{cut.now:.0%} of the answers are cut at the token limit, at the least {cut.lowest:.0%}", LONGER)
    if length is None or not length.constant or not (from_start or length.now > length.lowest):
        return None
    if length.now < length.highest:
        return None
    return Cause(f"all answers have {length.now:.0f} tokens, which must be the token limit", LONGER)


LONGER = "Raise the token limit (generate.max_tokens), or reward answers that end."


def of_empty(length: Course | None) -> Cause | None:
    if length is None or length.now > EMPTY * length.highest:
        return None
    return Cause(f"answers shrank from {length.highest:.0f} to {length.now:.0f} tokens", GENTLER)
