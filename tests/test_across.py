"""Answers compared across prompts, families of features, and the words of an audit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from data.alarm import Alarm
from tasks.bias import observe
from tasks.bias.alarm_rule import judge
from tasks.bias.audit_words import Compared, gold_verdict
from tasks.bias.counterfactual_features import COLUMNS
from tasks.bias.effects import Array, moments, paired_t
from tasks.bias.families import FAULTS, WORDS, by_family, family_of, subject
from tasks.bias.iterations import ledger_of
from tasks.bias.ledger import Sample, compare
from tasks.bias.marks import PLACES, Collector, Marks, opening, sketch
from tasks.bias.one_answer import one_answer
from tasks.bias.pressure import Estimate
from tasks.bias.prompt_features import across

SUBJECTS = ("river", "stone", "window", "garden", "table", "paper", "music", "winter", "letter", "silver", "corner", "bridge")


def marks(path: Path, texts: list[str], most: int = 2048) -> Marks:
    """Through the real collector and file."""
    collector = Collector(most)
    collector.add([[{"prompt_id": f"p{i}", "text": text}] for i, text in enumerate(texts)])
    return collector.write(path / "marks.parquet")


def prose(seed: int, n: int, words: int = 40) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(SUBJECTS, words)) for _ in range(n)]


def numbered(answers: Array) -> Marks:
    n = len(answers)
    blank = np.zeros((n, PLACES), dtype=np.uint32)
    return Marks([str(i) for i in range(n)], answers, [""] * n, blank, np.zeros(n, dtype=bool))


# -- one answer for all prompts -----------------------------------------------------------------------------------------
def test_one_answer_for_all_prompts_is_said(tmp_path: Path) -> None:
    # Claim: one text for every prompt is a STOP that quotes it, whatever its case and spaces; for 30% an ALARM; else nothing.
    base = marks(tmp_path, prose(1, 100))
    same = [("It depends.", "it  depends.\n")[i % 2] for i in range(100)]
    (stop,) = one_answer(marks(tmp_path, same), base)
    assert stop.level == "STOP"
    assert stop.sentence.startswith('100 of 100 prompts get the same answer: "It depends".')
    assert "Distinct answers: 1, with round 0 100." in stop.sentence
    (some,) = one_answer(marks(tmp_path, same[:30] + prose(2, 70)), base)
    assert (some.level, some.sentence[:17]) == ("ALARM", "30 of 100 prompts")
    assert not one_answer(marks(tmp_path, prose(3, 100)), base)
    assert not one_answer(marks(tmp_path, same), marks(tmp_path, same))  # the habit of round 0 is no drift
    (empty,) = one_answer(marks(tmp_path, [" "] * 100), base)
    assert "an answer without a word" in empty.sentence


def test_few_right_answers_are_no_collapse() -> None:
    # Claim: if verified accuracy surely rose, yes for most prompts is a watch, which says why.
    then, now = np.arange(200), np.repeat([1, 0], [120, 80])
    assert one_answer(numbered(now), numbered(then), Estimate(0.0, -0.1, 0.1))[0].level == "ALARM"
    (watch,) = one_answer(numbered(now), numbered(then), Estimate(0.3, 0.2, 0.4))
    assert watch.level == "watch"
    assert "accuracy surely rose" in watch.sentence


@pytest.mark.parametrize("n", [32, 128])
def test_exchangeable_answers_hardly_ever_alarm(n: int) -> None:
    # Claim: with four, two or many possible answers and nothing moved, at most 1 of 1,000 comparisons alarms.
    draw = np.random.default_rng(n)
    kinds: tuple[Callable[[], Array], ...] = (
        lambda: draw.choice(4, n, p=[0.4, 0.3, 0.2, 0.1]),
        lambda: draw.integers(0, 2, n),
        lambda: draw.geometric(0.03, n),
    )
    alarms = sum(bool(one_answer(numbered(kind()), numbered(kind()))) for kind in kinds for _ in range(333))
    assert alarms <= 1


def test_a_quote_styles_nothing() -> None:
    # Claim: what an alarm quotes of a completion cannot be read as Markdown, HTML or control characters, and is short.
    assert opening("<b>**x**</b> [a](http://y) `c` \x1b[31m|") == "bx/b a(http:y) c 31m".replace("/", "")
    assert len(opening("word " * 500)) <= 84


# -- the unit is the prompt ---------------------------------------------------------------------------------------------
def pairs_of_prompts(draw: np.random.Generator, n: int) -> tuple[Array, Array]:
    """Plain means and jackknife values of the similarity of texts of one sampler, each as boilerplate as it happens to be."""
    texts = draw.integers(0, 2**32, (n, PLACES)).astype(np.uint32)
    common = np.arange(PLACES, dtype=np.uint32)
    means = across._similarities(np.where(draw.random((n, PLACES)) < 0.6 * draw.random((n, 1)), common, texts))
    return means, across.pseudo_values(means)


def surely(ours: Array, theirs: Array) -> bool:
    """Whether the ledger's test finds a difference, with one value a prompt."""
    return bool(paired_t(moments(ours[:, None]), moments(theirs[:, None]))[2] < 0.05)


