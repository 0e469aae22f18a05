"""The campaigns of a sweep compared: which one is chosen on held-out, and a row of results for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data import labels
from data.store.campaign import Campaign, Round
from flows.round.artifacts import present
from flows.round.history import History
from tasks.evaluate.best_cell import Cell, Choice, choose_cell
from tasks.evaluate.measure import right_by_prompt


def choose(members: Sequence[Campaign]) -> Choice | None:
    """The choice among the campaigns of a sweep; None while one of them has rounds left, or if nothing was verified.

    It waits for all, since a later choice of another campaign would be a second read of the test split.
    """
    if not all(member.rounds_over for member in members):
        return None
    rounds = [finished for member in members for finished in member.rounds()[1:]]
    return choose_cell([_cell(member) for member in members], len({finished.checkpoint.digest for finished in rounds}))


def _cell(member: Campaign) -> Cell:
    history = History(member.store, member.rounds())
    champion = history.measured(history.last.champion.digest)
    return Cell(member.name, _right(member, history, champion), _right(member, history, history.first))


def _right(member: Campaign, history: History, finished: Round) -> dict[str, float]:
    """Whether the round's checkpoint answers each held-out prompt right, by its greedy completion."""
    scores = present(member, history.artifact(finished, labels.HELD_OUT.scores("greedy")))
    return {prompt: values[0] for prompt, values in right_by_prompt(scores.path).items()}


def result(member: Campaign, choice: Choice | None) -> dict[str, Any]:
    """State of a campaign, held-out accuracy of its champion, and the gain over checkpoint 0 with its corrected interval."""
    rounds = member.rounds()
    measured = {metric: value for metric, value in _of_champion(rounds).items() if metric in ("accuracy", "accuracy_vs_base")}
    row: dict[str, Any] = {"state": member.state, "rounds": rounds[-1].round if rounds else None}
    for metric in ("accuracy", "accuracy_vs_base"):
        ends = {"": "value", "_low": "low", "_high": "high"}
        row |= {f"{metric}{end}": getattr(measured.get(metric), field, None) for end, field in ends.items()}
    standing = next((s for s in choice.standings if s.name == member.name), None) if choice else None
    if standing:
        corrected = {"accuracy_vs_base": standing.gain, "accuracy_vs_base_low": standing.low}
        row |= corrected | {"accuracy_vs_base_high": standing.high}
    like = standing.like_best if standing else None
    return row | {"like_best": like, "chosen": bool(choice and choice.best == member.name)}


def _of_champion(rounds: Sequence[Round]) -> dict[str, Any]:
    champion = next((r for r in reversed(rounds) if r.checkpoint == rounds[-1].champion), None)
    return dict(champion.metrics) if champion else {}
