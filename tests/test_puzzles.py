from __future__ import annotations

import ast
import itertools
import random
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.recipe.settings import Prompts
from data.rows import prompts
from data.worlds import countdown, knights_knaves
from tasks.score.scorers import Score, puzzles
from tests.test_scorers import HOSTILE, one

KNIGHTS = Path(__file__).parents[2] / "shared" / "data" / "knights_knaves"


def test_every_countdown_puzzle_can_be_solved() -> None:
    # Its own solution passes its own verifier, uses every number, and no puzzle comes twice.
    world = countdown.World(3)
    made = world.puzzles(300) + world.hard(30)
    for puzzle in made:
        assert one(puzzles.countdown, puzzle.answer, puzzle.solution).value == 1.0
        read = countdown.evaluate(puzzle.expression)
        assert read is not None
        assert sorted(read[1].elements()) == sorted(puzzle.numbers)
        assert 1 <= puzzle.target <= 1000
    assert len({(tuple(sorted(p.numbers)), p.target) for p in made}) == len(made)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<answer>(3 + 5) * 7 - 2</answer>", 1.0),
        ("<think>3*5?</think> <answer> (3+5)*7-2 = 54 </answer>", 1.0),
        ("(3+5)*7-2", 1.0),
        ("(3+5)*7-2 = 55", 0.0),  # what it says is false
        ("54", 0.0),  # no number of the prompt
        ("3*5*7-2", 0.0),
        ("3+3+3*5*3+3", 0.0),  # each number at most once
        ("2*3**3", 0.0),  # TinyZero pays for powers
        ("7**2+5", 0.0),
        ("108//2", 0.0),
        ("-2+7*(3+5)", 0.0),  # a sign is no operation of the prompt
        ("(3+5)*7-2.0", 0.0),
        ("(3+5)*7-0b10", 0.0),
        ("(3+5)*7-\u0662", 0.0),
        ("7*8-2", 0.0),
        ("abs(-54)", 0.0),
        ("__import__('os').system('exit 1')", 0.0),
        ("5/(3-3)", 0.0),
        ("", 0.0),
    ],
)
def test_countdown_pays_for_what_the_prompt_allows(text: str, value: float) -> None:
    # + - * / and the given numbers, each at most once: nothing else reaches the target.
    assert one(puzzles.countdown, "54 from 2, 3, 5, 7", text).value == value


def test_countdown_allows_numbers_to_be_left_out() -> None:
    # The prompt says "at most once", so an expression may leave numbers out.
    assert one(puzzles.countdown, "8 from 3, 5, 9", "3 + 5") == Score(1.0, "ok", "3 + 5")
    assert one(puzzles.countdown, "16 from 3, 5, 5, 3", "(3+5)+(3+5)").value == 1.0
    assert one(puzzles.countdown, "8 from 3, 5", "3+5", "length").status == "truncated"
    assert one(puzzles.countdown, "eight", "3+5") == Score(None, "gold_parse_failure")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(3 + 5) × 7 − 2", 1.0),
        ("(3 + 5) x 7 - 2", 1.0),
        (r"(3 + 5) \times 7 - 2 = 54", 1.0),
        ("(3 + 5) · 7 – 2", 1.0),
        ("54 ÷ 1", 0.0),  # numbers of its own
        ("(3 + 5) × 7 − 3", 0.0),
        ("0x36", 0.0),
    ],
)
def test_the_signs_that_models_write_are_read(text: str, value: float) -> None:
    # × ÷ − and LaTeX's signs mean what they mean; an x is a sign only between numbers.
    score = one(puzzles.countdown, "54 from 2, 3, 5, 7", f"<answer>{text}</answer>")
    assert score.value == value
    assert one(puzzles.countdown, "6 from 2, 12", "12 ÷ 2").value == 1.0


def test_all_numbers_can_be_demanded() -> None:
    # TinyZero's rule: with use_all an expression that leaves a number out, or takes one twice, is wrong.
    gold = "8 from 3, 5, 5, 5"
    cases = (("3+5", 1.0, 0.0), ("3+5*5/5", 1.0, 1.0), ("3+5+5-5", 1.0, 1.0), ("3+5-5+5*5/5", 0.0, 0.0))
    for text, at_most_once, exactly_once in cases:
        assert one(puzzles.countdown, gold, text).value == at_most_once
        assert one(puzzles.countdown, gold, text, use_all=True).value == exactly_once


