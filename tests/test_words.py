from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import PartError
from tasks.run.parts import check_settings
from tasks.score import units, verify_pool
from tasks.score.scorers import Score, form, words
from tests.test_scorers import HOSTILE, one

TRIPLES = Path(__file__).parents[2] / "shared" / "data" / "verifier_triples" / "triples.jsonl"


@pytest.fixture(autouse=True, scope="module")
def _no_workers_left() -> Iterator[None]:
    yield
    verify_pool._close()


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
        ("B", "It is not B.", 0.0),
        ("B", "B is not the answer", 0.0),
        ("B", "B is wrong", 0.0),
        ("C", "It isn't B, so C", 1.0),
        ("C", "The answer is C, not B", 1.0),
    ],
)
def test_a_letter_that_is_denied_is_not_chosen(gold: str, text: str, value: float) -> None:
    # To say which letter is wrong is not to choose it.
    assert one(words.multiple_choice, gold, text).value == value


EQUAL = [
    ("5 km", "It is 5000 m."),
    ("5 km", "5"),
    ("$1,200", "1200 dollars"),
    ("$1.50", "150 cents"),
    ("$5.20", "5 dollars and 20 cents"),
    ("$12 per hour", "12 dollars an hour"),
    ("1/2 hour", "30 minutes"),
    ("1 1/2 hours", "90 minutes"),
    ("1½ hours", "1.5 h"),
    ("50%", "50 percent"),
    (r"50\%", "it is 50%"),
    ("-3", "first 7, then -3"),
    ("6e3", "6000"),
    ("12 apples", "12 of them"),
    ("3.14", "3.1400001"),
    ("1 kilometer", "1000 metres"),
    ("250 ml", "0.25 liters"),
    ("3 m^2", "3 m²"),
    ("3 m^2", "3 m2"),
    ("3 m^2", "3 square meters"),
    ("3 m^2", "30000 cm^2"),
    ("3 m^2", r"the area is $3\ \text{m}^2$"),
    ("3 m^2", r"\boxed{3\,\mathrm{m}^{2}}"),
    ("3 cubic feet", "3 ft^3"),
    ("9.8 m/s^2", "9.8 m s^-2"),
    ("9.8 m/s^2", "9.8 m·s⁻²"),
    ("9.8 m/s^2", "9.8 meters per second squared"),
    ("9.8 m/s^2", r"$9.8\,\text{m/s}^2$"),
    ("36 km/h", "10 m/s"),
    ("36 km/h", "36 kilometers per hour"),
    ("60 mph", "60 miles an hour"),
    ("60 miles per hour", "96.56064 km/h"),
    ("4.2 J/(g K)", "4200 J/(kg*K)"),
    ("4.2 J/(g K)", "4200 J/kg/K"),
    ("1 hour 30 minutes", "90 minutes"),
    ("1 hour 30 minutes", "1 hour and 30 minutes"),
    ("1 hour 30 minutes", "1.5 hours"),
    ("1 h 30 min 30 s", "5430 seconds"),
    ("5 ft 3 in", "63 inches"),
    ("5 ft 3 in", "It is 5 feet, 3 inches tall"),
    ("2.5 x 10^3", "2500"),
    ("2.5 x 10^3", "2.5 × 10³"),
    ("2.5 x 10^3 m", r"$2.5 \times 10^{3}$ m"),
    ("2.5 x 10^3 m", "2.5 km"),
    ("6.02e23", "6.02*10^23"),
    ("10^-3 m", "1 mm"),
    ("30 °C", "86 °F"),
    ("30 °C", "30 degrees Celsius"),
    ("30 °C", "303.15 K"),
    ("-40 °C", "-40 degrees Fahrenheit"),
    ("0 °C", "32 °F"),
    (r"30^\circ\text{C}", "86 degrees F"),
    ("90 degrees", "90°"),
    ("1 gallon", "3.785411784 liters"),
    ("2 gallons", "8 quarts"),
    ("1 L", "1 dm^3"),
    ("1 litre", "1000 cm³"),
    ("1 tonne", "1000 kg"),
    ("5 Km", "5000 Metres"),
    ("5 kWh", "18 MJ"),
    ("5 N", "5 kg m/s^2"),
    ("100 µm", "0.1 mm"),
    ("3 km", "either way it is 3000 m or 3 km"),
    ("5 cm", "5 in total"),
    ("20 miles", "20 miles today"),
    ("5 in", "It is 5 in."),
    ("5 kilos", "5000 g"),
    ("3 quarters", "3 coins"),
    ("12 candles", "12 light bulbs"),
    ("12 points", "12 shares"),
]
UNEQUAL = [
    ("5 km", "5 miles"),
    ("5 km", "5 kg"),
    ("12", "no idea"),
    ("3.14", "3.15"),
    ("3 m^2", "5 m^2"),
    ("3 m^2", "3 m"),
    ("3 m^2", "3 m^3"),
    ("3 m²", "5 m²"),
    ("9.8 m/s^2", "3 m/s^2"),
    ("9.8 m/s^2", "9.8 m/s"),
    ("36 km/h", "36 km"),
    ("36 km/h", "36 m/s"),
    ("36 km/h", "36 h/km"),
    ("36 km", "36 km/h"),
    ("1 hour 30 minutes", "5 hours 30 minutes"),
    ("1 hour 30 minutes", "30 minutes"),
    ("1 hour 30 minutes", "1 hour"),
    ("5 ft 3 in", "6 ft 3 in"),
    ("2.5 x 10^3", "7.1 x 10^3"),
    ("2.5 x 10^3", "2.5 x 10^4"),
    ("2.5 x 10^3", "3"),
    ("10^3", "3"),
    ("30 °C", "30 °F"),
    ("30 °C", "30 K"),
    ("30 °C", "87 °F"),
    ("1 gallon", "1 liter"),
    ("1 gallon", "4 liters"),
    ("1 hour", "1½ hours"),
    ("2 hours", "1 1/2 hours"),
    ("$5", "5 euros"),
    ("$12 per hour", "12 dollars a day"),
    ("50%", "0.5"),
    ("4 km", "either 3 km or 4 km"),
    ("4 km", "3 or 4 km"),
    ("4 km", "between 3 and 4 km"),
    ("4 km", "It is not 4 km."),
    ("4 km", "4 km is not the answer"),
    ("7", "10-7"),
    ("5 m", "m^5"),
    ("1.5 minutes", "30 seconds or 1.5 hours"),
    ("5 m", "3-5 m"),
    ("5 m", "5 m^123"),
    ("5 m", "5 m^9^9^9^9"),
    ("5 m^9", "5 m^9^9"),
    ("8", "2^3^2"),
]


