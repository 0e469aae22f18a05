from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import PromptsError
from data.recipe.settings import Columns, Prompts
from data.rows import prompts, records, tables
from data.worlds import addition
from data.worlds.addition import ALPHABET, Problem, World

Row = dict[str, Any]
TINY = Prompts(seed=20, rounds=30, probe=10, held_out=40, test=40, ood=10)
SMALL = Prompts(source="file", held_out=2, test=2)
NUMBERED = [{"question": f"What is {i}?", "answer": f"It is {i}. #### {i}"} for i in range(40)]


@st.composite
def any_problem(draw: st.DrawFn) -> Problem:
    digits = draw(st.integers(2, 5))
    number = st.integers(10 ** (digits - 1), 10**digits - 1)
    return Problem(draw(number), draw(number))


# -- the tiny world ---------------------------------------------------------------------------------------------------


@given(any_problem())
def test_a_solution_is_right_step_by_step(problem: Problem) -> None:
    # every column is digit + digit + carry, the carry is passed on, the digits written make the sum
    steps, _, said = problem.solution.partition("#")
    written, carry = "", 0
    for step, a, b in zip(steps.split(";")[:-1], str(problem.a)[::-1], str(problem.b)[::-1], strict=True):
        left, total = step.split("=")
        assert left == f"{a}+{b}+{carry}"
        assert int(total) == int(a) + int(b) + carry
        assert len(total) == 2
        carry, written = int(total) // 10, total[1] + written
    assert said == problem.answer == str(problem.a + problem.b)
    assert int(f"{carry}{written}") == problem.a + problem.b


@given(any_problem())
def test_the_tiny_models_alphabet_is_enough(problem: Problem) -> None:
    # prompt and solution use its characters only, a five-digit solution takes 52 of them at most
    assert set(problem.prompt + problem.solution) <= set(ALPHABET)
    assert len(set(ALPHABET)) == len(ALPHABET) == 29
    assert len(problem.solution) <= 52


def test_the_worked_example() -> None:
    # the form the module's docstring shows
    assert Problem(5366, 3650).prompt == "5366+3650?"
    assert Problem(5366, 3650).solution == "6+0+0=06;6+5+0=11;3+6+1=10;5+3+1=09;#9016"
    assert addition.__doc__ is not None
    assert "6+0+0=06;6+5+0=11;...;#9016" in addition.__doc__


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_problems_are_distinct_both_ways_round(seed: int) -> None:
    # 12+34 and 34+12 never both occur, every length does, and the problems depend on the seed alone
    def drawn(seed: int) -> list[Problem]:
        world = World(seed)
        return world.seed_set(100) + world.mixed(400)

    assert len({tuple(sorted((p.a, p.b))) for p in drawn(seed)}) == 500
    assert {len(str(p.a)) for p in drawn(seed)} == {len(str(p.b)) for p in drawn(seed)} == {2, 3, 4}
    assert drawn(seed) == drawn(seed) != drawn(seed + 1)


def test_a_world_that_runs_out_of_short_problems_goes_on_with_longer_ones() -> None:
    # asking for more two-digit problems than there are ends, and still repeats none
    drawn = World(0).problems([2] * 5000)
    assert len({tuple(sorted((p.a, p.b))) for p in drawn}) == 5000
    assert {len(str(p.a)) for p in drawn} == {2, 3}


@given(st.integers(0, 400))
def test_the_seed_set_has_the_size_and_shares_it_was_asked_for(count: int) -> None:
    # mostly short problems, whatever the rounding
    lengths = [len(str(p.a)) for p in World(1).seed_set(count)]
    assert len(lengths) == count
    assert abs(lengths.count(4) - addition.FOUR_DIGITS * count) <= 0.5
    assert abs(lengths.count(3) - addition.THREE_DIGITS * count) <= 0.5


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_tiny_splits_share_no_problem_nor_its_mirror(seed: int) -> None:
    # no problem is in two splits, not even with its numbers exchanged
    rows, given_solutions = prompts.splits(TINY, None, seed)
    asked = [row["messages"][0]["content"].rstrip("?") for split in prompts.SPLITS for row in rows[split]]
    assert len({tuple(sorted(text.split("+"))) for text in asked}) == len(asked) == 150
    assert {split: len(rows[split]) for split in prompts.SPLITS} == {s: getattr(TINY, s) for s in prompts.SPLITS}
    assert not any(prompts.disjoint(rows)["shared"].values())
    assert [row["prompt_id"] for row in given_solutions] == [row["prompt_id"] for row in rows["seed"]]