def tiny_zero(equation: str, target: int, numbers: list[int]) -> bool:
    """Whether TinyZero's verifier pays 1 for an equation (verl/utils/reward_score/countdown.py, f36b1b8), in our words."""
    used = sorted(map(int, re.findall(r"\d+", equation)))
    return used == sorted(numbers) and abs(eval(equation, {"__builtins__": None}) - target) < 1e-5


def test_use_all_is_tiny_zeros_verdict() -> None:
    # On 400 solutions of puzzles, half of them with one number replaced, use_all gives TinyZero's verdict on every one.
    world, draw, paid = countdown.World(8), random.Random(8), 0
    for puzzle in world.puzzles(400):
        numbers = list(puzzle.numbers)
        if draw.random() < 0.5:
            numbers[0] += 1
        want = tiny_zero(puzzle.expression, puzzle.target, numbers)
        score = one(
            puzzles.countdown, countdown.answer(puzzle.target, numbers), f"<answer>{puzzle.expression}</answer>", use_all=True
        )
        assert score.value == float(want)
        paid += want
    assert 150 < paid < 250


EXPRESSION = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
    max_leaves=6,
)


@given(EXPRESSION)
def test_values_are_exact(expression: str) -> None:
    # The value is the rational number the expression stands for.
    read = countdown.evaluate(expression)
    assert (read[0] if read else None) == _exact(ast.parse(expression, mode="eval").body)


def _exact(node: Any) -> Fraction | None:
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int)
        return Fraction(node.value)
    a, b = _exact(node.left), _exact(node.right)
    if a is None or b is None or (isinstance(node.op, ast.Div) and b == 0):
        return None
    return {ast.Add: a + b, ast.Sub: a - b, ast.Mult: a * b, ast.Div: a / b if b else a}[type(node.op)]


@given(st.text(max_size=300))
def test_any_text_is_an_expression_or_none(text: str) -> None:
    # No text raises or runs.
    read = countdown.evaluate(text)
    assert read is None or isinstance(read[0], Fraction)


@pytest.mark.parametrize("scorer", [puzzles.countdown, puzzles.knights_knaves])
def test_hostile_texts_are_wrong(scorer: Any) -> None:
    # Towers, nesting and megabytes are no answer, at once.
    gold = "54 from 2, 3, 5, 7" if scorer is puzzles.countdown else "Ada is a knight, Ben is a knave"
    assert {one(scorer, gold, text).value for text in HOSTILE.values()} == {0.0}
    assert one(scorer, gold, "(" * 90 + "54" + ")" * 90).value == 0.0


def test_every_knights_puzzle_has_one_solution() -> None:
    # The stored solution is the only assignment that fits, and the only one the verifier accepts.
    world = knights_knaves.World(5)
    made = world.puzzles(60) + world.hard(10)
    for puzzle in made:
        assert knights_knaves.solutions(puzzle.statements) == [puzzle.knights]
        assert accepted(puzzle.names, puzzle.answer) == [puzzle.knights]
        assert one(puzzles.knights_knaves, puzzle.answer, puzzle.solution).value == 1.0
    assert len({p.statements for p in made}) == len(made)


def accepted(names: Any, gold: str) -> list[tuple[bool, ...]]:
    """The assignments that the verifier accepts, each written as an answer."""
    everyone = list(itertools.product((True, False), repeat=len(names)))
    roles = {True: "a knight", False: "a knave"}
    said = [[f"({i}) {names[i]} is {roles[k]}" for i, k in enumerate(ks)] for ks in everyone]
    texts = ["It must be so. <answer>" + "\n".join(lines) + "</answer>" for lines in said]
    return [ks for ks, text in zip(everyone, texts, strict=True) if one(puzzles.knights_knaves, gold, text).value == 1.0]