@pytest.mark.parametrize(("gold", "text"), EQUAL)
def test_equal_quantities(gold: str, text: str) -> None:
    # The same amount in other units, spellings, powers of ten or several units is right, and has the detail of the gold amount.
    assert one(words.quantity, gold, text).value == 1.0


@pytest.mark.parametrize(("gold", "text"), UNEQUAL)
def test_unequal_quantities(gold: str, text: str) -> None:
    # Another amount, another dimension, one of several or a denied one is wrong, even if its last digits agree.
    assert one(words.quantity, gold, text).value == 0.0


TOWERS = (
    *("5 m" + "^9" * 4000, "5 m^99999999", "5 " + "m*" * 4000 + "m", "5 " + "m/(" * 3000 + "s", "5 " + "kilo" * 2000 + "m"),
    *("9^9" * 3000, "1 " * 4000 + "m", "5 m or " * 1400, "1 h " * 2500),
)


@pytest.mark.parametrize("text", TOWERS)
def test_no_unit_takes_long(text: str) -> None:
    # pint hangs on towers of powers. What reaches it has at most eight factors with exponents of two digits, so it answers.
    units.warm_up()
    began = time.process_time()
    units.verdict("5 m", text, 1e-6)
    assert time.process_time() - began < 4  # below the limit of 5, at which the worker would be ended


UNITS = (
    *("m", "km", "mile", "foot", "s", "hour", "week", "g", "lb", "J", "kWh", "L", "gallon", "m^3", "m/s", "km/h"),
    *("degC", "degF", "kelvin", "dollar", "cent", "euro", "%", "kg m/s^2", "N"),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 10**6), st.sampled_from(UNITS), st.sampled_from(UNITS))
def test_conversion_is_an_equivalence(number: int, a: str, b: str) -> None:
    # A quantity equals itself and what it converts to, exactly and both ways round; all else is unequal both ways.
    said, other = units.last_quantity(f"{number} {a}"), units.last_quantity(f"1 {b}")
    assert said
    assert other
    assert said.unit
    assert units.agree(said, said, 0)
    if not units._registry().is_compatible_with(said.unit, other.unit):
        assert not units.agree(said, other, 0.5)
        assert not units.agree(other, said, 0.5)
        return
    converted = replace(other, number=units._registry().convert(said.number, said.unit, other.unit))
    assert units.agree(said, converted, 0)
    assert units.agree(converted, said, 0)
    assert units.in_base_units(said) == units.in_base_units(converted)


@given(st.text(alphabet="0123456789 .,^*/()-+eExkmsh²°$%{}\\", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_quantity_or_none(text: str) -> None:
    # No text raises, and no number grows beyond what two digits of exponent can make of 60 characters.
    read = units.last_quantity(units.plain(text))
    assert read is None or abs(read.number) < Fraction(10) ** 400


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