def test_tiny_rows_are_prompts() -> None:
    # answers are exact, strata tell the length, out-of-distribution means five digits
    rows, given_solutions = prompts.splits(TINY, None, 3)
    for split in prompts.SPLITS:
        assert tables.from_rows(rows[split], tables.PROMPTS).num_rows == getattr(TINY, split)
        for row in rows[split]:
            a, b = row["messages"][0]["content"].rstrip("?").split("+")
            assert row["answer"] == str(int(a) + int(b))
            assert row["stratum"] == f"{len(a)} digits"
            assert (len(a) == 5) == (split == "ood")
    assert all(s["text"].endswith(f"#{r['answer']}") for s, r in zip(given_solutions, rows["seed"], strict=True))


@given(st.integers(0, 200), st.integers(0, 30))
def test_a_larger_rounds_split_moves_no_other(rounds: int, ood: int) -> None:
    # campaigns with more prompts per round stay comparable: measured and seed rows are the same
    before, _ = prompts.splits(TINY, None, 1)
    after, _ = prompts.splits(TINY.model_copy(update={"rounds": rounds, "ood": ood}), None, 1)
    assert {s: after[s] for s in ("seed", "held_out", "test", "probe")} == {
        s: before[s] for s in ("seed", "held_out", "test", "probe")
    }
    assert after["rounds"][:30] == before["rounds"][:rounds]


def test_a_shared_prompt_is_named() -> None:
    # the stored check is a proof: it raises where two splits share a prompt
    rows, _ = prompts.splits(TINY, None, 1)
    rows["test"].append(rows["rounds"][0])
    with pytest.raises(PromptsError, match=r"splits must not share prompts, found .*'rounds&test': 1"):
        prompts.disjoint(rows)


# -- a user's file ----------------------------------------------------------------------------------------------------


