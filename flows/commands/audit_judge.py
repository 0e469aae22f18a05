"""`ratchet audit-judge`: the biases of judges, from a file of their verdicts on pairs of texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data.errors import PromptsError
from flows.commands.options import Json
from flows.terminal import out

if TYPE_CHECKING:
    from tasks.evaluate.judge_audit import Report
    from tasks.evaluate.judge_bias import Measured


def audit_judge(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Verdicts, one a row: .jsonl, .jsonl.gz, .parquet or .csv.")],
    columns: Annotated[
        str,
        typer.Option(
            "--map",
            help="Columns of the file, e.g. verdict=winner,first=answer_a. Roles: prompt, verdict, swapped, gold, judge; "
            "first, second, and these two with _length, _by or _gold.",
            metavar="ROLE=COLUMN,...",
        ),
    ] = "",
    judge: Annotated[
        str,
        typer.Option(help="Who gave the verdicts, as in first_by and second_by (default: column judge).", metavar="NAME"),
    ] = "",
    as_json: Json = False,
) -> None:
    """Tell a judge's biases from its verdicts on pairs: position, length, self-preference, accuracy, agreement.

    A verdict is first, second or tie, a writer's name, or how far the first
    text wins (0 to 1; or 1 to 2 as in AlpacaEval, where 2 is the second).
    Both orders of a pair are two rows, or one row with `swapped`: the verdict
    where the second text was read first. It names columns, not places. Gold
    has the same form, or is a number per text. Intervals are 95%, over prompts.
    What the file cannot tell is said to be unknown.

    Examples:

      ratchet audit-judge verdicts.jsonl

      ratchet audit-judge annotations.csv --map first=answer_a,second=answer_b,verdict=winner,gold=human

      ratchet audit-judge verdicts.parquet --judge gpt-4 --json
    """
    from tasks.evaluate.judge_audit import tell
    from tasks.evaluate.read_verdicts import read_verdicts

    verdicts, by_prompt = read_verdicts(file, columns, judge)
    distinct = [verdict for verdict in verdicts if verdict.first.key != verdict.second.key]
    equal = len(verdicts) - len(distinct)
    if not distinct:
        raise PromptsError(f"{file}: expected verdicts on two different texts, found {equal} on equal ones")
    reports, together = tell(distinct)
    if as_json:
        print(json.dumps(_plain(reports, together, equal), indent=1))
        return
    for text in [*_about_the_file(by_prompt, equal), *_lines(reports), *_of_two(together)]:
        out.print(text, soft_wrap=True)


# -- telling --------------------------------------------------------------------------------------------------------------
SHARES = {  # measure -> its sentence
    "first_wins": "It takes the text that it reads first in {} of its verdicts",
    "order_agreement": "The same text wins in both orders in {} of the pairs",
    "accuracy": "It agrees with gold where gold prefers one text: {}",
    "accuracy_better_first": "The same where the better text is read first: {}",
    "accuracy_better_second": "The same where the better text is read second: {}",
    "agreement": "Its verdict (first, second or tie) is that of gold in {} of the pairs",
    "longer_wins": "It prefers the longer text in {} of the pairs",
    "longer_wins_if_worse": "It prefers the longer text though gold prefers the shorter: {}",
    "longer_loses_if_better": "It prefers the shorter text though gold prefers the longer: {}",
    "own_wins": "It prefers its own text in {} of the pairs",
    "own_wins_if_worse": "It prefers its own text though gold prefers the other: {}",
    "own_loses_if_better": "It prefers the other text though gold prefers its own: {}",
}
POINTS = {
    "position_bias": "Position bias, above half for the text read first: {} points",
    "length_bias": "Length bias, errors for the longer text minus errors for the shorter: {} points",
    "self_preference": "Self-preference, errors for its own text minus errors against it: {} points",
    "self_preference_at_equal_gold": "Self-preference, above half for its own text where gold ties: {} points",
}
NAMES = {
    "position_bias": "Position bias", "order_agreement": "Agreement between orders", "length_bias": "Length bias",
    "self_preference": "Self-preference", "accuracy": "Accuracy", "kappa": "Kappa against gold",
}  # fmt: skip


def _about_the_file(by_prompt: bool, equal: int) -> list[str]:
    lines = [] if by_prompt else ["The file has no column with the prompt, so each row counts as a prompt of its own."]
    return [*lines, *([f"{equal} verdicts on two equal texts are left out."] if equal else [])]


def _lines(reports: Iterable[Report]) -> Iterator[str]:
    for report in reports:
        yield (
            f"{report.judge}: {report.verdicts} verdicts on {report.pairs} pairs, {report.both_orders} pairs in both orders, "
            f"{report.unreadable} verdicts unreadable."
        )
        if report.both_orders not in (0, report.pairs):
            yield "  A pair in one order counts only for accuracy, and for how often the first text wins."
        if not report.both_orders:
            yield "  Without both orders, a preference for a position may be part of every number below."
        for name, found in report.measures.items():
            yield f"  {_sentence(name, found)}"
        for name, reason in report.unknown.items():
            yield f"  {NAMES.get(name, name.replace('_', ' ').capitalize())} cannot be known: {reason}."


def _sentence(name: str, found: Measured) -> str:
    if name == "kappa":
        return f"Cohen's kappa against gold is {_kappa(found)}."
    size, sign = (POINTS, "+") if name in POINTS else (SHARES, "")
    unit = "" if name in POINTS else "%"
    value, low, high = (f"{100 * x:{sign}.1f}{unit}" for x in (found.value, found.low, found.high))
    return f"{size[name].format(f'{value} [{low}, {high}]')} ({found.n} prompts)."


def _kappa(found: Measured) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}] ({found.n} prompts)"


def _of_two(together: Mapping[tuple[str, str], tuple[Measured, Measured]]) -> Iterator[str]:
    for (one, other), (agreed, kappa) in together.items():
        share, low, high = (f"{100 * x:.1f}%" for x in (agreed.value, agreed.low, agreed.high))
        told = f"Cohen's kappa is {_kappa(kappa)}" if kappa.n else "Cohen's kappa cannot be known: both always say the same"
        yield f"{one} and {other} give the same verdict on {share} [{low}, {high}] of their common pairs. {told}."


def _plain(
    reports: Iterable[Report], together: Mapping[tuple[str, str], tuple[Measured, Measured]], equal: int
) -> dict[str, Any]:
    agreements = [
        {"judges": list(judges), "agreement": asdict(agreed), "kappa": asdict(kappa) if kappa.n else None}
        for judges, (agreed, kappa) in together.items()
    ]
    return {"judges": [asdict(report) for report in reports], "together": agreements, "equal_texts_left_out": equal}
