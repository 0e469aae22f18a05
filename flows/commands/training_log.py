"""`ratchet audit --training-log FILE`: the training alarms of a campaign, on the log of any training."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from data.alarm import by_gravity
from data.recipe.loss import Loss
from data.rows import training_logs
from data.rows.training_logs import COLUMNS, TrainingLog
from flows.commands.options import overrides
from flows.terminal import line, out


def audit_log(path: Path, columns: str, as_json: bool) -> None:
    """Print what a training log shows.

    Raises:
        LogError: the log cannot be read.
        RecipeError: `columns` is not of the form ours=theirs,...
    """
    from tasks.gate.training_alarms import training_alarms

    names = {key.removeprefix("prompts.map."): column for key, column in overrides(None, None, columns).items()}
    log = training_logs.read(path, names)
    # A log of preferences counts as one without a reference: beta, which a reference needs, is not logged.
    loss = Loss(name="cpo") if "margin" in log.columns and "reward" not in log.columns else Loss(name="grpo")
    alarms = by_gravity(training_alarms(log.rows, loss, {}, {}))
    if as_json:
        facts = {"file": str(path), "steps": log.steps, "columns": log.columns, "alarms": [asdict(alarm) for alarm in alarms]}
        print(json.dumps(facts, indent=1))
        return
    out.print(line((path.name, "bold"), f": {in_words(log)}" + ("" if alarms else " No alarms.")), soft_wrap=True)
    for alarm in alarms:
        out.print(str(alarm), soft_wrap=True)


def in_words(log: TrainingLog) -> str:
    """What was read, and what could not be."""
    first, last = log.steps
    logged = len({row["step"] for row in log.rows})
    wanted = ("margin", "chosen") if "margin" in log.columns else ("reward", "entropy", "kl", "length", "truncated")
    missing = [what for what in wanted if what not in log.columns]
    without = f" Not in it: {', '.join(missing)}." if missing else ""
    read = ", ".join(what for what in COLUMNS if what in log.columns and what != "step")
    return f"{logged} records, steps {first} to {last}; read {read}.{without}"