def jsonl(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def gzipped(path: Path, records: Sequence[Any]) -> Path:
    plain = jsonl(path.with_suffix(".plain"), records)
    path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


def parquet(path: Path, records: Sequence[Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(records)), path)
    return path


WRITERS: dict[str, Callable[[Path, Sequence[Any]], Path]] = {"p.jsonl": jsonl, "p.jsonl.gz": gzipped, "p.parquet": parquet}


def split(path: Path, **changes: Any) -> dict[str, list[Row]]:
    rows, given_solutions = prompts.splits(SMALL.model_copy(update={"path": str(path), **changes}), path, seed=0)
    assert given_solutions == []
    return rows


def refusal(path: Path, **changes: Any) -> str:
    with pytest.raises(PromptsError) as caught:
        split(path, **changes)
    return str(caught.value)


def texts(rows: list[Row]) -> list[str]:
    return [row["messages"][0]["content"] for row in rows]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_read_whatever_its_form(tmp_path: Path, name: str) -> None:
    # JSONL, gzipped JSONL and Parquet of the same rows give the same splits
    rows = split(WRITERS[name](tmp_path / name, NUMBERED), answer_after="####", probe=3)
    assert {s: len(rows[s]) for s in prompts.SPLITS} == {
        "seed": 0,
        "rounds": 33,
        "probe": 3,
        "held_out": 2,
        "test": 2,
        "ood": 0,
    }
    everything = [row for s in prompts.SPLITS for row in rows[s]]
    assert {(row["messages"][0]["content"], row["answer"]) for row in everything} == {
        (f"What is {i}?", str(i)) for i in range(40)
    }
    assert {row["source"] for row in everything} == {name}
    assert tables.from_rows(everything, tables.PROMPTS).num_rows == 40
    plain = split(jsonl(tmp_path / "again.jsonl", NUMBERED), answer_after="####", probe=3)
    assert {s: [r["prompt_id"] for r in rows[s]] for s in rows} == {s: [r["prompt_id"] for r in plain[s]] for s in plain}


@pytest.mark.parametrize("name", WRITERS)
def test_conversations_are_prompts_too(tmp_path: Path, name: str) -> None:
    # a messages column is taken as it is, other keys of a message left out
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    records = [{"messages": [*talk, {"role": "user", "content": str(i)}], "target": i} for i in range(9)]
    rows = split(WRITERS[name](tmp_path / name, records))
    for row in rows["rounds"]:
        assert row["messages"][:2] == talk
        assert row["answer"] == row["messages"][2]["content"]


@pytest.mark.parametrize(
    ("written", "marker", "answer"),
    [
        ("so #### 7", "####", "7"),
        ("no marker 7 ", "####", "no marker 7"),
        ("1 #### 2 #### 3", "####", "3"),
        (7, "####", "7"),
        ("so #### 7", "", "so #### 7"),
        (None, "####", None),
    ],
)
def test_the_answer_is_what_follows_the_last_marker(tmp_path: Path, written: Any, marker: str, answer: str | None) -> None:
    # GSM8K's form works out of the box; without a marker the whole text is the answer; null means there is none
    records = [{"prompt": f"{i}?", "answer": written} for i in range(6)]
    rows = split(jsonl(tmp_path / "p.jsonl", records), answer_after=marker)
    assert {row["answer"] for row in rows["rounds"]} == {answer}


def test_columns_are_found_by_name_or_told(tmp_path: Path) -> None:
    # the usual names are found, others can be set, the template wraps each prompt
    odd = jsonl(tmp_path / "odd.jsonl", [{"frage": f"{i}?", "loesung": i, "prompt": "no"} for i in range(6)])
    rows = split(odd, map=Columns(prompt="frage", answer="loesung"), template="Q: {prompt} A: {x}")
    row = rows["rounds"][0]
    assert texts([row]) == [f"Q: {row['answer']}? A: {{x}}"]
    for name in records.USUAL["prompt"][:-1]:
        assert len(split(jsonl(tmp_path / "p.jsonl", [{name: f"{i}?"} for i in range(6)]))["rounds"]) == 2


TINY_ZERO = [{"target": 20 + i, "nums": [19, i + 1, 35]} for i in range(6)]


def test_tiny_zeros_columns_are_taken_as_they_are(tmp_path: Path) -> None:
    # Countdown-Tasks-3to4 has only `target` and `nums`: the prompt names both and the rule, and the answer is the verifier's.
    from tasks.score.scorers.puzzles import countdown as verifier

    rows = split(jsonl(tmp_path / "p.jsonl", TINY_ZERO))
    for row in rows["rounds"] + rows["held_out"]:
        target, numbers = row["answer"].split(" from ")
        assert {"target": int(target), "nums": [int(n) for n in numbers.split(", ")]} in TINY_ZERO
        (text,) = texts([row])
        assert all(part in text for part in (target, numbers, "exactly once", "<answer>"))
    gold = records.answer_of(Prompts(), {"target": 20, "nums": [19, 1, 35]}, "row 1")
    scored = verifier([{"answer": gold}] * 2, [{"text": t, "finish_reason": "stop"} for t in ("19+1", "20")])
    assert [score.value for score in scored] == [1.0, 0.0]


def test_tiny_zeros_prepared_files_and_maps(tmp_path: Path) -> None:
    # A prompt column is kept; the nested ground truth is read where it is mapped; a map overrides what is known.
    truth = {"target": 20, "numbers": [19, 1, 35]}
    prepared = {"prompt": [{"role": "user", "content": "go"}], "reward_model": {"ground_truth": truth}}
    mapped = Prompts(map=Columns(answer="reward_model.ground_truth"))
    assert records.answer_of(mapped, prepared, "row 1") == "20 from 19, 1, 35"
    assert records.messages_of(mapped, prepared, "row 1") == prepared["prompt"]
    assert records.answer_of(Prompts(map=Columns(answer="target")), TINY_ZERO[0], "row 1") == "20"
    assert records.answer_of(Prompts(), {"question": "2+2?", "target": 4}, "row 1") == "4"
    with pytest.raises(PromptsError, match="expected a given solution"):
        records.given_of(Prompts(), TINY_ZERO[0], "row 1")


KNIGHTS = Path(__file__).parents[2] / "shared" / "data" / "knights_knaves"


@pytest.mark.skipif(not KNIGHTS.exists(), reason="needs ../shared/data/knights_knaves (puzzles of Logic-RL)")
def test_logic_rls_columns_are_taken_as_they_are() -> None:
    # Without a map the prompt is the bare quiz, and the verifier reads the stored solution of each row from the answer.
    from tasks.score.scorers.puzzles import knights_knaves as verifier

    rows = split(KNIGHTS / "3ppl_train.parquet", held_out=100, test=100)
    assert sum(map(len, rows.values())) > 800
    for row in rows["rounds"]:
        (text,) = texts([row])
        assert text.startswith("A very special island")
        assert "<|im_start|>" not in text
        assert verifier([row], [{"text": row["answer"], "finish_reason": "stop"}])[0].value == 1.0


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(0, 39), min_size=8), st.integers(0, 20), st.randoms())
def test_what_was_trained_on_is_never_measured_on_when_a_file_grows(
    tmp_path: Path, first: set[int], limit: int, chance: Any
) -> None:
    # rows added or reordered move a row towards the rounds at most: held-out never gets a row that was trained on
    before = split(jsonl(tmp_path / "p.jsonl", [NUMBERED[i] for i in sorted(first)]), probe=1)
    grown = chance.sample(NUMBERED, len(NUMBERED))
    after = split(jsonl(tmp_path / "p.jsonl", grown), probe=1, limit=limit if limit > 5 else 0)
    rank = {text: order for order, s in enumerate(("held_out", "test", "probe", "rounds")) for text in texts(after[s])}
    for order, name in enumerate(("held_out", "test", "probe", "rounds")):
        assert all(rank.get(text, 3) >= order for text in texts(before[name]))


