"""The shelf of mitigations: what each takes away, and what it leaves alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import PartError
from tasks.choose import mitigations
from tasks.choose.mitigations import chosen, rewards
from tasks.choose.pairers.rewards import best_vs_worst
from tasks.choose.selectors.best import best_of_n
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
    # reward that is nothing but length is worth nothing after, to the last digit; a price by hand is taken as it is
    rows, _, scores = pool()
    reward = {row["completion_id"]: 0.01 * len(row["token_ids"]) for row in rows}
    changed = rewards.length_penalty(reward, rows, scores)
    assert len(set(changed.values())) == 1  # else best_vs_worst would pair by what is left of the rounding
    by_hand = rewards.length_penalty(reward, rows, scores, per_token=0.005)
    assert by_hand["000-0"] == pytest.approx(0.5 * reward["000-0"])


POOLS, PROMPTS, SAMPLES = 25, 60, 8  # of each kind, fixed before looking
REWARDS = ("verdict", "levels", "continuous")  # a verifier's 0 and 1, a judge's six levels, a reward model


@functools.cache
def priced_pool(kind: str, seed: int, slope: float) -> tuple[list[Row], dict[str, float | None]]:
    """Completions of random length, and a reward that pays `slope` per 20 tokens more than the prompt's usual length."""
    draw = np.random.default_rng(seed)
    usual = np.exp(draw.normal(3.5, 0.3, PROMPTS))[:, None]
    tokens = np.maximum(1, usual * np.exp(draw.normal(0, 0.4, (PROMPTS, SAMPLES)))).astype(int)
    paid, luck = slope * (tokens - usual) / 20, draw.normal(size=tokens.shape)
    value = {
        "verdict": (draw.random(tokens.shape) < 1 / (1 + np.exp(-2 * paid))).astype(float),
        "levels": np.clip(np.round(2.5 + paid + luck), 0, 5) / 5,
        "continuous": paid + luck,
    }[kind]
    rows = [
        {"completion_id": f"{p:03d}-{s}", "prompt_id": f"{p:03d}", "sample": s, "text": "word " * n + f"{p}-{s}",
         "token_ids": [1] * n, "finish_reason": "stop"}
        for p in range(PROMPTS)
        for s, n in enumerate(tokens[p].tolist())
    ]  # fmt: skip
    return rows, {row["completion_id"]: float(v) for row, v in zip(rows, value.ravel(), strict=True)}


def length_gaps(rows: Sequence[Row], reward: dict[str, float | None]) -> tuple[float, float]:
    """|Mean log length of the chosen minus that of the rejected| of best_vs_worst; of the best minus the rest of best_of_n."""
    log = {row["completion_id"]: np.log(len(row["token_ids"])) for row in rows}
    pairs = best_vs_worst(rows, reward, {"": {}}, allow_wrong_chosen=True)
    best = {row["completion_id"] for row in best_of_n(rows, reward, {"": {}})}
    sides: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        sides.setdefault(row["prompt_id"], ([], []))[row["completion_id"] in best].append(log[row["completion_id"]])
    gaps = [log[pair["chosen_id"]] - log[pair["rejected_id"]] for pair in pairs]
    return abs(float(np.mean(gaps or [0]))), abs(float(np.mean([np.mean(b) - np.mean(rest) for rest, b in sides.values()])))


def ties_decided(rows: Sequence[Row], before: dict[str, float | None], after: Any) -> int:
    """Pairs of completions of one prompt whose rewards were equal and are not any more."""
    seen: dict[tuple[str, float | None], set[float | None]] = {}
    for row in rows:
        seen.setdefault((row["prompt_id"], before[row["completion_id"]]), set()).add(after[row["completion_id"]])
    return sum(len(values) - 1 for values in seen.values())