def naively(ours: Array, theirs: Array) -> bool:
    """Whether a paired t test does, as if prompts were independent."""
    return bool(np.ptp(ours - theirs) > 0 and ttest_rel(ours, theirs).pvalue < 0.05)


def test_pairs_of_prompts_are_no_independent_evidence() -> None:
    # Claim: nothing moved: p < .05 in about 5% of 100 comparisons with jackknife values, in 15% or more with plain means.
    draw = np.random.default_rng(3)
    found = []
    for _ in range(100):
        plainly, by_jackknife = zip(*(pairs_of_prompts(draw, 32) for _ in range(2)), strict=True)
        found.append([naively(*plainly), surely(*by_jackknife)])
    plain, jackknife = np.mean(found, axis=0)
    assert jackknife <= 0.11  # 5%, and 2.8 standard errors
    assert plain >= 0.15


def test_coincidences_are_no_independent_evidence() -> None:
    # Claim: nothing moved: rare pairs of equal answers are significant in at most 5% of 300 comparisons; as plain 0/1 in 15%.
    draw = np.random.default_rng(4)
    found = []
    for _ in range(300):
        both = [numbered(draw.integers(0, 64 * 16, 64)) for _ in range(2)]
        ours = [np.array(across.shared_answer([], marks=one), dtype=float) for one in both]
        plain = [(np.unique(m.answers, return_inverse=True, return_counts=True)) for m in both]
        shared = [(counts[which] > 1).astype(float) for _, which, counts in plain]
        found.append([surely(*ours), naively(*shared)])
    jackknife, naive = np.mean(found, axis=0)
    assert jackknife <= 0.05
    assert naive >= 0.15


def test_jackknife_values_are_what_leaving_a_prompt_out_changes() -> None:
    # Claim: n T - (n - 1) T without prompt i, up to a constant for shared answers; their mean is the statistic.
    draw = np.random.default_rng(5)
    answers, n = np.array([1, 1, 2, 2, 2, 3, 4]), 7

    def share(a: Array) -> float:
        return float(np.mean([np.sum(a == x) > 1 for x in a]))

    def mean(s: Array) -> float:
        return float(across._similarities(s).mean())

    values = np.array(across.shared_answer([], marks=numbered(answers)), dtype=float)
    left_out = np.array([n * share(answers) - (n - 1) * share(np.delete(answers, i)) for i in range(n)])
    assert values.mean() == pytest.approx(share(answers))
    assert values - values.mean() == pytest.approx(left_out - left_out.mean())
    sketches = draw.integers(0, 4, (n, PLACES)).astype(np.uint32)
    expected = [n * mean(sketches) - (n - 1) * mean(np.delete(sketches, i, axis=0)) for i in range(n)]
    assert across.pseudo_values(across._similarities(sketches)) == pytest.approx(np.array(expected))


def test_a_sketch_estimates_the_jaccard_similarity() -> None:
    # Claim: over 200 pairs the share of equal places is the exact similarity of the shingles, on average within .01.
    def shingles(text: str) -> set[str]:
        return {text[i : i + 5] for i in range(min(len(text), 300) - 4)}

    errors = []
    for a, b in zip(prose(6, 200, 20), prose(7, 200, 20), strict=True):
        exact = len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))
        errors.append(float((sketch(a) == sketch(b)).mean()) - exact)
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.06  # sqrt(J (1 - J) / 128) is at most .044


