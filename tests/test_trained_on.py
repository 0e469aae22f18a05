"""What a round says about its training data is about the rows that its trainer read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from data.recipe.loss import Loss
from data.rows import tables
from data.store.campaign import Campaign
from flows.round.reporter import left_out
from tasks.choose.pairers.recorded import as_recorded
from tasks.models import models
from tasks.train import rows
from tests.test_train import read

LIMIT = 32  # tokens of prompt and completion: in the micro world about half of the completions are longer
KINDS = {
    "selected": ("tiny_raft", "train.replay=false"),
    "labelled": ("tiny_raft", "train.replay=false", "loss.name=kto", "select.selector=labelled"),
    "ranked": ("tiny_raft", "train.replay=false", "loss.name=rrhf", "select.selector=ranked"),
    "pairs": ("tiny_dpo",),
}


def payload(campaign: Campaign, label: str) -> Path:
    return campaign.store.folder(campaign.rounds()[1].artifacts[label].key) / "payload"


def trainers_rows(campaign: Campaign, kind: str) -> list[dict[str, Any]]:
    """The rows of token ids that the trainer was given, made of the round's artifacts as it makes them."""
    chosen = "pairs" if kind == "pairs" else "selected"
    keys = campaign.store.manifest(campaign.rounds()[1].artifacts["train"].key)["input_keys"]
    inputs = {name: campaign.store.folder(keys[name]) / "payload" for name in ("prompts", "completions", chosen)}
    tokenizer = models.load_tokenizer(campaign.store.folder(keys["checkpoint"]) / "payload")
    match kind:
        case "pairs":
            return rows.of_pairs(inputs, "rounds", tokenizer, Loss(name="sigmoid"))
        case "labelled":
            return rows.of_labelled(inputs, "rounds", tokenizer)
        case "ranked":
            return rows.of_ranked(inputs, "rounds", tokenizer)
        case _:
            return rows.of_selected(inputs, "rounds", tokenizer, replay=False)


def completions_in(row: dict[str, Any]) -> list[list[int]]:
    if "labels" in row:
        return [[label for label in row["labels"] if label != -100]]
    return row.get("completions") or [row[name] for name in ("completion_ids", "chosen_ids", "rejected_ids") if name in row]


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_about_the_rows_that_the_trainer_reads(run_micro: Any, kind: str) -> None:
    # Claim: for every kind of training data, counted rows and mean lengths are those of the trainer, although train.max_length
    # is in the way of many completions. What is not offered is counted.
    recipe, *sets = KINDS[kind]
    campaign = run_micro(recipe, *sets, "rounds=1", "evaluate.samples=0", f"train.max_length={LIMIT}", name=kind)
    finished, training = campaign.rounds()[1], json.loads((payload(campaign, "train") / "training.json").read_text())
    facts, given = finished.facts, trainers_rows(campaign, kind)
    completions = [completion for row in given for completion in completions_in(row)]

    assert facts["too_long"] > 0.2 * finished.metrics["too_long"].n
    assert finished.metrics["too_long"].value == facts["too_long"] / finished.metrics["too_long"].n
    assert left_out(finished)
    assert max(map(rows.longest, given)) <= LIMIT
    assert (training["rows"], training["left_out"]) == (len(given), 0)
    assert facts["trained"] == training
    if kind == "pairs":
        assert facts["pairs"] == len(given)
        for number, side in enumerate(("chosen", "rejected")):
            assert facts[f"mean_{side}_tokens"] == pytest.approx(mean(completions[number::2]))
    else:
        assert facts["rows"] == len(completions)
        assert facts["mean_selected_tokens"] == pytest.approx(mean(completions))


def mean(completions: list[list[int]]) -> float:
    return math.fsum(map(len, completions)) / len(completions)


def test_the_minimum_counts_what_can_be_trained_on(run_micro: Any) -> None:
    # Claim: a round whose completions are nearly all too long trains nothing, and says so. Before, the trainer was started.
    sets = ("rounds=1", "evaluate.samples=0", "train.replay=false", "train.max_length=8")
    finished = run_micro("tiny_raft", *sets, name="none").rounds()[1]
    assert finished.facts["rows"] == 0
    assert finished.verdict.decision == "hold"
    assert "too long" in finished.verdict.reason


def test_without_a_limit_in_the_way_the_choice_is_as_before(run_micro: Any) -> None:
    # Claim: a limit above every length changes no byte of what is chosen.
    one, two = (
        run_micro("tiny_raft", "rounds=1", "evaluate.samples=0", f"train.max_length={limit}", name=f"at-{limit}")
        for limit in (200, 256)
    )
    chosen = [read(payload(campaign, "select") / "selected.parquet", tables.SELECTED) for campaign in (one, two)]
    assert chosen[0] == chosen[1] != []
    assert one.rounds()[1].facts["too_long"] == 0
    assert not left_out(one.rounds()[1])


def test_recorded_pairs_stay_together_where_one_side_is_not_offered() -> None:
    # Claim: a recorded pair of which one side is too long, or that a mitigation took out, is left out; no other changes.
    def row(sample: int, text: str) -> dict[str, Any]:
        ids = {"completion_id": f"c{sample}", "prompt_id": "p", "sample": sample}
        return {**ids, "text": text, "finish_reason": "given", "record": {"preferred": sample % 2 == 0}}

    offered = [row(sample, f"text {sample}") for sample in range(8) if sample not in (2, 7)]
    pairs = as_recorded(offered, {}, {"verifier": {}})
    assert [(pair["chosen_id"], pair["rejected_id"]) for pair in pairs] == [("c0", "c1"), ("c4", "c5")]
