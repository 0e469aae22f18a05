"""Features of a completion and of a prompt's samples, against values worked out by hand."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.bias.features import diversity, format, language, length, policy, reflection, repetition, tone
from tasks.bias.prompt_features import variety, verdicts
from tasks.run import parts


def row(text: str, **more: Any) -> dict[str, Any]:
    return {"text": text, "token_ids": None, "logprobs": None, "finish_reason": None, **more}


def of(feature: Any, text: str, **more: Any) -> float | None:
    value: float | None
    (value,) = feature([row(text, **more)])
    return value


# -- length -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("feature", "text", "value"),
    [
        (length.words, "one two\nthree", 3),
        (length.characters, "né 😀", 4),
        (length.sentences, "One. Two! Is it 3.5? (Yes.)", 4),
        (length.sentences, "no end", 1),
        (length.sentences, "  ", 0),
        (length.think_words, "<think>a b c</think> d e", 3),
        (length.answer_words, "<think>a b c</think> d e", 2),
        (length.think_words, "a b</think> c", 2),  # where the template opened it
        (length.answer_words, "<think>never closed", 0),
        (length.think_words, "plain", None),
        (length.tokens, "unknown", None),
        (length.truncated, "unknown", None),
        (format.bold, "a **b** c", 1),
        (format.bold, "2**3", 0),
        (format.lists, "1. a\n2. b", 1),
        (format.lists, "word - dash", 0),
        (format.lists_density, "* a\n* b\n- c d", 300 / 7),
        (format.headers, "## Title", 1),
        (format.headers, "#hashtag", 0),
        (format.tables, "| a | b |\n|---|---|", 1),
        (format.links, "see https://x.y", 1),
        (format.emoji, "well 😀", 1),
        (format.exclamations, "a != b", 1),
        (format.exclamations, "```\na != b\n```", 0),
        (format.exclamations_density, "so! ```python\nassert a != b\n``` yes!", 100.0),
        (format.exclamations_density, "", None),
        (format.code, "```\nx", 1),
        (format.affirmative, " Sure! Here", 1),
        (format.affirmative, "I am sure", 0),
        (tone.refusal, "I’m sorry, but I can’t help with that.", 1),
        (tone.refusal, "I must decline.", 1),
        (tone.refusal, "I'm not able to assist with this request.", 1),
        (tone.refusal, "As an AI language model, I think so", 0),
        (tone.refusal, "I'm sorry to hear that your cat died.", 0),
        (tone.refusal, "I can't wait to see you!", 0),
        (tone.refusal, "I won't lie: it is hard.", 0),
        (tone.disclaimer, "As an AI language model, I think so", 1),
        (tone.disclaimer, "I do not have personal opinions, but", 1),
        (tone.disclaimer, "I cannot help with that.", 0),
        (tone.disclaimer, "I'm sorry to hear that.", 0),
        (tone.disclaimer, "AI is a field of science", 0),
        (tone.regret, "I'm sorry to hear that your cat died.", 1),
        (tone.regret, "My apologies for the delay.", 1),
        (tone.regret, "I cannot help with that.", 0),
        (tone.regret, "As an AI language model, I think so", 0),
        (tone.regret, "A sorry sight", 0),
        (tone.refusal, "x" * 201 + " I cannot", 0),
        (tone.hedging, "It might rain, perhaps likely", 60.0),
        (tone.boosting, "Clearly it will", 100 / 3),
        (tone.confidence, "clearly definitely maybe", 2 / 3),
        (tone.confidence, "might", -0.5),
        (tone.confidence, "", None),
        (tone.praise, "Great question! It", 1),
        (tone.praise, "You’re absolutely right", 1),
        (tone.praise, "It is a question", 0),
        (tone.valence, "", None),
        (reflection.reflects, "Wait, let me check again", 1),
        (reflection.reflections, "Wait, let me check again", 2),
        (reflection.reflects, "the waiter", 0),
        (repetition.rep_3, "a b", 0),
        (repetition.loop, "again " * 60, 1),
        (repetition.loop, " ".join(map(str, range(100))), 0),
        (repetition.compression, "", None),
        (diversity.mtld, "too short", None),
        (language.script_switches, "a б c 漢", 75.0),
        (policy.token_entropy, "unknown", None),
    ],
)
def test_a_text_has_the_value_worked_out_by_hand(feature: Any, text: str, value: float | None) -> None:
    # Claim: each feature is what its docstring says, also where it does not apply (None, never 0).
    assert of(feature, text) == (None if value is None else pytest.approx(value))


def test_tokens_and_truncation_are_known_only_where_recorded() -> None:
    # Claim: token counts and finish reasons come from the sampler alone.
    assert of(length.tokens, "x", token_ids=[5, 6, 7]) == 3
    assert [of(length.truncated, "x", finish_reason=r) for r in ("length", "stop", "given", None)] == [1, 0, None, None]


def test_repetition_is_that_of_trl() -> None:
    # Oracle 5: [1,2,3,4] and [5,5,5,5,5] at n=2 have 0 and .75 (TRL's docstring); token ids go before words.
    assert repetition.repeated_share([1, 2, 3, 4], 2) == 0
    assert repetition.repeated_share([5, 5, 5, 5, 5], 2) == 0.75
    assert of(repetition.rep_3, "all words differ here", token_ids=[1] * 6) == 0.75


def test_a_loop_needs_its_whole_tail() -> None:
    # Claim: period 20 must hold over 60 tokens (and their predecessors), and the last token breaks it.
    ids = list(range(1000, 1040)) + list(range(20)) * 4
    assert of(repetition.loop, "", token_ids=ids) == 1
    assert of(repetition.loop, "", token_ids=[*ids[:-1], 99]) == 0
    assert of(repetition.loop, "", token_ids=list(range(20)) * 3) == 0


def test_mtld_counts_factors_both_ways() -> None:
    # Claim: "a b" x 25: the ratio falls to .67 at the third word, so 16 whole factors and 2 words (ratio 1) left: 50/16.
    assert of(diversity.mtld, "a b " * 25) == pytest.approx(50 / 16)
    assert of(diversity.mtld, " ".join(f"w{i}" for i in range(60))) is None  # nothing repeats: no factor


def test_concatenation_moves_no_density() -> None:
    # Oracle 8: a text twice as long by concatenation has the same features per 100 words.
    text = "Sure! **This** might work:\n- one\n- two\n\n```\na != b\n```\nClearly so! 😀 see http://x.y\n"
    densities = [
        f for name, f in parts.public("features").items() if name.endswith("_density") or name in ("hedging", "boosting")
    ]
    assert len(densities) == 9
    for feature in densities:
        assert of(feature, text + text) == pytest.approx(of(feature, text)), feature


def test_script_share_is_of_the_prompts_script() -> None:
    # Claim: letters in the prompt's script over letters; Japanese kana and kanji are one; digits are nobody's.
    def share(prompt: str, text: str) -> float | None:
        asked = [{"messages": [{"role": "user", "content": prompt}]}]
        return language.script_share([row(text)], prompts=asked)[0]

    assert share("why?", "abc 漢") == 0.75
    assert share("なぜ?", "漢字かな ab") == pytest.approx(4 / 6)
    assert share("why?", "123") is None
    assert share("1+1?", "abc") is None


def test_kl_against_hand_values() -> None:
    # Claim: the KL over the vocabulary is summed, or averaged over all tokens or the first 32; k1 = sum of log p - log q.
    rows, kl = [row(""), row("")], [[0.5] * 32 + [2.5] * 32, None]
    assert policy.kl_base(rows, base_kl=kl) == policy.kl_previous(rows, previous_kl=kl) == [96.0, None]
    assert policy.kl_base_token(rows, base_kl=kl) == [1.5, None]
    assert policy.kl_base_start(rows, base_kl=kl) == [0.5, None]
    ours, base = [math.log(0.5), math.log(0.8)], [math.log(0.25), math.log(0.8)]
    known, own = [base, base], [ours, None]
    assert policy.kl_base_k1(rows, own_logprobs=own, base_logprobs=known) == [pytest.approx(math.log(2)), None]
    assert policy.kl_previous_k1(rows, own_logprobs=own, previous_logprobs=[None, None]) == [None, None]
    assert of(policy.token_entropy, "", logprobs=[-1.0, -3.0]) == 2.0


# -- hostile text -------------------------------------------------------------------------------------------------------
PIECES = (*"*-#|`!. \n1aA’'<>/", "**", "```", "<think>", "</think>", "I can't ", "Sure ", "😀", "漢", "б", "http")
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200) | st.lists(st.sampled_from(PIECES), max_size=80).map(
    "".join
)


@settings(max_examples=60)
@given(st.lists(texts, max_size=4))
def test_any_text_gets_a_finite_number_or_none(batch: list[str]) -> None:
    # Claim: no text, however odd, makes a feature raise, be infinite, or depend on what else is in its batch.
    for name, feature in parts.public("features").items():
        if parts.needs("features", name):
            continue
        values = feature([row(text) for text in batch])
        assert all(v is None or math.isfinite(v) for v in values), name
        assert values == [of(feature, text) for text in batch], name


@settings(max_examples=200)
@given(texts)
def test_patterns_count_as_pythons_re_does(text: str) -> None:
    # Claim: that RE2 goes on behind a match as if the text began there changes no count.
    text = text.replace("```", "")  # fences are cut out before counting
    for pattern in (format.BOLD, format.LIST, format.HEADER, format.TABLE, format.LINK, tone.HEDGE, tone.BOOST):
        assert format_count(text, pattern) == len(re.findall(pattern, text, re.ASCII)), pattern


def format_count(text: str, pattern: str) -> float:
    from tasks.bias.features import count

    return float(count([row(text)], pattern)[0])


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "piece", ["**", "a*", "- ", "|", "`", "i am ", "!", "(", "wait ", "<think>", "漢a", "\n", " ", "might "]
)
def test_hostile_text_cannot_hang_a_worker(piece: str) -> None:
    # Claim: 300,000 characters made to make a backtracking matcher explode take every feature a moment.
    rows = [row((piece * 300_000)[:300_000])]
    for name, feature in parts.public("features").items():
        if not parts.needs("features", name):
            assert len(feature(rows)) == 1


# -- over the samples of a prompt ---------------------------------------------------------------------------------------
def group(*said: str) -> list[dict[str, Any]]:
    return [row(text) for text in said]


def test_variety_of_samples() -> None:
    # Claim: equal samples are as uniform as can be, different ones are not, one sample says nothing.
    same, other = group("a b c d e f", "a b c d e f"), group("a b c d e f", "u v w x y z")
    assert variety.distinct([same, other, group("a b")]) == [0.5, 1.0, None]
    assert variety.self_bleu([same, other]) == [pytest.approx(100), pytest.approx(0, abs=15)]
    assert variety.semantic_spread([same, other, group("a", " ")]) == [pytest.approx(0, abs=1e-9), pytest.approx(1), None]


def test_distinct_is_at_an_equal_budget() -> None:
    # Claim: both samples are cut to the shorter one's length (3 words), and to the budget.
    assert variety.distinct([group("a b c", "a b c x y z")]) == [0.5]
    assert variety.distinct([group("a b c", "a b d")], budget=2) == [0.5]


def test_answers_of_a_prompt_against_hand_values() -> None:
    # Oracle 5: entropy, collision, coverage and vote calibration of K = 4 samples a a b None.
    groups, answers, right = [group(*"aabx")], [["7", "7", "8", None]], [[1.0, 1.0, 0.0, 0.0]]
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) + 1 / 6
    assert verdicts.answer_entropy(groups, answers=answers) == [pytest.approx(entropy / math.log(3))]
    assert verdicts.answer_collision(groups, answers=answers) == [pytest.approx(1 / 3)]
    assert verdicts.coverage_gap(groups, verdicts=right) == [0.5]
    assert verdicts.coverage_gap(groups, verdicts=[[0.0, 0.0, None, 0.0]]) == [0.0]
    assert verdicts.vote_overconfidence(groups, verdicts=right, answers=answers) == [pytest.approx(2 / 3 - 1)]
    assert verdicts.vote_brier(groups, verdicts=right, answers=answers) == [pytest.approx(1 / 9)]


def test_contrasts_need_both_sides() -> None:
    # Claim: over-confidence is wrong less right, reflection's effect is with less without; None where a side is missing.
    groups = [group("clearly it is 4", "it might be 5"), group("4", "5")]
    assert verdicts.overconfidence(groups, verdicts=[[0.0, 1.0], [1.0, 1.0]]) == [pytest.approx(1.0), None]
    assert verdicts.reflection_effect([group("wait: 4", "5", "6")], verdicts=[[1.0, 0.0, 1.0]]) == [0.5]
    assert verdicts.reflection_effect(groups, verdicts=[[1.0, 0.0], [1.0, 0.0]]) == [None, None]