def test_the_same_prompts_have_sketches_in_every_source(tmp_path: Path) -> None:
    # Claim: of more prompts than are kept, which ones does not depend on the order of the rows; the others are null.
    texts = prose(8, 50)
    kept = marks(tmp_path, texts, most=20)
    collector = Collector(20)
    collector.add([[{"prompt_id": f"p{i}", "text": texts[i]}] for i in reversed(range(50))])
    turned = collector.write(tmp_path / "turned.parquet").of(kept.prompts)
    assert kept.sketched.sum() == 20
    assert (turned.sketched == kept.sketched).all()
    assert (turned.sketches == kept.sketches).all()
    assert sum(value is not None for value in across.answer_similarity([], marks=kept)) == 20


# -- families and words -------------------------------------------------------------------------------------------------
def test_every_feature_has_a_family_and_words() -> None:
    # Claim: a stranger reads no name of the shelf; a user's own feature keeps its name.
    names = {*observe.kinds(observe.Settings(**observe.everything())), *itertools.chain(*COLUMNS.values())}
    assert not [name for name in names if family_of(name) not in WORDS]
    shown = names - set(itertools.chain(*COLUMNS.values())) - {"words", "tokens", "characters", "sentences"}
    assert not [name for name in shown if subject(name) == name]
    assert (family_of("mine"), subject("mine")) == ("mine", "mine")


@pytest.mark.parametrize(
    "feature", ["rep_3", "rep_10", "rep_20", "loop", "truncated", "script_switches", "mtld", "script_share"]
)
def test_an_improvement_is_never_an_alarm(feature: str) -> None:
    # Claim: of every fault, one direction is an ALARM (or STOP) and the other a watch.
    draw = np.random.default_rng(9)
    low, high = ((draw.random((300, 4)) < rate).astype(float) for rate in (0.1, 0.4))
    worse, better = ((high, low), (low, high))[:: FAULTS[feature]]
    levels = [judge(compare(Sample({feature: a}), Sample({feature: b}), None, kinds={feature: "rate"}), round=1)[1][0].level
              for a, b in (worse, better)]  # fmt: skip
    assert levels[0] in ("ALARM", "STOP")
    assert levels[1] == "watch"


def test_alarms_come_by_family_and_size() -> None:
    # Claim: the largest effect leads its family; the gravest level comes first; alarms of others stay alone.
    draw = np.random.default_rng(10)
    base = {name: draw.normal(0, 1, (300, 1)) for name in ("bold_density", "lists_density", "valence")}
    shift = {"bold_density": 0.5, "lists_density": 1.5, "valence": 1.0}
    now = Sample({name: values + shift[name] for name, values in base.items()})
    alarms = judge(compare(now, Sample(base), None, kinds=dict.fromkeys(base, "real")), round=1)[1]
    groups = by_family([*alarms, Alarm("STOP", "training", "bold", "x"), Alarm("watch", "judge", "valence", "x")])
    assert [(g.family, g.first.name, g.others) for g in groups] == [
        ("bold", "bold", ()), ("format", "lists_density", ("bold_density",)), ("tone", "valence", ()),
        ("valence", "valence", ()),
    ]  # fmt: skip


@pytest.mark.parametrize(("rate", "result"), [(0.29, "worse"), (0.43, "no difference"), (0.6, "better")])
def test_the_verdict_on_gold(rate: float, result: str) -> None:
    # Claim: 41.4% against a share of the same 541 prompts is called worse or better only if the interval excludes 0.
    draw = np.random.default_rng(11)
    samples = [
        Sample({"gold": draw.permutation((np.arange(541) < share * 541).astype(float))[:, None]}) for share in (0.414, rate)
    ]
    (step,) = ledger_of(samples, {})
    verdict: Any = gold_verdict(step, Compared(["old", "new"], 1))
    assert verdict.result == result
    assert verdict.sentence.startswith("new: gold accuracy " + ("fell" if rate < 0.414 else "rose") + " from 41.4% to ")
    assert ("the model got" in verdict.sentence) == (result != "no difference")
    assert gold_verdict(ledger_of([Sample({}), Sample({})], {})[0], Compared(["old", "new"], 1)) is None
