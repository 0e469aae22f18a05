"""A Round as MLflow shows it: names, numbers and notes, computed from the record alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from data import labels
from data.alarm import gravest
from data.recipe.dotted import flatten
from data.store import test_reads
from data.store.campaign import Campaign, Metric, Ref, Round
from registry.client import plain

LONGEST = 5000  # characters of a parameter or tag; MLflow refuses 6,000 and 8,000
MOST_FACTS = 80  # of a round's facts as parameters; all of them are in round.json
SENTINEL = "round_seconds"  # in every round's metrics, so its history tells which rounds the parent has


def record_hash(finished: Round) -> str:
    """A hash of the record without its time: a round that is computed again is the same round."""
    return _hash(finished.model_dump_json(exclude={"seconds"}))


def is_record(finished: Round, recorded: str) -> bool:
    """Whether a hash that MLflow holds is that of this record. Rounds delivered by older versions have one with the time."""
    return recorded in (record_hash(finished), _hash(finished.model_dump_json()))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def numbers(metrics: Mapping[str, Metric], prefix: str = "") -> dict[str, float]:
    """`accuracy`, `accuracy_low`, `accuracy_high`; null values are left out."""
    flat = {}
    for name, metric in metrics.items():
        for end, value in (("", metric.value), ("_low", metric.low), ("_high", metric.high)):
            if value is not None:
                flat[prefix + plain(name) + end] = value
    return flat


def round_numbers(finished: Round) -> dict[str, float]:
    return numbers(finished.metrics) | {SENTINEL: finished.seconds}


def final_numbers(campaign: Campaign) -> dict[str, float]:
    """Test and out-of-distribution metrics by role of the checkpoint; empty until they are measured."""
    final = campaign.final() or {}
    return {name: value for which, metrics in final.items() for name, value in numbers(metrics, f"final_{which}_").items()}


def recipe_params(campaign: Campaign) -> dict[str, str]:
    """The recipe as dotted parameters, without hardware: it may change when a run resumes, but a parameter cannot."""
    return _texts({k: v for k, v in campaign.recipe.plain().items() if k != "hardware"})


def round_params(campaign: Campaign, finished: Round) -> dict[str, str]:
    """The round's number, the settings that [[at]] changes as they stand in it, and its facts."""
    params = {"round": f"{finished.round:03d}"}
    changing = {path for entry in campaign.recipe.at for path in entry.set}
    if changing:
        now = _texts(campaign.recipe.at_round(finished.round).plain())
        params |= {name: value for name, value in now.items() if any(f"{name}.".startswith(f"{path}.") for path in changing)}
    facts = _texts({"facts": {k: v for k, v in finished.facts.items() if not isinstance(v, list)}})
    return params | dict(list(facts.items())[:MOST_FACTS])


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Flat and cut; an empty list or table is left out, since it has no dotted name of its own."""
    return {plain(name)[:250]: cut(str(value)) for name, value in flatten(values).items()}


def cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def campaign_tags(campaign: Campaign, identity: str) -> dict[str, str]:
    return {
        "mlflow.source.name": "ratchet",
        "mlflow.note.content": cut(campaign.recipe.description),
        "ratchet.kind": "campaign",
        "ratchet.campaign": campaign.name,
        "ratchet.campaign_id": identity,
        "ratchet.folder": str(campaign.folder.absolute()),
        **origin_tags(campaign),
    }


def origin_tags(campaign: Campaign) -> dict[str, str]:
    """Which campaign a fork shares its first rounds with, or which sweep a campaign belongs to."""
    origin = campaign.origin
    if "fork" in origin:
        return {"ratchet.fork_of": origin["fork"], "ratchet.fork_at": str(origin["at"])}
    return {"ratchet.sweep": origin["sweep"]} if "sweep" in origin else {}


def accuracy_in_words(metric: Metric) -> str:
    """E.g. `61.2% [58.1, 64.2], n = 200`; empty if it does not apply."""
    if metric.value is None:
        return ""
    ends = f" [{100 * metric.low:.1f}, {100 * metric.high:.1f}]" if metric.low is not None and metric.high is not None else ""
    return f"{100 * metric.value:.1f}%{ends}, n = {metric.n}"


def progress_tags(campaign: Campaign, newest: Round) -> dict[str, str]:
    """Tags of the campaign's run that change with its rounds."""
    return {"state": campaign.state, "rounds": str(newest.round + 1), **verdict_tags(newest), **test_tags(campaign)}


def test_tags(campaign: Campaign) -> dict[str, str]:
    """How often the home has read the campaign's test splits, and by which campaigns."""
    return {f"reads.{split}": cut(words) for split, words in test_reads.in_words(campaign).items()}


def round_tags(campaign: Campaign, finished: Round, identity: str, parent: str) -> dict[str, str]:
    """In the order of the round's page. Names for people are short; those that code reads begin with `ratchet.`."""
    return {
        "mlflow.parentRunId": parent,
        "mlflow.source.name": "ratchet",
        "mlflow.note.content": note(finished),
        **verdict_tags(finished),
        **{name: ref.digest for name, ref in _refs(finished).items()},
        **{f"artifact.{labels.read(text).mlflow}": ref.digest[:12] for text, ref in finished.artifacts.items()},
        **{f"version.{plain(name)}": cut(version) for name, version in finished.versions.items()},
        "ratchet.kind": "round",
        "ratchet.campaign": campaign.name,
        "ratchet.campaign_id": identity,
        "ratchet.round": str(finished.round),
        "ratchet.record": record_hash(finished),
    }


def verdict_tags(finished: Round) -> dict[str, str]:
    return {
        "verdict": finished.verdict.decision,
        "reason": cut(finished.verdict.reason),
        "champion": finished.champion.digest,
        "head": finished.head.digest,
        "alarm.level": gravest(finished.alarms) or "none",
        **({"gold": finished.facts["gold"]} if "gold" in finished.facts else {}),  # what it touched; older records do not say
    }


def _refs(finished: Round) -> dict[str, Ref]:
    """The round's checkpoint, and the checkpoints that it was made from."""
    refs = {name: getattr(finished, name) for name in ("checkpoint", "head_before", "start_from", "reference")}
    return {name: ref for name, ref in refs.items() if ref is not None}


def note(finished: Round) -> str:
    """The description on the round's page: verdict, alarms, metrics, and the artifacts behind them."""
    lines = [f"**{finished.verdict.decision.replace('_', ' ')}**: {finished.verdict.reason}", ""]
    lines += [f"- {alarm}" for alarm in finished.alarms] + [""]
    lines += ["| metric | value | 95% interval | n | split |", "|---|---|---|---|---|"]
    for name, m in finished.metrics.items():
        if m.value is not None and not name.startswith("bias/"):  # there are hundreds; see tables/bias/report.md
            interval = f"{m.low:.4g} to {m.high:.4g}" if m.low is not None and m.high is not None else ""
            lines.append(f"| {name} | {m.value:.4g} | {interval} | {m.n} | {m.split} |")
    lines += ["", "| artifact | digest | key in the store |", "|---|---|---|"]
    lines += [f"| {name} | {r.digest[:12]} | {r.key[:12]} |" for name, r in (_refs(finished) | finished.artifacts).items()]
    return cut("\n".join(lines))
