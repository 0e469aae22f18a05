from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import PartError
from tasks.run.parts import check_settings
from tasks.score.scorers import Score, form, words
from tasks.score.units import UNITS, agree, last_quantity
from tests.test_scorers import HOSTILE, one

TRIPLES = Path(__file__).parents[2] / "shared" / "data" / "verifier_triples" / "triples.jsonl"


@pytest.mark.parametrize(
    ("gold", "text", "value"),
    [
        ("C", "thinking about it I think the correct answer is C", 1.0),
        ("B", "It's not A because that makes no sense, therefore I think it's B", 1.0),
        ("(D) Alina", "D", 1.0),
        ("C", "The answer is (C).", 1.0),
        ("C", "**Answer: C**", 1.0),
        ("B", "\\boxed{\\text{B}} and not A", 1.0),
        ("B", "<think>is A? is C?</think><answer>B</answer>", 1.0),
        ("A", "A dog barks, so B", 0.0),
        ("A", "the answer is A or B", 0.0),
        ("B", "A, B, C, D", 0.0),
        ("B", "A and B and C", 0.0),
        ("B", "", 0.0),
    ],
)
def test_multiple_choice(gold: str, text: str, value: float) -> None:
    # The letter that a completion decides on counts; naming several letters is wrong.
    assert one(words.multiple_choice, gold, text).value == value


@pytest.mark.parametrize(
    ("gold", "text", "value"),
    [
        ("5 km", "It is 5000 m.", 1.0),
        ("5 km", "5", 1.0),
        ("5 km", "5 miles", 0.0),
        ("5 km", "5 kg", 0.0),
        ("$1,200", "1200 dollars", 1.0),
        ("$1.50", "150 cents", 1.0),
        ("1/2 hour", "30 minutes", 1.0),
        ("50%", "50 percent", 1.0),
        ("-3", "first 7, then -3", 1.0),
        ("6e3", "6000", 1.0),
        ("12 apples", "12 of them", 1.0),
        ("12", "no idea", 0.0),
        ("3.14", "3.1400001", 1.0),
        ("3.14", "3.15", 0.0),
        ("1 kilometer", "1000 metres", 1.0),
        ("250 ml", "0.25 liters", 1.0),
    ],
)
def test_quantities(gold: str, text: str, value: float) -> None:
    # Units are converted; another dimension is another answer.
    assert one(words.quantity, gold, text).value == value


@given(st.integers(1, 10**6), st.sampled_from(sorted(UNITS)), st.sampled_from(sorted(UNITS)))
def test_conversion_is_an_equivalence(number: int, a: str, b: str) -> None:
    # A quantity equals itself, and one in other units of its dimension equals it both ways round.
    said = last_quantity(f"{number} {a}" if a not in "$€£" else f"{a}{number}")
    assert said is not None
    assert said[1] == UNITS[a]
    assert agree(said, said, 1e-9)
    other = (said[0] * UNITS[a][1] / UNITS[b][1], UNITS[b])
    assert agree(said, other, 1e-9) == agree(other, said, 1e-9) == (UNITS[a][0] == UNITS[b][0])


@pytest.mark.parametrize(
    ("gold", "text", "value"),
    [
        ("paris", "<think>Let me solve this</think>Paris", 1.0),
        ("new york city", "<answer>New York City!</answer>", 1.0),
        ("answer is 42", "The answer is 42!", 1.0),
        ("42", "<answer>wrong</answer>", 0.0),
        ("42", "", 0.0),
    ],
)
def test_normalised_text(gold: str, text: str, value: float) -> None:
    # Case, punctuation, articles and spaces do not matter; everything else does.
    assert one(words.normalised_text, gold, text).value == value


@pytest.mark.skipif(not TRIPLES.exists(), reason="needs ../shared/data/verifier_triples")
def test_other_projects_cases() -> None:
    # The multiple-choice and text rows of lighteval's and open-instruct's own tests: all as they expect.
    rows = [json.loads(line) for line in TRIPLES.read_text().splitlines()]
    scorers = {"mcq": words.multiple_choice, "puzzle_match": words.normalised_text}
    wrong = [r for r in rows if r["kind"] in scorers and one(scorers[r["kind"]], r["gold"], r["pred"]).value != r["expected"]]
    assert wrong == []


@pytest.mark.parametrize("scorer", [words.multiple_choice, words.quantity, words.normalised_text])
def test_hostile_texts_take_no_time(scorer: object) -> None:
    # Any text is judged at once, and statuses are those of a verifier.
    start = time.monotonic()
    for text in HOSTILE.values():
        assert one(scorer, "C 12", text).value in (0.0, 1.0, None)
    assert time.monotonic() - start < 20
    assert one(scorer, None, "C") == Score(None, "no_answer")
    assert one(scorer, "C 12", "C 12", "length").status == "truncated"


LATIN, CYRILLIC, NEITHER = "aZé", "бЯю", " 1+=!,.\n"


@given(st.text(LATIN + CYRILLIC + NEITHER, max_size=40))
def test_the_share_of_a_script_is_over_letters_alone(text: str) -> None:
    # what is no letter changes nothing, and two scripts share all letters of a text that has no other
    letters = [letter for letter in text if letter.isalpha()]
    shares = [one(form.language_share, None, text, script=script).value for script in ("Latin", "Cyrillic")]
    want = sum(letter in LATIN for letter in letters) / len(letters) if letters else None
    assert shares == ([None, None] if want is None else pytest.approx([want, 1 - want]))


@given(st.text("<a>/ \n", max_size=12))
def test_format_is_a_full_match_of_the_stripped_text(text: str) -> None:
    # Python's own engine says the same of any text
    pattern = r"(?s)<a>.*</a>\s*a?"
    assert one(form.format, None, text, pattern=pattern).value == float(re.fullmatch(pattern, text.strip()) is not None)


def test_language_share() -> None:
    # Letters of the script among all letters; digits and signs belong to no language.
    assert one(form.language_share, None, "abc 123", script="Latin") == Score(1.0)
    assert one(form.language_share, None, "ab\u4f60\u597d", script="Latin") == Score(0.5)
    assert one(form.language_share, None, "\u4f60\u597d", script="Han") == Score(1.0)
    assert one(form.language_share, None, "1+1=2", script="Latin") == Score(None, "no_letters")
    with pytest.raises(PartError, match="expected a Unicode script"):
        check_settings("scorers", "language_share", {"script": "Klingonish"})


@pytest.mark.parametrize(
    ("scorer", "texts"),
    [
        (words.multiple_choice, ("The answer is B.", "After much thought: the answer is (B)")),
        (words.quantity, ("so 5000 m", "It is 5 km")),
        (words.normalised_text, ("The Eiffel tower!", "eiffel Tower")),
    ],
)
def test_equal_answers_are_told_alike(scorer: Any, texts: tuple[str, str]) -> None:
    # votes, majorities and entropies compare `detail`: the answer that was read, not its wording
    prompt = {"answer": "B" if scorer is words.multiple_choice else "5 km" if scorer is words.quantity else "Eiffel tower"}
    told = [scorer([prompt], [{"text": text, "finish_reason": "stop"}])[0] for text in texts]
    assert [one.value for one in told] == [1.0, 1.0]
    assert told[0].detail == told[1].detail