def test_order_and_repetition_of_rows_do_not_matter(tmp_path: Path) -> None:
    # a shuffled file with rows written twice gives the same splits
    once = split(jsonl(tmp_path / "p.jsonl", NUMBERED))
    assert split(jsonl(tmp_path / "p.jsonl", NUMBERED[::-1] + NUMBERED[:5])) == once


def test_limit_takes_a_stable_share(tmp_path: Path) -> None:
    # fewer rows are a share of more, chosen by hash: the measured ones are the same
    path = jsonl(tmp_path / "p.jsonl", NUMBERED)
    whole, some = split(path), split(path, limit=12)
    assert (some["held_out"], some["test"]) == (whole["held_out"], whole["test"])
    assert some["rounds"] == whole["rounds"][:8]
    assert split(path, limit=100) == whole
    assert split(path, rounds=5)["rounds"] == whole["rounds"][:5]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{not json}", "expected one JSON object per line: Expecting property name"),
        ('"text"', "expected a JSON object, found str"),
        ("[1]", "expected a JSON object, found list"),
        ('{"question": "half a pair \\ud800"}', "expected one JSON object per line: .*surrogates not allowed"),
        ("[" * 100_000, "expected one JSON object per line: maximum recursion"),
        ('{"problem": ""}', "column 'problem': expected text or a list of {role, content} messages, found ''"),
        ('{"question": 7}', "column 'question': expected text or a list .*, found 7"),
        ('{"messages": [{"role": "user"}]}', r"column 'messages': expected text or a list .*, found \[{'role': 'user'}\]"),
        ('{"messages": []}', r"column 'messages': .*, found \[\]"),
        ('{"text": "x"}', "expected one of the columns prompt, question, .*, found text; set prompts.map.prompt"),
        ("{}", "expected one of the columns prompt, question, .*, found none; set prompts.map.prompt"),
    ],
)
def test_a_bad_row_is_named_by_its_number(tmp_path: Path, line: str, says: str) -> None:
    # the row's number counts lines as an editor does, blank ones too
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(NUMBERED[0]) + "\n\n" + line + "\n" + json.dumps(NUMBERED[1]))
    with pytest.raises(PromptsError, match=rf"^p\.jsonl: row 3: {says}"):
        split(path)


def test_a_column_that_was_asked_for_and_is_missing_is_named(tmp_path: Path) -> None:
    # the error names the expected columns and those that the file has
    path = jsonl(tmp_path / "p.jsonl", NUMBERED)
    assert refusal(path, map=Columns(prompt="quest")) == (
        "p.jsonl: row 1: expected column 'quest', found question, answer; set prompts.map.prompt"
    )
    assert refusal(path, map=Columns(answer="gold")) == (
        "p.jsonl: row 1: expected column 'gold', found question, answer; set prompts.map.answer"
    )


