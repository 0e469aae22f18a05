from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tasks.score import claims, math_verdict, verify_pool
from tests.bench_verify import direct, outputs
from tests.test_scorers import HOSTILE, judge

SHARED = Path(__file__).parents[2] / "shared" / "data"
TRIPLES = SHARED / "verifier_triples" / "triples.jsonl"
needs_shared = pytest.mark.skipif(not TRIPLES.exists(), reason="needs ../shared/data (real outputs and verifier test cases)")

WORDS = (  # with a digit and a letter that look like others to a careless pattern
    r"The_answer_is_|final_answer_is_|Answer:_|so_|A:_|####_|x_=_|=_|._|,_|_and_|$|(|)|}|%|1|_|\(|\)|\[|\]|\boxed{|\fbox{|\frac{1}{2}|\$|"
    r"_percent|I_hope|18|-3|1,234|12_345|0.5|1/2|2_*_9|**|18.|007|-0|kg|<<3*6=18>>|^2|"
    "\n|\u0663|\u017f"
)
TEXT = st.lists(st.sampled_from(WORDS.replace("_", " ").split("|")), max_size=8).map("".join)
GOLD = st.sampled_from(("18", "1", "-3", "1,234", "1234", "0", "345", "3", "5"))


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    math_verdict.warm_up()
    yield
    logging.disable(logging.NOTSET)
    verify_pool._close()


@pytest.mark.filterwarnings("ignore")  # sympy compiles what it reads
@settings(max_examples=300)
@given(GOLD, TEXT, st.sampled_from(("", "A: 18", "the answer is 1,234.", "\\(\\boxed{-3}\\)")))
def test_the_shortcut_reaches_math_verifys_verdict(gold: str, text: str, end: str) -> None:
    # Where the shortcut gives a verdict, value, status and detail equal math-verify's, whatever text precedes the answer.
    quick = math_verdict.shortcut(gold, text + end)
    assert quick is None or quick == math_verdict.verdict(gold, text + end)


@pytest.mark.parametrize(
    ("gold", "text", "value"),
    [
        ("18", "16 - 3 = <<16-3=13>>13 eggs left.\nA: 18", 1.0),
        ("18", "so she makes $18.", 1.0),
        ("1,234", "#### 1234", 1.0),
        ("18", "The answer is 81.\n", 0.0),
        ("420", "thus \\(\\boxed{420}\\).", 1.0),
        ("5", "5", 1.0),
    ],
)
def test_common_answers_take_the_shortcut(gold: str, text: str, value: float) -> None:
    # The commonest forms of an answer take the shortcut and need no worker process.
    quick = math_verdict.shortcut(gold, text)
    assert quick is not None
    assert quick[0] == value


@pytest.mark.parametrize(
    "text",
    ["3 * 6 = 18", "18 or 1/2", "The final answer is 5. So \\boxed{18}", "\\boxed{5} then \\boxed{18}", "18%", "x18", "018"],
)
def test_what_is_not_plain_is_left_to_math_verify(text: str) -> None:
    # A formula, a second candidate or a unit changes what math-verify reads.
    assert math_verdict.shortcut("18", text) is None


@needs_shared
@pytest.mark.parametrize("source", ["GSM8K", "MATH"])
def test_the_shortcut_on_real_outputs(source: str) -> None:
    # On real outputs the shortcut's verdicts equal math-verify's; on GSM8K it judges nine outputs in ten.
    items = outputs(SHARED)[source]
    quick = {item: verdict for item in set(items) if (verdict := math_verdict.shortcut(*item))}
    assert len(quick) > len(set(items)) * (0.9 if source == "GSM8K" else 0.4)
    assert [item for item, verdict in quick.items() if verdict != math_verdict.verdict(*item)] == []


@needs_shared
@pytest.mark.filterwarnings("ignore")  # sympy compiles what it reads
def test_at_least_as_many_right_as_math_verify(capsys: pytest.CaptureFixture[str]) -> None:
    # On the maths rows of five projects' own tests: every disagreement with the expectation or with math-verify is printed.
    rows = [json.loads(line) for line in TRIPLES.read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "math"]
    ours = [score.value for score in judge([(row["gold"], row["pred"]) for row in rows])]
    theirs = [direct(row["gold"], row["pred"]) for row in rows]
    want = [row["expected"] for row in rows]
    for row, mine, other in zip(rows, ours, theirs, strict=True):
        if not mine == other == row["expected"]:
            with capsys.disabled():
                print(
                    f"  triple {row['id']}: expected {row['expected']}, math-verify {other}, ours {mine}: {row['gold']!r:.40}"
                )
    right = [sum(map(lambda a, b: a == b, verdicts, want)) for verdicts in (ours, theirs)]
    with capsys.disabled():
        print(f"  {len(rows)} maths rows: ours {right[0]} right, math-verify called directly {right[1]}")
    assert right[0] >= right[1]


