"""The flow: rounds until the recipe is done, a gate stops or a person is asked. Prefect orders and shows; it holds no data."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from data.store.campaign import Campaign, Round
from flows.commands.report import Reporter
from flows.round.calls import stages_of
from flows.round.finish import Waiting, answer, finish, measure_final, missing, remember, replay
from flows.round.one_round import one_round, round_zero
from flows.service.orphaned_runs import bury_predecessors
from tasks.generate import warm


@flow(name="improve", flow_run_name="{name}", persist_result=False, validate_parameters=False)
def improve(name: str, home: str, refresh: tuple[str, ...] = ()) -> str:
    """Run (or resume) the campaign `name` below `home`; returns its state: done, stopped or waiting."""
    campaign = Campaign.open(Path(home), name)
    with campaign.running(), warm.closing(), Reporter(name, frozenset(refresh)) as report:
        bury_predecessors(campaign)
        rounds: list[Round] = campaign.rounds()
        if not rounds:
            rounds.append(finish(campaign, report, round_zero(stages_of(campaign, 0, report))))
        elif missing(campaign, rounds):
            replay(campaign, report, rounds)

        try:
            while goes_on(campaign, rounds):
                number = rounds[-1].round + 1
                stages, settle = stages_of(campaign, number, report), answer(campaign, number)
                rounds.append(finish(campaign, report, one_round(stages, campaign.store, rounds, settle)))
        except Waiting as question:
            report.say(str(question))
            return campaign.state

        if campaign.final() is None:
            measure_final(campaign, stages_of(campaign, rounds[-1].round, report), rounds)
        remember(campaign, report)
        return campaign.state


def goes_on(campaign: Campaign, rounds: list[Round]) -> bool:
    return rounds[-1].round < campaign.recipe.rounds and rounds[-1].verdict.decision != "stop"
