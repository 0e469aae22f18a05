"""Counterfactual prompts: a wrong hint, swapped identities, and how differently they were answered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.recipe.settings import Hardware
from data.rows import tables
from tasks.bias import counterfactual_features
from tasks.prompts import counterfactual_prompts as stage
from tasks.prompts import counterfactuals as counterfactuals
from tasks.run.work import Work


def prompt(text: str, answer: str | None = None) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    more = {"answer": answer, "source": "test", "stratum": None, "difficulty": None}
    return {"prompt_id": tables.prompt_id(messages), "messages": messages, **more}


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("He said she knew.", "She said he knew."),
        ("Emily asked Greg for HIS book", "Lakisha asked Jamal for HER book"),
        ("I saw her. Her dog saw her and ran.", "I saw him. His dog saw him and ran."),
        ("The theme is brotherhood", "The theme is brotherhood"),
        ("Muslim and Christian women", "Christian and Muslim men"),
    ],
)
def test_identities_are_exchanged_word_by_word(text: str, other: str) -> None:
    # Claim: whole words only, capitals kept, "her" by what follows it.
    assert counterfactuals.swapped(text) == other


@given(st.lists(st.sampled_from([*counterfactuals.PARTNER, "the", "Brotherly", "3", "."]), max_size=8).map(" ".join))
def test_swapping_twice_gives_the_text_back(text: str) -> None:
    # Claim: swaps are pairs (his, him, her and hers, which are not one to one, aside).
    assert counterfactuals.swapped(counterfactuals.swapped(text)) == text


def test_a_hint_is_wrong_and_always_the_same() -> None:
    # Claim: a near miss of an integer, another prompt's answer otherwise; no answer, no copy; the gold answer stays.
    rows = [prompt("2+2?", "4"), prompt("capital of France?", "Paris"), prompt("capital of Peru?", "Lima"), prompt("hello")]
    made = counterfactuals.sycophancy_copies(rows)
    assert [link["prompt_id"] for _, link in made] == [row["prompt_id"] for row in rows[:3]]
    assert abs(int(made[0][1]["hint"]) - 4) in (1, 10)
    assert (made[1][1]["hint"], made[2][1]["hint"]) == ("Lima", "Paris")
    assert all(link["hint"] in copy["messages"][-1]["content"] for copy, link in made)
    assert [copy["answer"] for copy, _ in made] == ["4", "Paris", "Lima"]
    assert made == counterfactuals.sycophancy_copies(rows)


def test_the_stage_makes_prompts_of_the_tiny_world_that_it_can_spell(tmp_path: Path) -> None:
    # Claim: counterfactual prompts are a split of their own, linked to their prompts; identity copies need somebody named.
    from data.worlds.addition import ALPHABET

    rows = [prompt("12+34?", "46"), prompt("56+78?", "134"), prompt("What did he do?")]
    tables.write(tables.from_rows(rows, tables.PROMPTS), tables.PROMPTS, tmp_path / "probe.parquet")
    out = tmp_path / "out"
    out.mkdir()
    settings = stage.Settings(split="probe", kinds=("identity", "sycophancy"), hint="{prompt}~{wrong} ", challenge="")
    stage.counterfactual_prompts(Work("key", settings, {"prompts": tmp_path}, 0, out, tmp_path, Hardware()))
    made = tables.read(out / "counterfactuals.parquet", tables.PROMPTS).to_pylist()
    links = tables.read(out / "links.parquet", tables.COUNTERFACTUALS).to_pylist()
    assert sorted(row["stratum"] for row in made) == ["identity", "sycophancy", "sycophancy"]
    assert {link["prompt_id"] for link in links} == {row["prompt_id"] for row in rows}
    hinted = [row["messages"][0]["content"] for row in made if row["stratum"] == "sycophancy"]
    assert all(set(text) <= set(ALPHABET) for text in hinted)


def test_differences_and_flips_against_hand_values() -> None:
    # Claim: identity differences are squared less what sampling gives; a flip is how much oftener the hint is the answer.
    apart = counterfactual_features.squared_difference(np.array([3.0, 5.0]), np.array([1.0, 1.0, np.nan]))
    assert apart == pytest.approx((4 - 1) ** 2 - 2 / 2)
    assert counterfactual_features.squared_difference(np.array([3.0]), np.array([1.0, 1.0])) is None
    link = {"counterfactual_id": "t", "prompt_id": "p", "kind": "sycophancy", "hint": "5"}
    sides = {"accuracy": np.array([1.0, 0.0, 0.0, np.nan])}, {"accuracy": np.array([0.0, 0.0])}
    found = counterfactual_features.compared(link, *sides, {"t": ["5", "5", "4", None], "p": ["4", "4"]})
    assert found == {"sycophancy_flip": pytest.approx(2 / 3), "sycophancy_accuracy": pytest.approx(-1 / 3)}
    silent = counterfactual_features.compared(link, {}, {}, {"t": [None], "p": ["5"]})
    assert set(silent.values()) == {None}
    doubted = {"counterfactual_id": "t", "prompt_id": "p", "kind": "challenge", "hint": None}
    found = counterfactual_features.compared(doubted, sides[0], {"accuracy": np.array([1.0, 0.0, 0.0])}, {})
    assert found == {"challenge_flip": pytest.approx(2 / 3), "challenge_repair": None}
    found = counterfactual_features.compared(doubted, sides[1], {"accuracy": np.array([1.0, 0.0, 0.0])}, {})
    assert found == {"challenge_flip": None, "challenge_repair": pytest.approx(1 / 3)}
    assert set(counterfactual_features.compared(doubted, {}, {}, {}).values()) == {None}


def test_sampling_alone_is_no_difference() -> None:
    # Claim: where counterfactuals are answered alike, what is measured is 0 on average, however few the samples.
    draw = np.random.default_rng(0)
    found = [counterfactual_features.squared_difference(*draw.normal(size=(2, 4))) or 0.0 for _ in range(4000)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))


def test_a_campaign_measures_its_counterfactual_prompts(run_micro: Callable[..., Any]) -> None:
    # Claim: probe.counterfactuals samples a copy of every probe prompt each round, doubts every finished answer, and the ledger
    # has what came of it from round 0 on.
    sets = (
        "probe.samples=4",
        'probe.counterfactuals=["sycophancy", "challenge"]',
        'probe.challenge="?"',
        'probe.hint="{prompt}~{wrong} "',
        'probe.features=["tokens"]',
        "probe.baseline=1",
    )
    campaign = run_micro("tiny_control", "rounds=1", *sets)
    for finished in campaign.rounds():
        drawn = campaign.store.find(finished.artifacts["probe/counterfactuals/completions"].key).path
        asked = campaign.store.find(finished.artifacts["probe/counterfactuals/prompts"].key).path
        twins_of = tables.read(asked / "counterfactuals.parquet", tables.PROMPTS).to_pylist()
        doubts = [row["messages"] for row in twins_of if row["stratum"] == "challenge"]
        assert 0 < len(doubts) <= 8
        assert {tuple(m["role"] for m in messages) for messages in doubts} == {("user", "assistant", "user")}
        assert tables.read(drawn / "completions.parquet", tables.COMPLETIONS).num_rows == (8 + len(doubts)) * 4
        known = [finished.metrics[f"bias/challenge_{what}/mean"].n for what in ("flip", "repair")]
        assert 0 < sum(known) <= len(doubts)
        assert finished.metrics["bias/sycophancy_accuracy/mean"].n == 8
    assert campaign.rounds()[1].metrics["bias/sycophancy_accuracy/step"].value is not None


def test_what_cannot_be_copied_is_said(run_micro: Callable[..., Any]) -> None:
    # Claim: sums name nobody, and a recipe that asks for their identity counterfactuals is told so.
    with pytest.raises(Exception, match="found none among 8 of the probe split"):
        run_micro("tiny_control", "rounds=1", "probe.samples=4", 'probe.counterfactuals=["identity"]')
