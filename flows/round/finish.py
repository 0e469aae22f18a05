"""What happens around rounds: a person's answer, the record, what to keep, MLflow, repair, and the test split at the end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from data.errors import StageFailed
from data.store.campaign import Campaign, Ref, Round, Verdict, names
from data.store.store import Artifact, write_atomic
from flows.commands.report import Reporter
from flows.round.artifacts import held, read_metrics
from flows.round.calls import stages_of
from flows.round.one_round import one_round, round_zero
from flows.round.stages import Stages


class Waiting(Exception):
    """A gate asked a person; the round is finished once the answer is there."""


def answer(campaign: Campaign, number: int) -> Callable[[Verdict], Verdict]:
    """How a round's verdict is settled: as it is, or by the person the gate asked (`resume NAME --decide ...`)."""

    def settle(verdict: Verdict) -> Verdict:
        if verdict.decision != "ask":
            return verdict
        known = campaign.pending()
        if known and known["round"] == number and "decision" in known:
            return Verdict(decision=known["decision"], reason=f"decided by a person; the gate asked because: {verdict.reason}")
        write_atomic(campaign.pending_path, json.dumps({"round": number, "reason": verdict.reason}))
        raise Waiting(
            f"round {number} waits for a person: {verdict.reason}; "
            f"answer with: ratchet resume {campaign.name} --decide promote|hold|roll_back|stop"
        )

    return settle


def finish(campaign: Campaign, report: Reporter, finished: Round) -> Round:
    """Record the round (the last thing that makes it one), tell MLflow, and make room."""
    campaign.record(finished)
    report.round(finished)
    for alarm in finished.facts.get("training_alarms", []):
        report.say(alarm)
    remember(campaign, report)
    if campaign.recipe.keep.checkpoints == "best+last":
        evict(campaign)
    return finished


def remember(campaign: Campaign, report: Reporter) -> None:
    """Deliver what MLflow does not have yet. An outage costs nothing: the next delivery brings it."""
    from registry.client import MemoryUnreachable
    from registry.sync import sync_campaign

    try:
        sync_campaign(campaign)
        campaign.mark_delivered()
    except MemoryUnreachable as error:
        report.say(f"warning: {error}")


def evict(campaign: Campaign) -> None:
    """Delete the weights of rounds that are neither base, champion nor head of any campaign; manifests stay."""
    needed: set[str] = set()
    for name in names(campaign.home):
        rounds = Campaign.open(campaign.home, name).rounds()
        if rounds:
            last = rounds[-1]
            needed |= {rounds[0].checkpoint.key, last.head.key, last.champion.key, last.checkpoint.key}
    for past in campaign.rounds():
        found = campaign.store.find(past.checkpoint.key)
        if found is not None and not found.absent and past.checkpoint.key not in needed:
            campaign.store.evict(past.checkpoint.key)


COMPARED_LATER = re.compile(
    r"evaluate/greedy_score|probe/.*(observed|verdicts|twins|reward)|bias|suite/.*/(greedy_score|logprobs)"
)
COPIED = re.compile(r"prepare|import_completions|suite/.*/(prompts|completions)")  # in round 0, of files outside the store


def missing(campaign: Campaign, rounds: list[Round]) -> bool:
    """Whether a later round would need an artifact whose manifest is gone, so that it can only be made by its own round."""
    last = rounds[-1]
    compared = [ref for r in rounds for label, ref in r.artifacts.items() if COMPARED_LATER.fullmatch(label)]
    kept = [ref for label, ref in rounds[0].artifacts.items() if COPIED.fullmatch(label)]
    needed: list[Ref] = [*kept, rounds[0].checkpoint, last.head, last.champion, *compared]
    return any(lost(campaign, ref) for ref in needed)


def lost(campaign: Campaign, known: Ref) -> bool:
    """Whether an artifact cannot be made again from a manifest: it has none, or it came from a file outside the store."""
    found = campaign.store.find(known.key)
    if found is None:
        return True
    return bool(found.absent) and None in campaign.store.manifest(known.key)["input_keys"].values()


def replay(campaign: Campaign, report: Reporter, rounds: list[Round]) -> None:
    """Go through the finished rounds again: whole artifacts are reused, lost ones made anew. Records do not change."""
    report.say("an artifact of a finished round is gone; going through the finished rounds again to make it anew")
    for index, known in enumerate(rounds):
        stages = stages_of(campaign, known.round, report)
        again = one_round(stages, campaign.store, rounds[:index], lambda v, k=known: k.verdict) if index else round_zero(stages)  # type: ignore[misc]
        if again.checkpoint.digest != known.checkpoint.digest:
            raise StageFailed(
                f"round {known.round} came out different when made again (checkpoint {again.checkpoint.digest[:12]}, was "
                f"{known.checkpoint.digest[:12]}); start a new campaign with --name"
            )


def measure_final(campaign: Campaign, stages: Stages, rounds: list[Round]) -> None:
    """Read the test and out-of-distribution splits once: checkpoint 0, the head, and the last round's checkpoint."""
    prompts = held(campaign.store, rounds[0].artifacts["prepare"])
    results: dict[str, dict[str, Any]] = {"base": {}, "head": {}, "last": {}}
    checkpoints = {"base": rounds[0].checkpoint, "head": rounds[-1].head, "last": rounds[-1].checkpoint}
    for split in ("test", "ood"):
        if getattr(campaign.recipe.prompts, split) == 0:
            continue
        base: dict[str, Artifact] = {}
        for which, checkpoint in checkpoints.items():
            metrics = read_metrics(stages.evaluate(prompts, held(campaign.store, checkpoint), base, split))
            base = base or {"base": stages.made[f"evaluate/{split}/greedy_score"]}
            prefix = "" if split == "test" else "ood/"
            results[which] |= {f"{prefix}{name}": metric.model_dump() for name, metric in metrics.items()}
    write_atomic(campaign.final_path, json.dumps(results, indent=1))
