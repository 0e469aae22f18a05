from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import PartError, RecipeError
from data.rows import tables
from data.store.campaign import Campaign
from flows.commands.part_rules import check_parts
from flows.round.artifacts import load
from tasks.choose.pairers import origins as shelf
from tests.micro import micro
from tests.test_pairers import check_pairs

Run = Callable[..., Campaign]
ORIGIN = st.sampled_from(("policy", "policy", "given", "base", "contrast"))
SAMPLE = st.tuples(
    st.sampled_from("abcd"), st.sampled_from(("stop", "stop", "length")), st.sampled_from((1.0, 0.0, None)), ORIGIN
)


def table(campaign: Campaign, number: int, label: str, file: str, schema: Any) -> list[dict[str, Any]]:
    folder = load(campaign.store, campaign.rounds()[number].artifacts[label])
    rows: list[dict[str, Any]] = tables.read(folder.file(f"{file}.parquet"), schema).to_pylist()
    return rows


def origins(campaign: Campaign, number: int) -> dict[str, str]:
    rows = table(campaign, number, "pool", "origins", tables.ORIGINS)
    return {row["completion_id"]: row["origin"] for row in rows}


def pair(name: str) -> str:
    return f'pair={{pairer="{name}", settings={{cap=2}}}}'


def test_given_answers_against_samples(run_micro: Run) -> None:
    # SPIN: the seed split's prompts are drawn, every chosen completion is a given one, every rejected one a sample; it trains.
    campaign = run_micro("tiny_dpo", "rounds=1", "pool.given=true", pair("given_vs_sample"))
    origin = origins(campaign, 1)
    assert Counter(origin.values()) == {"policy": 32 * 4, "given": 32}
    pairs = table(campaign, 1, "pair", "pairs", tables.PAIRS)
    assert {(origin[row["chosen_id"]], origin[row["rejected_id"]]) for row in pairs} == {("given", "policy")}
    assert len(pairs) >= 32
    assert "train" in campaign.rounds()[1].artifacts


def test_given_answers_against_the_samples_of_two_rounds() -> None:
    # SPIN's iterations: with pool.earlier the last round's sample is rejected too, after the round's own.
    rows = [
        {"completion_id": key, "prompt_id": "p", "sample": 0, "text": key, "finish_reason": "stop"} for key in ("a", "b", "c")
    ]
    origin = {"a": "earlier", "b": "given", "c": "policy"}
    for cap, rejected in ((1, ["c"]), (2, ["c", "a"])):
        pairs = shelf.given_vs_sample(rows, {}, {}, cap=cap, origins=origin)
        assert [(pair["chosen_id"], pair["rejected_id"]) for pair in pairs] == [("b", key) for key in rejected]


def test_a_contrasting_prompt(run_micro: Run) -> None:
    # RLCD: its samples come back under the round's own prompts and are the rejected ones.
    campaign = run_micro("tiny_dpo", "rounds=1", 'pool.contrast="{prompt} a"', pair("prompt_contrast"))
    origin = origins(campaign, 1)
    assert Counter(origin.values()) == {"policy": 32 * 4, "contrast": 32 * 4}
    own = {row["prompt_id"] for row in table(campaign, 1, "draw", "rounds", tables.PROMPTS)}
    assert {row["prompt_id"] for row in table(campaign, 1, "pool", "completions", tables.COMPLETIONS)} == own
    pairs = table(campaign, 1, "pair", "pairs", tables.PAIRS)
    assert {(origin[row["chosen_id"]], origin[row["rejected_id"]]) for row in pairs} == {("policy", "contrast")}
    assert campaign.rounds()[1].facts["wrong_chosen"] == 0


@pytest.mark.minutes
def test_checkpoint_0_and_earlier_rounds(run_micro: Run) -> None:
    # Round 2 sees its own samples, checkpoint 0's and round 1's on the same prompts; scores cover them all.
    sets = ("pool.base=true", "pool.earlier=1", "prompts.per_round=0", "gate.rule=always_promote")
    campaign = run_micro("tiny_raft", *sets)
    assert Counter(origins(campaign, 1).values()) == {"policy": 64 * 4, "base": 64 * 4}
    assert Counter(origins(campaign, 2).values()) == {"policy": 64 * 4, "base": 64 * 4, "earlier": 64 * 4}
    scores = table(campaign, 2, "score/tests.micro:ends_even", "scores", tables.SCORES)
    assert [row["completion_id"] for row in scores] == list(origins(campaign, 2))


def test_what_cannot_be_is_refused() -> None:
    # A pairer that tells origins apart without a pool, given answers without a seed split, a template without the prompt.
    with pytest.raises(PartError, match=r"Pairer 'given_vs_sample' compares .* by origin, .* Add \[pool\] with given"):
        check_parts(micro("tiny_dpo", pair("given_vs_sample")))
    with pytest.raises(RecipeError, match=r"set prompts\.seed"):
        micro("tiny_dpo", "pool.given=true", "prompts.seed=0", "model.path=x")
    with pytest.raises(RecipeError, match=r"text around"):
        micro("tiny_dpo", "pool.contrast=worse")


@given(st.lists(st.lists(SAMPLE, max_size=6), max_size=3), st.integers(0, 3), st.booleans())
def test_pairs_across_origins(groups: list[list[Any]], cap: int, allow: bool) -> None:
    # Each side from its origin, never the same text, never a cut or (unless allowed) a wrong one chosen, ties no pair.
    rows, origin, verdict = [], {}, {}
    for p, group in enumerate(groups):
        for sample, (text, finish, value, source) in enumerate(group):
            key = f"{p}-{sample}"
            rows.append({"completion_id": key, "prompt_id": f"p{p}", "sample": sample, "text": text, "finish_reason": finish})
            origin[key], verdict[key] = source, value
    scores = {"verifier": verdict}
    made = {
        ("given", "policy"): shelf.given_vs_sample(rows, verdict, scores, cap=cap, origins=origin),
        ("policy", "contrast"): shelf.prompt_contrast(rows, verdict, scores, cap=cap, allow_wrong_chosen=allow, origins=origin),
        ("policy", "base"): shelf.best_vs_base(rows, verdict, scores, allow_wrong_chosen=allow, origins=origin),
    }
    for (high, low), pairs in made.items():
        for chosen, rejected in check_pairs(pairs, rows):
            assert (origin[chosen["completion_id"]], origin[rejected["completion_id"]]) == (high, low)
            if high == "policy":
                assert allow or verdict[chosen["completion_id"]] != 0.0
            if low == "base":
                assert verdict[chosen["completion_id"]] > verdict[rejected["completion_id"]]
    json.dumps(made[("policy", "base")], allow_nan=False)