@pytest.mark.parametrize(
    "text",
    [
        "Ada is a knight",  # half an answer
        "Ada is a knight or a knave, Ben is a knight or a knave",  # the prompt's own example
        "Ada is a knight, Ben is a knave, Cy is a knight",  # nobody asked for Cy
        "Ada is a knight, Ben is a knave, Ben is a knight",
        "Ada is a knight, Ben is not a knight",
        "Ada and Ben",
    ],
)
def test_hedging_is_no_answer(text: str) -> None:
    # Everybody must be given one plain role; "a knight or a knave" is no answer.
    assert one(puzzles.knights_knaves, "Ada is a knight, Ben is a knave", f"<answer>{text}</answer>").value == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "**Zoey** is a **knave**, **Ben** is a **knight**",
        "Zoey: knave\nBen: knight",
        "- **Zoey**: Knave\n- **Ben**: Knight",
        "Zoey is the knave and Ben is the knight.",
        "| Zoey | knave |\n| Ben | knight |",
        "Zoey -> knave, Ben -> knight",
        "(1) Zoey is a knave\n(2) Ben is a knight",
        "If Zoey is a knight, Ben lies. So Zoey is a knave. Ben is a knight.",
        "Ben is not a knave. Ben is a knight, Zoey is a knave",
    ],
)
def test_forms_of_the_same_solution(text: str) -> None:
    # Markdown, colons, tables and sentences say the same thing, with the same detail.
    assert one(puzzles.knights_knaves, "Zoey is a knave, Ben is a knight", text) == Score(1.0, "ok", "+ben -zoey")


@pytest.mark.parametrize(
    "said",
    [
        "It is false that Zoey is a knave",
        "It is not true that Zoey is a knave",
        "It is not the case that Zoey is a knave",
        "I don't think that Zoey is a knave",
        "Suppose Zoey is a knave",
        "If Zoey is a knave, then so be it",
        "Ben says Zoey is a knave",
        "Zoey is not a knave",
        "Zoey isn't a knave",
        "Zoey is a knave or a knight",
        "Zoey: knight/knave",
    ],
)
def test_what_is_denied_or_supposed_is_not_said(said: str) -> None:
    # A claim that the text denies, supposes or attributes is no answer, whichever role it names.
    for role, other in (("knave", "knight"), ("knight", "knave")):
        text = said.replace("knave", "K").replace("knight", other).replace("K", role)
        assert one(puzzles.knights_knaves, f"Zoey is a {role}, Ben is a knight", f"Ben is a knight. {text}").value == 0.0


@pytest.mark.skipif(not KNIGHTS.exists(), reason="needs ../shared/data/knights_knaves (puzzles of Logic-RL)")
@pytest.mark.parametrize("file", ["3ppl_test.parquet", "3ppl_train.parquet", "4ppl_test.parquet"])
def test_logic_rls_puzzles(file: str) -> None:
    # Every stored solution is accepted and every other assignment refused; each puzzle has that one solution.
    import pyarrow.parquet as pq

    rows = pq.read_table(KNIGHTS / file).to_pylist()
    for row in rows:
        statements = ast.literal_eval(row["statements"])
        assert knights_knaves.solutions(statements) == [tuple(row["solution"])]
        for gold in (row["solution_text"], row["solution_text_format"]):
            assert accepted(row["names"], gold) == [tuple(row["solution"])]
            assert one(puzzles.knights_knaves, row["solution_text"], gold).value == 1.0


@pytest.mark.parametrize("source", ["countdown", "knights_knaves"])
def test_splits_of_puzzles(source: Any) -> None:
    # Disjoint, with solutions for the seed split; a larger rounds split moves no other; nothing but the seed matters.
    wanted = Prompts(source=source, seed=5, rounds=20, probe=3, held_out=10, test=4, ood=3)
    rows, given_rows = prompts.splits(wanted, None, 1)
    assert prompts.disjoint(rows)["prompts"] == {"seed": 5, "rounds": 20, "probe": 3, "held_out": 10, "test": 4, "ood": 3}
    assert [row["prompt_id"] for row in given_rows] == [row["prompt_id"] for row in rows["seed"]]
    more, _ = prompts.splits(wanted.model_copy(update={"rounds": 40}), None, 1)
    assert all(more[split] == rows[split] for split in ("seed", "held_out", "test", "probe"))
    assert prompts.splits(wanted, None, 1)[0] == rows
    assert prompts.splits(wanted, None, 2)[0] != rows
