"""The shelf of mitigations: what each takes away, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import PartError
from tasks.choose import mitigations
from tasks.choose.mitigations import chosen, rewards
from tasks.run import parts

Row = dict[str, Any]


def pool(seed: int = 0, prompts: int = 60, k: int = 8) -> tuple[list[Row], dict[str, float | None], dict[str, Any]]:
    """Completions of random length with `!`, a verdict, and a proxy that pays for being right and for every `!`."""
    draw = np.random.default_rng(seed)
    rows: list[Row] = []
    reward: dict[str, float | None] = {}
    verdict: dict[str, float] = {}
    for prompt in range(prompts):
        for sample in range(k):
            i, marks = f"{prompt:03d}-{sample}", int(draw.integers(0, 4))
            text = "word " * int(draw.integers(5, 40)) + "!" * marks
            rows.append({"completion_id": i, "prompt_id": f"{prompt:03d}", "sample": sample, "text": text,
                         "token_ids": list(range(len(text))), "finish_reason": "stop"})  # fmt: skip
            verdict[i] = float(draw.random() < 0.5)
            reward[i] = verdict[i] + 0.15 * marks
    return rows, reward, {"exact_match": verdict}


def marks(completions: Sequence[Row]) -> list[float | None]:
    """A user's own feature."""
    return [float(row["text"].count("!")) for row in completions]


def test_residualising_takes_the_style_and_leaves_the_verdict() -> None:
    # what the proxy paid for `!` is gone, what it paid for being right is all there
    rows, reward, scores = pool()
    changed = rewards.residualised(reward, rows, scores, features=("tests.test_mitigations:marks",))
    values = np.array([changed[row["completion_id"]] for row in rows])
    right = np.array([scores["exact_match"][row["completion_id"]] for row in rows])
    assert values[right == 1].mean() - values[right == 0].mean() == pytest.approx(1.0, abs=0.03)
    assert values[right == 1].std() < 0.02
    exact = {i: scores["exact_match"][i] + 0.15 * float(row["text"].count("!")) for row in rows if (i := row["completion_id"])}
    changed = rewards.residualised(exact, rows, scores, features=("tests.test_mitigations:marks",))
    assert len(set(changed.values())) == 2  # right and wrong: nothing is left for a pairer that goes by order


def test_a_length_penalty_leaves_no_correlation_within_prompts() -> None:
    # reward that is nothing but length is worth nothing after; a price by hand is taken as it is
    rows, _, scores = pool()
    reward = {row["completion_id"]: 0.01 * len(row["token_ids"]) for row in rows}
    changed = rewards.length_penalty(reward, rows, scores)
    assert np.std(np.array([changed[i] for i in reward], dtype=float)) == pytest.approx(0.0, abs=1e-9)
    by_hand = rewards.length_penalty(reward, rows, scores, per_token=0.005)
    assert by_hand["000-0"] == pytest.approx(0.5 * reward["000-0"])


def test_unknown_rewards_stay_unknown() -> None:
    # None is "unknown", and a mitigation does not know better
    rows, reward, scores = pool(prompts=3)
    reward["000-0"] = None
    for changed in (
        rewards.length_penalty(reward, rows, scores),
        rewards.residualised(reward, rows, scores, features=("words",)),
        rewards.reject_loops(reward, rows, scores),
    ):
        assert [i for i, value in changed.items() if value is None] == ["000-0"]


def test_loops_and_overlong_completions_have_no_reward() -> None:
    # they can be neither chosen nor rejected, whatever the verifier says
    rows, reward, scores = pool(prompts=1)
    rows[0]["token_ids"], rows[1]["token_ids"], rows[2]["finish_reason"] = [7, 8] * 100, list(range(500)), "length"
    assert [i for i, v in rewards.reject_loops(reward, rows, scores).items() if v is None] == ["000-0"]
    overlong = rewards.reject_overlong(reward, rows, scores, tokens=199)
    assert {i for i, v in overlong.items() if v is None} >= {"000-0", "000-1", "000-2"}


