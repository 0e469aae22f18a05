"""The flow: rounds until all are done, the gate stops, or it waits for a person. Prefect shows them and stores no data."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from data.store.campaign import Campaign, Round
from flows.round.calls import stages_of
from flows.round.deliver import deliver_rounds
from flows.round.finish import Waiting, finish, measure_final, needs_replay, replay, verdict_resolver
from flows.round.history import History
from flows.round.one_round import one_round, round_zero
from flows.round.reporter import Reporter
from flows.service.orphaned_runs import mark_crashed_runs
from tasks.generate import warm


@flow(name="improve", flow_run_name="{name}", persist_result=False, validate_parameters=False)
def improve(name: str, home: str, refresh: tuple[str, ...] = ()) -> str:
    """Run (or resume) the campaign `name` below `home`; returns its state: done, stopped or waiting."""
    campaign = Campaign.open(Path(home), name)
    with campaign.running(), warm.closing(), Reporter(name, frozenset(refresh)) as report:
        mark_crashed_runs(campaign)
        rounds: list[Round] = campaign.rounds()
        if not rounds:
            rounds.append(finish(campaign, report, round_zero(stages_of(campaign, 0, report))))
        elif needs_replay(campaign, rounds):
            replay(campaign, report, rounds)

        try:
            while not campaign.rounds_over:
                number, history = rounds[-1].round + 1, History(campaign.store, tuple(rounds))
                stages, resolver = stages_of(campaign, number, report), verdict_resolver(campaign, number)
                rounds.append(finish(campaign, report, one_round(stages, history, resolver)))
        except Waiting as question:
            report.say(str(question))
            return campaign.state

        if campaign.final() is None and campaign.reads_test:
            measure_final(campaign, stages_of(campaign, rounds[-1].round, report), History(campaign.store, rounds))
        deliver_rounds(campaign, report.say)
        return campaign.state
