"""What MLflow shows of a Round: names, numbers and notes, computed from the record alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from data.campaign import Campaign, Metric, Ref, Round
from data.recipe import flatten
from registry.client import plain

LONGEST = 5000  # characters of a parameter or tag; MLflow refuses 6,000 and 8,000
MOST_FACTS = 80  # of a round's facts as parameters; all of them are in round.json
SENTINEL = "round_seconds"  # in every round's metrics, so its history tells which rounds the parent has


def record_hash(finished: Round) -> str:
    return hashlib.sha256(finished.model_dump_json().encode()).hexdigest()[:32]


def numbers(metrics: Mapping[str, Metric], prefix: str = "") -> dict[str, float]:
    """`accuracy`, `accuracy_low`, `accuracy_high`; what does not apply (null) is left out."""
    flat = {}
    for name, metric in metrics.items():
        for end, value in (("", metric.value), ("_low", metric.low), ("_high", metric.high)):
            if value is not None:
                flat[prefix + plain(name) + end] = value
    return flat


def round_numbers(finished: Round) -> dict[str, float]:
    return numbers(finished.metrics) | {SENTINEL: finished.seconds}


def final_numbers(campaign: Campaign) -> dict[str, float]:
    """Test and out-of-distribution metrics of base and head; empty until the campaign is over."""
    final = campaign.final() or {}
    return {name: value for which, metrics in final.items() for name, value in numbers(metrics, f"final/{which}/").items()}


def recipe_params(campaign: Campaign) -> dict[str, str]:
    """The recipe as dotted parameters, without hardware: that may change between runs, and a parameter never may."""
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
        "ratchet.home": str(campaign.home.absolute()),
    }


def progress_tags(finished: Round) -> dict[str, str]:
    """What the parent says about its newest round."""
    return {
        "ratchet.rounds": str(finished.round + 1),
        "ratchet.verdict": finished.verdict.decision,
        "ratchet.head": finished.head.digest,
        "ratchet.champion": finished.champion.digest,
    }


def round_tags(campaign: Campaign, finished: Round, identity: str, parent: str) -> dict[str, str]:
    refs = {
        name: getattr(finished, name) for name in ("head_before", "checkpoint", "head", "champion", "reference", "start_from")
    }
    return {
        "mlflow.parentRunId": parent,
        "mlflow.source.name": "ratchet",
        "mlflow.note.content": note(finished),
        "ratchet.kind": "round",
        "ratchet.campaign": campaign.name,
        "ratchet.campaign_id": identity,
        "ratchet.round": str(finished.round),
        "ratchet.record": record_hash(finished),
        "ratchet.verdict": finished.verdict.decision,
        "ratchet.reason": cut(finished.verdict.reason),
        **{f"ratchet.{name}": ref.digest for name, ref in refs.items() if ref},
        **{f"ratchet.artifact.{plain(name)}": _named(ref) for name, ref in finished.artifacts.items()},
        **{f"ratchet.version.{plain(name)}": cut(version) for name, version in finished.versions.items()},
    }


def _named(ref: Ref) -> str:
    return f"digest {ref.digest} key {ref.key}"


def note(finished: Round) -> str:
    """The description on the round's page: its verdict and its numbers, for a person."""
    lines = [f"**{finished.verdict.decision.replace('_', ' ')}**: {finished.verdict.reason}", ""]
    lines += ["| metric | value | 95% interval | n | split |", "|---|---|---|---|---|"]
    for name, m in finished.metrics.items():
        if m.value is not None:
            interval = f"{m.low:.4g} to {m.high:.4g}" if m.low is not None and m.high is not None else ""
            lines.append(f"| {name} | {m.value:.4g} | {interval} | {m.n} | {m.split} |")
    return cut("\n".join(lines))