def all_pairs(rows: Sequence[Row], reward: dict[str, Any]) -> list[Row]:
    ends = [
        sorted((r for r in rows if r["prompt_id"] == p), key=lambda r: reward[r["completion_id"]])
        for p in {r["prompt_id"] for r in rows}
    ]
    return [
        {"prompt_id": e[0]["prompt_id"], "chosen_id": e[-1]["completion_id"], "rejected_id": e[0]["completion_id"]}
        for e in ends
    ]


def test_balanced_pairs_have_as_much_of_a_style_on_both_sides() -> None:
    # chosen with more `!` is thinned until both sides have as many on average; rows keep their form and order
    rows, reward, scores = pool(prompts=200)
    before = all_pairs(rows, reward)
    kept = chosen.style_balanced(before, rows, scores, feature="tests.test_mitigations:marks")
    of = dict(zip((r["completion_id"] for r in rows), marks(rows), strict=True))
    gaps = [of[p["chosen_id"]] - of[p["rejected_id"]] for p in kept]
    assert abs(np.mean(gaps)) <= 0.05 * np.mean([of[p["chosen_id"]] - of[p["rejected_id"]] for p in before])
    assert kept == [pair for pair in before if pair in kept]


def test_matched_pairs_are_of_one_length() -> None:
    # within the tolerance, and only those
    rows, reward, scores = pool(prompts=200)
    tokens = {r["completion_id"]: len(r["token_ids"]) for r in rows}
    before = all_pairs(rows, reward)
    kept = chosen.length_matched(before, rows, scores, tolerance=0.2)
    gap = {p["prompt_id"]: abs(np.log(tokens[p["chosen_id"]] / tokens[p["rejected_id"]])) for p in before}
    assert {p["prompt_id"] for p in kept} == {p for p, g in gap.items() if g <= 0.2}


def test_copies_are_capped_per_prompt() -> None:
    # the same answer is taught once a prompt, in pairs and in selections
    rows, _, scores = pool(prompts=2, k=3)
    for row in rows:
        row["text"] = "same"
    selected = [{"prompt_id": r["prompt_id"], "completion_id": r["completion_id"]} for r in rows]
    assert len(chosen.cap_copies(selected, rows, scores)) == 2
    assert len(chosen.cap_copies(selected, rows, scores, copies=2)) == 4
    for number, row in enumerate(rows):
        row["text"] = f"way {number} #7"
    assert len(chosen.cap_copies(selected, rows, scores)) == len(rows)
    assert len(chosen.cap_copies(selected, rows, scores, after="#")) == 2  # another way to the same answer


def test_mitigations_run_in_their_place_and_enter_the_key() -> None:
    # one on rewards leaves rows alone and the other way round; what they bind is part of the stage's key
    rows, reward, scores = pool(prompts=2)
    wanted = [{"mitigation": "cap_copies", "settings": {}}, {"mitigation": "length_penalty", "settings": {"per_token": 1.0}}]
    assert mitigations.apply("rewards", wanted, reward, rows, scores) == rewards.length_penalty(
        reward, rows, scores, per_token=1.0
    )
    assert mitigations.apply("chosen", wanted, [], rows, scores) == []
    balanced = [{"mitigation": "style_balanced", "settings": {"feature": "words"}}]
    assert mitigations.dependencies(balanced) == [("mitigations", "style_balanced"), ("features", "words")]
    with pytest.raises(PartError, match="did you mean 'cap_copies'"):
        parts.find("mitigations", "cap_copy")


def test_a_recipe_names_its_mitigations(run_micro: Callable[..., Any]) -> None:
    # in a campaign: no pair is left whose lengths differ by more than the tolerance
    sets = ("rounds=1", 'mitigate=[{mitigation="length_matched", settings={tolerance=0.05}}]')
    matched = run_micro("tiny_dpo", *sets).rounds()[1].facts
    free = run_micro("tiny_dpo", "rounds=1", name="free").rounds()[1].facts
    assert matched["pairs"] < free["pairs"]
    assert abs(matched["length_gap"] or 0.0) <= 0.05 * 48