def priced(kind: str, slope: float, mitigation: str, **settings: Any) -> dict[str, Any]:
    """Means over POOLS pools: gaps before and after, ties decided, and the share of pools whose rewards changed."""
    found = []
    for seed in range(POOLS):
        rows, reward = priced_pool(kind, seed, slope)
        verdict = reward if kind == "verdict" else dict.fromkeys(reward, 1.0)
        after = getattr(rewards, mitigation)(reward, rows, {"verifier": verdict}, **settings)
        before_gaps, after_gaps = length_gaps(rows, reward), length_gaps(rows, after)
        found.append((*before_gaps, *after_gaps, ties_decided(rows, reward, after), after != reward))
    names = ("pairs", "best", "pairs after", "best after", "ties decided", "changed")
    return dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))


@pytest.mark.parametrize("kind", REWARDS)
@pytest.mark.parametrize(
    ("mitigation", "settings"), [("length_penalty", {}), ("residualised", {"features": ("words", "compression")})]
)
def test_where_reward_is_independent_of_length_nothing_is_corrected(kind: str, mitigation: str, settings: Any) -> None:
    # neutral pools: what is chosen differs in length no more than before, no tie is decided, and 80% of pools stay as they are
    made = priced(kind, 0.0, mitigation, **settings)
    assert made["pairs after"] <= made["pairs"] + 0.003
    assert made["best after"] <= made["best"] + 0.003
    assert made["ties decided"] == 0
    assert made["changed"] <= 0.2  # 5% by the interval


@pytest.mark.parametrize("kind", REWARDS)
@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_a_chosen_price_brings_the_lengths_of_what_is_chosen_together(kind: str, slope: float) -> None:
    # biased pools, in either direction: the gap of what is chosen falls, and no tie is decided, not even then
    made = priced(kind, slope, "length_penalty")
    assert made["ties decided"] == 0
    limit = {"verdict": 1.003, "levels": 0.8, "continuous": 0.25}[kind]  # a verifier's ties leave hardly anything to reorder
    assert made["pairs after"] <= limit * made["pairs"]
    assert made["best after"] <= limit * made["best"]


@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_residuals_are_chosen_without_regard_to_the_feature(slope: float) -> None:
    # biased pools: a reward model that pays for words chooses by the rest of its reward
    made = priced("continuous", slope, "residualised", features=("words",))
    assert made["pairs after"] <= 0.25 * made["pairs"]
    assert made["best after"] <= 0.25 * made["best"]
    assert priced("verdict", slope, "residualised", features=("words",))["changed"] == 0  # right answers keep what is theirs


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["stop", "length", "error", None, "given"]))), st.integers(1, 9))
def test_only_what_is_too_long_loses_its_reward(completions: list[tuple[int, str]], limit: int) -> None:
    # exactly the cut ones and those over the limit; every other reward is as it was
    rows = [{"completion_id": str(i), "token_ids": [1] * n, "finish_reason": reason, "text": ""}
            for i, (n, reason) in enumerate(completions)]  # fmt: skip
    after = rewards.reject_overlong({str(i): float(i) for i in range(len(rows))}, rows, {}, tokens=limit)
    kept = [n <= limit and reason not in ("length", "error") for n, reason in completions]
    assert after == {str(i): float(i) if keep else None for i, keep in enumerate(kept)}


def test_every_loop_and_nothing_else_loses_its_reward() -> None:
    # planted loops of every period up to 64 after a random start are all found; 300 random texts keep their reward
    draw = np.random.default_rng(3)
    loops = [draw.integers(0, 500, 40).tolist() + draw.integers(0, 500, period).tolist() * 60 for period in range(1, 65)]
    texts = loops + [draw.integers(0, 500, 400).tolist() for _ in range(300)]
    rows = [{"completion_id": str(i), "token_ids": tokens, "text": ""} for i, tokens in enumerate(texts)]
    after = rewards.reject_loops({str(i): 1.0 for i in range(len(rows))}, rows, {})
    assert [i for i, value in after.items() if value is None] == [str(i) for i in range(len(loops))]


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


@pytest.mark.minutes
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
    words = {"token_ids": None, "text": "one two three"}
    assert mitigations.lengths([sampled, sampled]) == [9, 9]
    assert mitigations.lengths([sampled, words]) == [3, 3]
    assert mitigations.lengths([sampled, {"token_ids": [], "text": ""}]) == [9, 0]  # an empty completion is sampled too