@pytest.mark.parametrize("name", WRITERS)
def test_one_prompt_with_two_answers_is_refused(tmp_path: Path, name: str) -> None:
    # one prompt with two different answers cannot be verified, so it is refused
    path = WRITERS[name](tmp_path / name, [*NUMBERED, NUMBERED[3] | {"answer": "4"}])
    assert refusal(path, answer_after="####") == (
        f"{name}: row 41: the same prompt appears with two answers ('3' and '4'); remove one"
    )


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.parquet"])
@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00\x80garbage" * 9, gzip.compress(b'{"question": "x"}\n' * 99)[:40], b"PAR1"],
    ids=["garbage", "torn", "magic"],  # gzip's bytes hold the time, and every worker must collect the same tests
)
def test_garbage_is_no_traceback(tmp_path: Path, name: str, content: bytes) -> None:
    # binary, truncated and misnamed files are the user's to repair: the file is named, with what is expected
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path)
    assert name in message
    assert "expected" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", WRITERS)
def test_an_empty_file_has_too_few_prompts(tmp_path: Path, name: str) -> None:
    # the counts that were asked for are in the message, and how to lower them
    path = WRITERS[name](tmp_path / name, [])
    assert refusal(path) == (
        f"{name}: expected more than 4 distinct prompts (prompts.held_out = 2, prompts.test = 2, prompts.probe = 0, "
        "prompts.rounds = the rest), found 0; lower the counts with --set"
    )


def test_too_few_prompts_for_the_splits_are_refused(tmp_path: Path) -> None:
    # a file is refused if held-out and test leave no prompts to train on
    assert "found 40; lower the counts" in refusal(jsonl(tmp_path / "p.jsonl", NUMBERED), held_out=38)
    assert "found 12; lower the counts" in refusal(tmp_path / "p.jsonl", limit=12, rounds=10)
    assert len(split(tmp_path / "p.jsonl", held_out=37)["rounds"]) == 1


def test_a_path_that_is_no_file_is_named(tmp_path: Path) -> None:
    # the error lists the formats that can be read
    assert "expected a readable .jsonl, .jsonl.gz or .parquet file" in refusal(tmp_path / "absent.jsonl")
    assert "expected a folder of Parquet, JSONL or CSV files" in refusal(tmp_path)


def test_other_distributions_are_the_worlds(tmp_path: Path) -> None:
    # prompts.ood is refused for a file: only the built-in worlds can make out-of-distribution prompts
    assert (
        refusal(jsonl(tmp_path / "p.jsonl", NUMBERED), ood=3) == "prompts.ood needs a built-in task, found a file; set it to 0"
    )


@pytest.mark.parametrize("column", ["answer", "completion", "chosen"])
def test_a_files_seed_split_has_given_solutions(tmp_path: Path, column: str) -> None:
    # the completion (of two, the chosen one), else the whole answer with its reasoning; no seed prompt is in another split
    told = {"completion": "so", "chosen": "so"}.get(column)
    rows = [row | ({column: told, "rejected": "no"} if told else {}) for row in NUMBERED]
    asked = SMALL.model_copy(update={"seed": 5, "answer_after": "####"})
    made, solutions = prompts.splits(asked, jsonl(tmp_path / "p.jsonl", rows), 0)
    assert prompts.disjoint(made)["prompts"]["seed"] == 5
    for row, solution in zip(made["seed"], solutions, strict=True):
        assert row["prompt_id"] == solution["prompt_id"]
        assert solution["text"] == (told or f"It is {row['answer']}. #### {row['answer']}")


def test_a_prompt_without_a_given_solution_is_named(tmp_path: Path) -> None:
    # prompts.seed on a file of bare questions says what is missing, and where
    rows = [{"question": row["question"]} for row in NUMBERED]
    message = refusal(jsonl(tmp_path / "p.jsonl", rows), seed=3)
    assert "expected a given solution, since prompts.seed is above 0, found none; set prompts.map.completion" in message