PAID_WRONGLY = [  # what math-verify pays for, or reads wrongly, by its kind
    (r"\frac{1}{2004!}", r"\boxed{\frac{1}{2006!}}"),
    ("2^{-99}", r"\boxed{2^{-98}}"),
    ("0.0000001", r"\boxed{0.0000002}"),
    ("0.0000001", "The answer is 0.0000002"),
    ("0", r"\boxed{2^{-99}}"),
    ("0", r"\boxed{0.0000001}"),
    ("10^{-8}", r"\boxed{3 \cdot 10^{-8}}"),
    (r"\{0.0000001, 1\}", r"\boxed{\{0.0000002, 1\}}"),
    ("(0.0000001, 1)", r"\boxed{(0.0000002, 1)}"),
    ("x = 0.0000001", r"\boxed{x = 0.0000002}"),
    ("10", r"I first got \boxed{10}, but rechecking, \boxed{12}"),
    ("10, 12", r"I first got \boxed{10}, but rechecking, \boxed{12}"),
    ("4", "either 3 or 4"),
    ("3", "either 3 or 4"),
    ("4", "The answer is either 3 or 4."),
    ("3", "The answer is 3 or 4."),
    ("4", "The answer is 3 or 4."),
    ("4", r"It is $3$ or $4$."),
    ("4", r"\boxed{3} or \boxed{4}"),
    ("4", r"\boxed{3 \text{ or } 4}"),
    ("4", "3 apples or 4 apples"),
    ("5", "3, 4, or 5"),
    ("4", "between 3 and 4"),
    ("72", "72 is not the answer"),
    ("72", "72 is not the right answer."),
    ("72", "The answer is not 72."),
    ("72", "It isn't 72"),
    ("72", "it cannot be 72"),
    ("72", r"$72$ is wrong"),
    ("72", r"not \boxed{72}"),
    ("1,234", "The answer is not 1,234"),
    ("B", "The answer is not (B)."),
    ("B", "A or B"),
    ("B", r"option B? no: \boxed{C}"),
]
RIGHT = [
    (r"\frac{1}{2004!}", r"\boxed{\frac{1}{2004!}}"),
    ("2^{-99}", r"\boxed{\frac{1}{2^{99}}}"),
    ("2^{-99}", r"\boxed{2 \cdot 2^{-100}}"),
    ("0.0000001", r"\boxed{10^{-7}}"),
    ("0.0000001", r"\boxed{1 \times 10^{-7}}"),
    ("1/3", "0.333333"),
    ("1/12", "0.083333"),
    ("0", r"\boxed{\sqrt{2}\sqrt{3} - \sqrt{6}}"),
    ("12", r"I first got \boxed{10}, but rechecking, \boxed{12}"),
    ("10, 12", r"\boxed{10}, \boxed{12}"),
    ("10, 12", r"$\boxed{10}$ and $\boxed{12}$"),
    ("3, 4", r"\boxed{3} or \boxed{4}"),
    ("B", "The answer is (B)."),
    (r"\text{(B)}", "The answer is (B)."),
    ("(B)", r"\boxed{\text{B}}"),
    ("B", r"\boxed{\textbf{(B)}\ 5}"),
    ("35", r"\boxed{35\%}"),
    ("35", r"\boxed{35.0\%}"),
    ("35.5", r"\boxed{35.5\%}"),
    (r"35\%", r"\boxed{35.0}"),
    (r"35\%", r"\boxed{0.35}"),
    ("1/2", r"1/2 or 0.5"),
    ("1.5", "90 minutes or 1.5 hours"),
    ("72", "It is not 71 but 72"),
    ("72", "The answer is 72, not 71."),
    ("72", "72 students are not in class, so the answer is 72"),
    ("72", "Is 70 wrong? Yes. So 72."),
]


@pytest.mark.filterwarnings("ignore")  # sympy compiles what it reads
@pytest.mark.parametrize(("gold", "text"), PAID_WRONGLY)
def test_what_math_verify_pays_for_wrongly(gold: str, text: str) -> None:
    # Small numbers that differ, boxes that were replaced, one of several answers and denied answers do not pay.
    assert judge([(gold, text)])[0].value == 0.0


