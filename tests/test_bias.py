"""The bias ledger in a campaign: what it writes, what the record keeps, and what planted changes in real texts do to it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.alarm import LEVELS, gravest
from data.recipe.settings import Hardware
from data.rows import tables
from tasks.bias.alarm_rule import judge
from tasks.bias.bias import Settings, read_ledger, sides_of
from tasks.bias.effects import Kind
from tasks.bias.features import format as styles
from tasks.bias.features import length, repetition, tone
from tasks.bias.ledger import Entry, Sample, compare
from tasks.bias.observed import grids
from tasks.run.work import Work
from tasks.score.scorers import Score

LINE = "the sum of two numbers is found by adding each column from the right and carrying what is over"
WORDS = LINE.split(" ")
FEATURES: dict[str, tuple[Callable[..., Any], Kind]] = {
    "affirmative": (styles.affirmative, "rate"),
    "exclamations": (styles.exclamations, "rate"),
    "bold": (styles.bold, "rate"),
    "lists": (styles.lists, "rate"),
    "words": (length.words, "length"),
    "characters": (length.characters, "length"),
    "refusal": (tone.refusal, "rate"),
    "hedging": (tone.hedging, "real"),
    "rep_3": (repetition.rep_3, "real"),
    "compression": (repetition.compression, "real"),
}
Row = dict[str, Any]
WATCHED = "probe.samples=4"


def texts(seed: int, k: int, prompts: int = 256) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(20, 60))) + "." for _ in range(prompts * k)]


def observed(given: Sequence[str], k: int) -> Sample:
    rows = [{"text": text, "token_ids": None, "finish_reason": "stop"} for text in given]
    columns = {name: np.array(feature(rows), dtype=float) for name, (feature, _) in FEATURES.items()}
    return Sample({name: values.reshape(-1, k) for name, values in columns.items()})


def campaign(change: Callable[[int, list[str]], list[str]], rounds: int = 3) -> list[list[str]]:
    """`LEVEL feature` of each round; `change` is given the round and its texts."""
    kinds = {name: kind for name, (_, kind) in FEATURES.items()}
    base = last = observed(texts(1, 16), 16)
    earlier: list[Entry] = []
    said: list[list[str]] = []
    for number in range(1, rounds + 1):
        now = observed(change(number, texts(100 + number, 4)), 4)
        earlier, alarms = judge(compare(now, base, last, kinds=kinds), earlier, round=number)
        said.append(sorted(f"{a.level} {a.name}" for a in alarms if a.level != "watch"))
        last = now
    return said


def test_a_planted_opening_is_found_and_nothing_else() -> None:
    # oracle 2: "Sure! " before 15% of the responses from round 2 on: the opening and its ! alarm by round 3, nothing else
    def sure(number: int, given: list[str]) -> list[str]:
        return [("Sure! " if number >= 2 and i % 20 < 3 else "") + text for i, text in enumerate(given)]

    first, second, third = campaign(sure)
    assert first == []
    assert third == ["ALARM affirmative", "ALARM exclamations"]
    assert set(second) <= set(third)


def test_doubling_by_concatenation_is_a_matter_of_length_alone() -> None:
    # oracle 8: a text after itself is twice as long (and repeats itself); styles counted per word or as present do not move
    said = campaign(lambda number, given: [f"{text} {text}" for text in given], rounds=1)
    assert set(said[0]) == {"ALARM words", "ALARM characters", "ALARM rep_3", "ALARM compression"}


def test_rows_find_their_place() -> None:
    # samples go to the row of their prompt in the order they come; a prompt with fewer samples is filled up with NaN
    made = grids(["b", "a", "b"], {"a": 0, "b": 1}, {"x": np.array([1.0, 2.0, 3.0])})["x"]
    assert made[1].tolist() == [1.0, 3.0]
    assert made[0, 0] == 2.0
    assert np.isnan(made[0, 1])


def test_labels_and_ranks_say_what_is_trained_towards(tmp_path: Path) -> None:
    # KTO pushes away what is labelled false, a listwise loss all but the best: neither counts as selected
    row = {"prompt_id": "p", "weight": 1.0, "label": None, "rank": None}
    rows: list[dict[str, Any]] = [{"completion_id": "right", "label": True}, {"completion_id": "wrong", "label": False},
            {"completion_id": "best", "rank": 0}, {"completion_id": "third", "rank": 2}, {"completion_id": "kept"}]  # fmt: skip
    tables.write(tables.from_rows([row | r for r in rows], tables.SELECTED), tables.SELECTED, tmp_path / "selected.parquet")
    settings = Settings(round=1, kinds={}, prompt_kinds={}, counterfactuals=(), baseline=1, on_policy=True, chosen="selected")
    sides = sides_of(Work("key", settings, {"selected": tmp_path}, 0, tmp_path, tmp_path, Hardware()))
    assert {side: set(ids) for side, ids in sides.items()} == {
        "chosen": {"right", "best", "kept"},
        "rejected": {"wrong", "third"},
    }


def test_every_round_keeps_the_ledger(run_micro: Callable[..., Any]) -> None:
    # each round has LEDGER, alarms.json and a report in the store, its numbers as metrics and its alarms as facts in the record
    campaign = run_micro("tiny_dpo", WATCHED)
    for finished in campaign.rounds():
        folder = campaign.store.find(finished.artifacts["bias"].key).path
        rows = tables.read(folder / "ledger.parquet", tables.LEDGER).to_pylist()
        said = json.loads((folder / "alarms.json").read_text())
        assert said["level"] == gravest(alarm for alarm in finished.alarms if alarm.source == "ledger")
        assert len(said["alarms"]) == sum(alarm.source == "ledger" for alarm in finished.alarms)
        assert "| tokens |" in (folder / "report.md").read_text()
        tokens = next(row for row in rows if row["feature"] == "tokens" and row["group"] is None)
        assert finished.metrics["bias/tokens/mean"].value == tokens["mean"]
        assert finished.metrics["bias/tokens/d0"].low == tokens["effect_low"]
        assert finished.metrics["bias/tokens/level"].value == LEVELS.index(tokens["level"])
        assert (tokens["pressure"] is None) == (finished.round == 0)
        assert (tokens["contrast"] is None) == (finished.round == 0)
        for distance in ("kl_base", "kl_previous"):
            assert (finished.metrics[f"bias/{distance}/mean"].value is None) == (finished.round == 0)
        assert [entry.key for entry in read_ledger(folder)] == [(row["feature"], row["group"]) for row in rows]
    assert gravest(campaign.rounds()[0].alarms) in ("", "watch")  # A/A


def test_a_round_that_trains_nothing_takes_no_step(run_micro: Callable[..., Any]) -> None:
    # the ledger of the checkpoint that is still the head stands: no step, the drift is the A/A difference of round 0
    campaign = run_micro("tiny_raft", WATCHED, "train.minimum=100000", "rounds=1")
    start, after = campaign.rounds()
    assert after.metrics["bias/tokens/step"].value is None
    assert after.metrics["bias/tokens/d0"].value == start.metrics["bias/tokens/d0"].value


def test_the_recipe_chooses_the_features(run_micro: Callable[..., Any]) -> None:
    # names from both shelves and a user's own; and with no samples there is no ledger at all
    features = 'probe.features=["tokens", "answer_entropy", "tests.test_bias:digits"]'
    finished = run_micro("tiny_control", "rounds=1", WATCHED, features).rounds()[-1]
    found = {name.split("/")[1] for name in finished.metrics if name.startswith("bias/")}
    assert found == {"tokens", "answer_entropy", "digits"}
    off = run_micro("tiny_control", "rounds=1", name="off").rounds()[-1]
    assert not [name for name in [*off.metrics, *off.artifacts] if name.startswith(("bias", "probe"))]


@pytest.mark.minutes
def test_formats_that_differ_are_no_distance(run_micro: Callable[..., Any]) -> None:
    # Claim: a checkpoint that did not move is at distance 0, also where it draws in bfloat16, not in the float32 of distances.
    still = ("rounds=1", WATCHED, 'probe.features=["kl_base", "kl_base_token"]', "train.precision=bfloat16")
    _, after = run_micro("tiny_control", *still, "train.learning_rate=1e-12", "gate.rule=always_promote").rounds()
    assert "probe/own_logprobs" in after.artifacts
    assert after.metrics["bias/kl_base/mean"].value == pytest.approx(0.0, abs=1e-4)
    assert after.metrics["bias/kl_base_token/mean"].value == pytest.approx(0.0, abs=1e-6)


def test_a_reward_beside_the_verifier_is_asked_about_the_probe(run_micro: Callable[..., Any]) -> None:
    # the proxy pays for length beside gold: the ledger knows how far it outran gold, and says null where gold alone rewards
    score = 'score=[{scorer="tests.micro:ends_even"}, {scorer="tests.test_bias:long", weight=0.5}]'
    features = 'probe.features=["tokens", "kl_base"]'
    start, after = run_micro("tiny_raft", "rounds=1", WATCHED, "prompts.probe=40", features, score).rounds()
    gap = after.metrics["bias/proxy_gap"]
    assert gap.low < gap.value < gap.high
    assert after.facts["proxy_gap"]["value"] == gap.value
    assert [point["round"] for point in after.facts["gold_over_kl"]] == [1]
    assert start.facts["proxy_gap"] is None
    assert after.facts["overoptimisation"] is None


def digits(completions: Sequence[Row]) -> list[float | None]:
    """A user's own feature: digits of a completion."""
    return [float(sum(c.isdigit() for c in row["text"])) for row in completions]


