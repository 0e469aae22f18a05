"""Around rounds: a person's decision, the record, evicted weights, MLflow, lost artifacts, and the test split at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from data import labels
from data.errors import DamagedCampaign, StageFailed
from data.store import test_reads
from data.store.campaign import Campaign, Metric, Ref, Round, Verdict, checkpoints_at_end, folders, read_rounds
from data.store.store import Artifact, write_atomic
from flows.round.artifacts import present, read_metrics
from flows.round.calls import stages_of
from flows.round.deliver import deliver_rounds
from flows.round.history import History
from flows.round.one_round import one_round, round_zero
from flows.round.reporter import Reporter
from flows.round.stages import Stages


class Waiting(Exception):
    """The gate waits for a person's decision, which finishes the round."""


def verdict_resolver(campaign: Campaign, number: int) -> Callable[[Verdict], Verdict]:
    """Turns the verdict "ask" into the person's decision (`resume NAME --decide ...`); any other verdict stays as it is."""

    def resolve_verdict(verdict: Verdict) -> Verdict:
        if verdict.decision != "ask":
            return verdict
        question = campaign.pending()
        if question and question["round"] == number and "decision" in question:
            reason = f"decided by a person. The gate's reason to ask: {verdict.reason}"
            return Verdict(decision=question["decision"], reason=reason)
        write_atomic(campaign.pending_path, json.dumps({"round": number, "reason": verdict.reason}))
        raise Waiting(
            f"round {number} waits for your decision: {verdict.reason} "
            f"Answer it with: ratchet resume {campaign.name} --decide promote|hold|roll_back|stop"
        )

    return resolve_verdict


def finish(campaign: Campaign, report: Reporter, finished: Round) -> Round:
    """Record the round, deliver it to MLflow, and free weights that are no longer needed. The record makes it finished."""
    campaign.record(finished)
    report.round(finished)
    deliver_rounds(campaign, report.say)
    if campaign.recipe.keep.checkpoints == "best+last":
        try:
            evict(campaign)
        except DamagedCampaign as error:
            report.say(f"No weights were deleted, since it is not known which another campaign needs: {error}")
    return finished


def evict(campaign: Campaign) -> None:
    """Delete the weights of this campaign's checkpoints, except those that are base, champion, head or last of any campaign.

    Raises:
        DamagedCampaign: the rounds of a campaign cannot be read.
    """
    needed: set[str] = set()
    for name in folders(campaign.home):
        rounds = read_rounds(campaign.home / "campaigns" / name)
        if rounds:
            last = rounds[-1]
            needed |= {rounds[0].checkpoint.key, last.head.key, last.champion.key, last.checkpoint.key}
    for past in campaign.rounds():
        checkpoint = campaign.store.find(past.checkpoint.key)
        if checkpoint is not None and not checkpoint.absent and past.checkpoint.key not in needed:
            campaign.store.evict(past.checkpoint.key)


def needs_replay(campaign: Campaign, rounds: Sequence[Round]) -> bool:
    """Whether a later round needs an artifact that only its own round can compute again, since its manifest is gone."""
    last = rounds[-1]
    looked_back = [ref for r in rounds for text, ref in r.artifacts.items() if labels.read(text).looked_back]
    needed: list[Ref] = [rounds[0].checkpoint, last.head, last.champion, *looked_back]
    return any(is_lost(campaign, ref) for ref in needed)


def is_lost(campaign: Campaign, ref: Ref) -> bool:
    """Whether an artifact cannot be computed again from a manifest: it has none, or came from a file outside the store."""
    artifact = campaign.store.find(ref.key)
    if artifact is None:
        return True
    return bool(artifact.absent) and None in campaign.store.manifest(ref.key)["input_keys"].values()


def replay(campaign: Campaign, report: Reporter, rounds: Sequence[Round]) -> None:
    """Go through the finished rounds again: existing artifacts are reused, lost ones computed. Records do not change."""
    report.say("An artifact of a finished round is missing. Going through the finished rounds again to compute it.")
    for index, recorded in enumerate(rounds):
        stages = stages_of(campaign, recorded.round, report)
        if index == 0:
            again = round_zero(stages)
        else:
            history = History(campaign.store, rounds[:index])
            again = one_round(stages, history, lambda _, verdict=recorded.verdict: verdict)  # type: ignore[misc]
        if again.checkpoint.digest != recorded.checkpoint.digest:
            raise StageFailed(
                f"round {recorded.round} gave another checkpoint when it was computed again: expected digest "
                f"{recorded.checkpoint.digest[:12]}, found {again.checkpoint.digest[:12]}; start a new campaign with --name"
            )


def measure_final(campaign: Campaign, stages: Stages, history: History) -> None:
    """Measure base, champion, head and last checkpoint on the test and out-of-distribution splits, and write final.json.

    Each read is noted before it begins (`data.store.test_reads`).
    """
    results: dict[str, dict[str, Metric]] = {which: {} for which in checkpoints_at_end(history.rounds)}
    for split in test_reads.SPLITS:
        if getattr(campaign.recipe.prompts, split) == 0:
            continue
        prompts = present(campaign, history.of_first(labels.PREPARE))
        test_reads.note(campaign, split)
        prefix = "" if split == "test" else f"{split}/"
        for which, metrics in measure_split(stages, history, prompts, split).items():
            results[which] |= {f"{prefix}{name}": metric for name, metric in metrics.items()}
    plain = {which: {name: m.model_dump() for name, m in metrics.items()} for which, metrics in results.items()}
    write_atomic(campaign.final_path, json.dumps(plain, indent=1))


def measure_split(stages: Stages, history: History, prompts: Artifact, split: str) -> dict[str, dict[str, Metric]]:
    """Metrics by role. A checkpoint is measured once, whatever roles it has; the others are compared with checkpoint 0."""
    roles, base = checkpoints_at_end(history.rounds), history.first.checkpoint
    first = stages.evaluate(prompts, history.load(base), {}, split)
    measured = {base.digest: read_metrics(first.metrics)}
    for checkpoint in roles.values():
        if checkpoint.digest not in measured:
            evaluated = stages.evaluate(prompts, history.load(checkpoint), {"base": first.greedy_scores}, split)
            measured[checkpoint.digest] = read_metrics(evaluated.metrics)
    return {which: measured[checkpoint.digest] for which, checkpoint in roles.items()}