@pytest.mark.filterwarnings("ignore")  # sympy compiles what it reads
@pytest.mark.parametrize(("gold", "text"), RIGHT)
def test_right_answers_beside_the_guards(gold: str, text: str) -> None:
    # The nearest right answers on the other side of each guard pay.
    assert judge([(gold, text)])[0].value == 1.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1000, 9999), st.integers(1, 9000))
def test_small_numbers_are_equal_to_four_digits(zeros: int, digits: int, more: int) -> None:
    # At any size, numbers of four digits are equal only to themselves, and a difference in the fifth digit or later is none.
    gold, other = f"0.{'0' * zeros}{digits}", 1000 + (digits - 1000 + more) % 9000
    assert math_verdict.verdict(gold, f"\\boxed{{{digits} \\cdot 10^{{-{zeros + 4}}}}}")[0] == 1.0
    if other != digits:
        assert math_verdict.verdict(gold, f"\\boxed{{0.{'0' * zeros}{other}}}")[0] == 0.0


NUMBERS = st.one_of(st.integers(2, 10**6), st.decimals(1, 1000, places=2)).map(str)
DENIED = ("The answer is not {a}.", "{a} is not the answer.", "It isn't {a}", "so ${a}$ is wrong", r"not \boxed{{{a}}}")
OFFERED = (
    *("{b} or {a}", "either {b} or {a}.", r"$\boxed{{{b}}}$ or $\boxed{{{a}}}$"),
    *("The answer is {a} or {b}", "between {b} and {a}"),
)
SAID = ("The answer is {a}, not {b}.", "Not {b}, so {a}", r"I got \boxed{{{b}}}, but rechecking, \boxed{{{a}}}.")


@pytest.mark.filterwarnings("ignore")  # sympy compiles what it reads
@settings(max_examples=80, deadline=None)
@given(NUMBERS, NUMBERS)
def test_only_an_answer_that_the_text_stands_by_pays(a: str, b: str) -> None:
    # Whatever the numbers: denied, or offered beside another one, the gold answer does not pay; said once, it does.
    assume(float(a) != float(b))
    for form in (*DENIED, *OFFERED, *SAID):
        text = form.format(a=a, b=b)
        value = (math_verdict.shortcut(a, text) or math_verdict.verdict(a, text))[0]
        assert value == float(form in SAID), text


@pytest.mark.parametrize(
    "tail", ["", " or so", ", or thereabouts", " or more people", ". Or is it?", ", not 3 or 4 apples each"]
)
def test_or_and_not_elsewhere_change_nothing(tail: str) -> None:
    # Only another number offered for the answer itself makes it one of several.
    assert judge([("72", f"He does not buy 3 or 4. \\boxed{{72}}{tail}")])[0].value == 1.0


def test_boxes_are_found_in_linear_time() -> None:
    # A megabyte of open, nested or empty boxes is read at once.
    began = time.process_time()
    for text in ("\\boxed{" * 100_000, "\\boxed{}" * 100_000, "{" * 500_000 + "}" * 500_000):
        claims.only_last_boxes(text)
    assert time.process_time() - began < 20


def hostile(count: int) -> list[str]:
    """Texts that were built to hurt: every one of HOSTILE in many sizes, each different from the others."""
    draw, texts = random.Random(7), list(HOSTILE.values())
    made: list[str] = []
    for number in range(count):
        text = texts[number % len(texts)]
        cut = draw.randrange(len(text) + 1) if text and number >= len(texts) else 0
        made.append(f"{text[cut:]}{text[:cut]} {draw.choice(('', chr(0), '$', '{', 'so '))}{number}" if cut else text)
    return made


@pytest.mark.slow
def test_two_thousand_hostile_completions() -> None:
    # No hostile completion hangs past its time limit, changes another's verdict or leaves a process.
    honest = [(str(n), f"Score: 1, so ${n + n % 2}$") for n in range(2000)]
    bad = [("72", text) for text in hostile(2000)]
    mixed = judge([item for both in zip(bad, honest, strict=True) for item in both], timeout=0.2, workers=2)
    assert [score.value for score in mixed[1::2]] == [float(n % 2 == 0) for n in range(2000)]
    assert {score.status for score in mixed[::2]} <= {"ok", "no_answer_found", "timeout", "crashed"}
    assert all(score.value in ((None,) if score.status in ("timeout", "crashed") else (0.0, 1.0)) for score in mixed[::2])
    verify_pool._close()
    left: list[Any] = [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
    assert left == []