def long(prompts: Sequence[Row], completions: Sequence[Row]) -> list[Score]:
    """A judge that likes length and nothing else."""
    return [Score(len(row["token_ids"]) / 48) for row in completions]


@pytest.mark.minutes
def test_preferring_the_long_trips_the_length_alarm(run_micro: Callable[..., Any]) -> None:
    # oracle 7: pairs that choose the longer answer, on a real tiny model: tokens alarm, and selection is named as the cause
    campaign = run_micro(
        "tiny_dpo",
        WATCHED,
        'score=[{scorer="tests.test_bias:long"}]',
        "pair.pairer=best_vs_worst",
        "pair.settings={allow_wrong_chosen=true}",
        "prompts.probe=64",
        "prompts.per_round=64",
        "train.steps=20",
        "train.learning_rate=1e-3",
        'probe.features=["tokens", "rep_3", "bold"]',
        "gate.on_alarm.STOP=hold",
    )
    assert campaign.rounds()[1].metrics["bias/tokens/pressure"].low > 0
    lines = [str(a) for finished in campaign.rounds() for a in finished.alarms if (a.level, a.name) == ("ALARM", "tokens")]
    assert lines
    assert "Selection favours it" in lines[0]


def test_the_same_checkpoint_is_no_second_evidence(run_micro: Callable[..., Any]) -> None:
    # Claim: where a round trained nothing the ledger stands as it was: no watch becomes an ALARM by being looked at twice.
    never = 'at=[{round=2, set={"train.minimum"=100000}}]'
    sets = ("rounds=3", WATCHED, "prompts.probe=40", "train.learning_rate=3e-2", "gate.rule=always_promote", never)
    first, second, third = run_micro("tiny_raft", *sets).rounds()[1:]
    assert first.checkpoint.digest == second.checkpoint.digest == third.checkpoint.digest
    assert first.artifacts["bias"] == second.artifacts["bias"] == third.artifacts["bias"]
    assert [a for a in first.alarms if a.source == "ledger"] == [a for a in second.alarms if a.source == "ledger"]


@pytest.mark.minutes
def test_a_step_is_from_where_training_started(run_micro: Callable[..., Any]) -> None:
    # Claim: with start_from = "base" every step is the drift from round 0, and no gain is told: the pool was the head's.
    sets = ("rounds=2", WATCHED, "train.start_from=base", "gate.rule=always_promote", 'probe.features=["characters"]')
    last = run_micro("tiny_raft", *sets).rounds()[2]
    made = {name: metric.value for name, metric in last.metrics.items() if name.startswith("bias/characters/")}
    assert made["bias/characters/gain"] is None
    assert made["bias/characters/step"] is not None