def test_two_judges_agreement_is_a_pairs_label() -> None:
    # CREAM: rankings alike give 1, one swap of three 2/3, turned round 0, a judge that ties everything 0.5; nothing is dropped
    rankings: dict[str, tuple[int | None, ...]] = {
        "alike": (1, 2, 3),
        "swapped": (2, 1, 3),
        "round": (3, 2, 1),
        "tied": (1, 1, 1),
        "silent": (None, None, 1),
    }
    completions: list[Row] = [{"completion_id": f"{p}{i}", "prompt_id": p, "sample": i} for p in rankings for i in range(3)]
    scores: dict[str, dict[str, float | None]] = {
        "policy": {row["completion_id"]: float(row["sample"]) for row in completions},
        "base": {f"{p}{i}": value for p, values in rankings.items() for i, value in enumerate(values)},
    }
    pairs = [{"prompt_id": p, "chosen_id": f"{p}2", "rejected_id": f"{p}0"} for p in rankings]
    made = chosen.agreed(pairs, completions, scores, one="policy", other="base")
    assert {pair["prompt_id"]: round(pair["label"], 6) for pair in made} == {
        "alike": 1.0, "swapped": 0.666667, "round": 0.0, "tied": 0.5, "silent": 0.5,
    }  # fmt: skip
    with pytest.raises(PartError, match=r"expected names of \[\[score\]\], found mine; known: policy, base"):
        chosen.agreed(pairs, completions, scores, one="policy", other="mine")


def test_what_loses_its_reward_is_on_neither_side_of_parts_that_go_by_verdicts() -> None:
    # a mitigation that takes rewards away keeps these completions from everything chosen, and no others
    rows, reward, scores = pool(prompts=2)
    limit = int(np.median([len(row["token_ids"]) for row in rows]))
    unknown = rows[0]["completion_id"]
    reward[unknown] = None  # as before: a part that goes by verdicts may take it
    wanted = [{"mitigation": "reject_overlong", "settings": {"tokens": limit}}]
    offered, after = mitigations.on_rewards(wanted, reward, rows, scores)
    assert {row["completion_id"] for row in offered} == {unknown} | {i for i, value in after.items() if value is not None}
    assert 0 < len(offered) < len(rows)


@pytest.mark.parametrize("chooser", ["select.selector=all_correct", "select.selector=labelled"])
def test_overlong_answers_are_not_learnt_from(run_micro: Callable[..., Any], chooser: str) -> None:
    # in a campaign: the selector reads the verdict alone, and still takes nothing that was rejected for its length
    from data.rows import tables

    loss = ("loss.name=kto", "train.replay=false") if "labelled" in chooser else ()
    overlong = 'mitigate=[{mitigation="reject_overlong", settings={tokens=4}}]'
    campaign = run_micro("tiny_raft", "rounds=1", chooser, "select.settings={}", overlong, *loss)

    def folder(label: str) -> Path:
        return Path(campaign.store.folder(campaign.rounds()[1].artifacts[label].key) / "payload")

    drawn = tables.read(folder("generate") / "completions.parquet", tables.COMPLETIONS).to_pylist()
    length = {row["completion_id"]: len(row["token_ids"]) for row in drawn}
    taken = tables.read(folder("select") / "selected.parquet", tables.SELECTED).to_pylist()
    assert max(length.values()) > 4
    assert taken
    assert max(length[row["completion_id"]] for row in taken) <= 4


def test_lengths_are_of_one_unit() -> None:
    # tokens where all have them; beside a text nobody sampled, words of both
    sampled = {"token_ids": [1] * 9, "text": "one two three"}
    given = {"token_ids": None, "text": "one two three"}
    assert mitigations.lengths([sampled, sampled]) == [9, 9]
    assert mitigations.lengths([sampled, given]) == [3, 3]
