"""`ratchet sweep`: run a recipe for every combination of settings, pick the best on held-out, and read test for that one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from data.errors import RatchetError
from data.recipe import recipe as recipes
from data.store.campaign import Campaign
from data.store.sweep import Sweep
from flows.commands.options import Home, Json, Model, Prompts, Sets, Source, overrides
from flows.commands.run import EXIT, nothing_to_run, run_to_end
from flows.round.cells import choose, result
from flows.round.deliver import deliver
from flows.service import environment
from flows.terminal import err, line, out
from tasks.evaluate.best_cell import Choice


def sweep(
    source: Source,
    over: Annotated[
        list[str],
        typer.Option("--over", help="A setting and its values, separated by commas. Can be repeated.", metavar="A.B=V,V"),
    ],
    name: Annotated[str, typer.Option(help="Name of the sweep (default: RECIPE-sweep).")] = "",
    model: Model = None,
    prompts: Prompts = None,
    home: Home = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Run a recipe for every combination of settings. Stages that combinations share are computed once.

    When all campaigns are over, the one whose champion is best on held-out is
    chosen. It alone reads the test split. Intervals of gains are corrected for
    having picked the best.

    If a campaign fails, its error is printed and the others go on. The same
    command resumes all that are not done. The exit code is the highest of all
    campaigns (see `ratchet run`).

    Examples:

      ratchet sweep tiny_dpo --over loss.beta=0.1,0.5 --over seed=0,1,2

      ratchet sweep raft --model ./my-model --prompts q.jsonl --over train.learning_rate=1e-6,5e-6 --name rates
    """
    from flows.commands.check import checked
    from registry.sweeps import finish_sweep

    folder = environment.home_of(home)
    name = name or f"{recipes.find(source).stem}-sweep"
    changes = overrides(model, prompts)
    for recipe in Sweep.plan(name, over).recipes(source, sets or [], changes).values():
        checked(recipe, folder)  # every one of them, before anything is written
    environment.prepare(folder)
    planned = Sweep.start(folder, name, over)
    members = [planned.member(folder, campaign, r) for campaign, r in planned.recipes(source, sets or [], changes).items()]
    before = set(members[0].store.keys())
    codes = [_run_one(number, member, len(members)) for number, member in enumerate(members, 1)]
    choice = choose(members)
    codes += [_read_test(planned, choice, members)] if choice else []
    results = [{"campaign": m.name, **planned.campaigns[m.name], **result(m, choice)} for m in members]
    told = _told(choice, members)
    deliver(lambda: finish_sweep(members[0].home, planned, results, told), lambda text: err.print(text, soft_wrap=True))
    keys = [member.used() for member in members]
    calls, distinct = sum(map(len, keys)), len(set().union(*keys))
    new = len(set(members[0].store.keys()) - before)
    if as_json:
        counts = {"stages_asked_for": calls, "distinct": distinct, "made_now": new}
        chosen = {**asdict(choice), "standings": None} if choice else None
        print(json.dumps({"name": name, "over": planned.over, "campaigns": results, "choice": chosen, **counts}, indent=1))
    else:
        _table(planned.over, results)
        out.print(told, soft_wrap=True)
        _test_table(choice, members)
        out.print(f"The campaigns use {calls} artifacts, {distinct} of them distinct. {new} were computed now.")
    raise typer.Exit(max(codes))


def _run_one(number: int, member: Campaign, count: int) -> int:
    """Run one campaign of a sweep and return its exit code."""
    err.print(line((f"{number}/{count}", "bold"), f" {member.name}"))
    return _to_end(member)


def _to_end(member: Campaign) -> int:
    try:
        return EXIT[member.state if nothing_to_run(member) else run_to_end(member, [])]
    except RatchetError as error:
        err.print(line((type(error).__name__, "red"), f": {error}"), soft_wrap=True)
        return error.exit_code


def _read_test(planned: Sweep, choice: Choice, members: Sequence[Campaign]) -> int:
    """Measure the chosen campaign on the test split, unless that has been done, and return its exit code."""
    chosen = next(member for member in members if member.name == choice.best)
    planned.mark_chosen(chosen)
    return _to_end(chosen)


def _told(choice: Choice | None, members: Sequence[Campaign]) -> str:
    """What a person is told about the choice."""
    if choice is None:
        left = [member.name for member in members if not member.rounds_over]
        if not left:
            return "No campaign is chosen and test is not read: no held-out prompt has a verdict."
        return (
            f"No campaign is chosen and test is not read, since these are not over: {', '.join(left)}. Run the same command "
            "again. If one can never finish, sweep without its value under another --name: what is stored is reused."
        )
    best = next(s for s in choice.standings if s.name == choice.best)
    like = [s.name for s in choice.standings if s.like_best and s.name != best.name]
    return (
        f"Best on held-out: {best.name}, {100 * best.gain:+.1f} points over checkpoint 0, interval {100 * best.low:+.1f} to "
        f"{100 * best.high:+.1f}, corrected for a pick among {choice.candidates} checkpoints. Picked on one half of the "
        f"prompts and measured on the other: {100 * choice.gain:+.1f} points. "
        + (f"Not told apart from it: {', '.join(like)}." if like else "It is surely better than every other campaign.")
    )


def _table(over: dict[str, list[Any]], results: list[dict[str, Any]]) -> None:
    from data.store.campaign import Metric
    from flows.commands.report import plain_table
    from flows.round.reporter import percent

    caption = (
        "greedy accuracy on held-out of the champion, with a 95% interval; points over base: intervals that hold together for "
        "all checkpoints of the sweep"
    )
    table = plain_table("campaign", *over, "state", "accuracy %", "points over base", caption=caption)
    for row in results:
        pair = [
            percent(Metric(value=row[m], low=row[f"{m}_low"], high=row[f"{m}_high"])) for m in ("accuracy", "accuracy_vs_base")
        ]
        name = line((row["campaign"], "bold" if row["chosen"] else ""))
        table.add_row(name, *(str(row[path]) for path in over), row["state"], *pair)
    out.print(table)


def _test_table(choice: Choice | None, members: Sequence[Campaign]) -> None:
    from flows.commands.report import final_table, reads_in_words

    chosen = [member for member in members if choice and member.name == choice.best]
    if table := final_table(chosen):
        out.print(table)
    for text in reads_in_words(chosen):
        out.print(text, soft_wrap=True)
