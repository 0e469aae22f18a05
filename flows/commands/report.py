"""The tables that commands print: rounds, and the test split at the end."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from data.alarm import gravest
from data.store import test_reads
from data.store.campaign import Campaign, Metric, Round, checkpoints_at_end
from flows.round.reporter import MARKS, percent
from flows.terminal import line


def rounds_table(campaigns: list[Campaign]) -> Table:
    """Rounds of one or more campaigns: accuracy with its interval, length, length gap, alarm level, verdict."""
    table = plain_table(
        "round", "accuracy %", "pass@k %", "tokens", "gap", "alarm", "verdict",
        caption="accuracy: greedy on held-out, with 95% interval. k: samples per prompt. tokens: mean per completion. "
        "gap: tokens (chars: characters) of chosen minus other completions. alarm: highest level of the round",
    )  # fmt: skip
    for campaign in campaigns:
        table.add_section()
        table.add_row(line((campaign.name, "bold")))
        for finished in campaign.rounds():
            table.add_row(*_row(finished))
    return table


def plain_table(first: str, *others: str, caption: str) -> Table:
    table = Table(pad_edge=False, caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column(first, overflow="fold")  # in a narrow terminal names wrap, numbers stay whole
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _row(finished: Round) -> list[str | Text]:
    m = finished.metrics
    ks = sorted((int(key.removeprefix("pass@")) for key in m if key.startswith("pass@")), reverse=True)
    best = m.get(f"pass@{ks[0]}") if ks else None
    style = MARKS.get(finished.verdict.decision, "")
    return [
        f"  {finished.round}",
        percent(m.get("accuracy")),
        percent(Metric(value=best.value)) if best else "-",
        number(m.get("mean_tokens")),
        _length_gap(m),
        gravest(finished.alarms) or "none",
        line((finished.verdict.decision, style)),
    ]


def _length_gap(metrics: Mapping[str, Metric]) -> str:
    """In tokens, or in characters where no tokens are known, with the unit."""
    in_characters = metrics.get("length_gap_characters")
    return f"{number(in_characters, sign=True)} chars" if in_characters else number(metrics.get("length_gap"), sign=True)


def gold_line(campaign: Campaign) -> str:
    """What gold touched in the campaign's rounds; empty if no round with a record of it is finished."""
    rounds = [(finished.round, finished.facts["gold"]) for finished in campaign.rounds()[1:] if "gold" in finished.facts]
    grouped = itertools.groupby(rounds, key=lambda pair: pair[1])
    spans = [(touched, [number for number, _ in group]) for touched, group in grouped]
    if len(spans) == 1:
        return f"gold touched {spans[0][0]}"
    return "gold touched " + "; ".join(f"{touched} (rounds {n[0]} to {n[-1]})" for touched, n in spans) if spans else ""


def gate_sees(finished: Round) -> str:
    """The smallest gain that the gate of a round could have detected; "" if it compared nothing."""
    facts = finished.facts.get("gate")
    return f"its gate would have found a gain of {100 * facts['smallest_gain']:.1f} points in 80% of cases" if facts else ""


def number(metric: Metric | None, sign: bool = False) -> str:
    if metric is None or metric.value is None:
        return "-"
    return f"{metric.value:{'+' if sign else ''}.1f}"


def reward_shares(finished: Round) -> str:
    """How much each scorer has to say in the choice among a prompt's completions; "" if one scorer decides alone."""
    shares: dict[str, float] = finished.facts.get("reward_share") or {}
    listed = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return f"variance of the reward within prompts: {listed}" if shares else ""


def final_table(campaigns: list[Campaign]) -> Table | None:
    """Test and out-of-distribution accuracy, measured after the last round; None if no campaign has it."""
    table = plain_table(
        "checkpoint", "test accuracy %", "points over base", "out of distribution",
        caption="with 95% intervals. base: the model at the start; champion: the best that the gate accepted; head: the "
        "checkpoint a next round would start from; last: the last round's checkpoint",
    )  # fmt: skip
    measured = False
    for campaign in campaigns:
        results: dict[str, dict[str, Any]] = campaign.final() or {}
        measured = measured or any(results.values())
        table.add_section()
        table.add_row(line((campaign.name, "bold")))
        for roles in _roles_by_checkpoint(campaign, results):
            metrics = results[roles[0]]
            cells = [percent(metrics.get(key)) for key in ("accuracy", "accuracy_vs_base", "ood/accuracy")]
            table.add_row(f"  {', '.join(roles)}", *cells)
    return table if measured else None


def _roles_by_checkpoint(campaign: Campaign, results: dict[str, Any]) -> list[list[str]]:
    """The measured roles, those of one checkpoint together."""
    groups: dict[str, list[str]] = {}
    for which, checkpoint in checkpoints_at_end(campaign.rounds()).items() if results else ():
        if which in results:  # an older home has no champion's
            groups.setdefault(checkpoint.digest, []).append(which)
    return list(groups.values())


def reads_in_words(campaigns: list[Campaign]) -> list[str]:
    """How often the home has read each test split of the campaigns, and by which; a split of several is told once."""
    return list(dict.fromkeys(told for campaign in campaigns for told in test_reads.in_words(campaign).values()))
