"""The KL budget, judged by the KL over the whole vocabulary on the probe where that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data.alarm import Alarm
from data.store.campaign import Metric

NAME = "KL over budget"


def from_reference(metrics: Mapping[str, Metric], reference: str, start_from: str) -> Metric | None:
    """The KL of the round's checkpoint from its reference, in nats per completion; None if the probe did not measure it.

    Args:
        metrics: of the ledger, which has the KL from checkpoint 0 and from the checkpoint that training started from.
        reference, start_from: their roles in the recipe.
    """
    feature = "kl_previous" if reference == start_from else "kl_base" if reference == "base" else ""
    return metrics.get(f"bias/{feature}/mean")


def by_full_kl(alarms: Sequence[Alarm], kl: Metric | None, budget: float) -> list[Alarm]:
    """The alarms of a training, with `kl` in place of the training log's estimate; as they are if it is unknown.

    The log's is k1 (log p - log q of the tokens in the training data), which need not be of the policy's own samples.
    """
    if not budget or kl is None or kl.value is None:
        return list(alarms)
    others = [alarm for alarm in alarms if alarm.name != NAME]
    if kl.value <= budget:
        return others
    interval = f" [{kl.low:.1f}, {kl.high:.1f}]" if kl.low is not None and kl.high is not None else ""
    sentence = (
        f"The policy is {kl.value:.1f}{interval} nats per completion from its reference, over the whole vocabulary on the "
        f"probe; gate.kl_budget is {budget:g}. Raise loss.beta or lower train.steps."
    )
    return [*others, Alarm("ALARM", "training", NAME, sentence)]
