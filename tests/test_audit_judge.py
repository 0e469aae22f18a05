"""`ratchet audit-judge`: what a file of verdicts tells about a judge, and what it cannot tell."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from data.statistics import difference_interval, share_interval
from tasks.evaluate import judge_bias
from tasks.evaluate.judge_audit import Report, Text, Verdict, tell
from tasks.evaluate.read_verdicts import read_verdicts

Row = dict[str, Any]


def planted(
    prompts: int, draw: np.random.Generator, *, position: float = 0.0, length: float = 0.0, own: float = 0.0
) -> list[Verdict]:
    """Verdicts of "judge" on its own text against another's, in both orders: the log-odds that the first text wins add up.

    Gold prefers the longer text in 6 of 10 pairs, and the judge's own in 7 of 10. Gold is worth 1 in the log-odds.
    """
    verdicts = []
    for number in range(prompts):
        better = draw.random() < 0.7  # own text, by gold
        longer = draw.random() < (0.6 if better else 0.4)
        mine, other = Text("mine", 2.0 if longer else 1.0, "judge"), Text("other", 1.0 if longer else 2.0, "other")
        merit = (1 if better else -1) + length * (1 if longer else -1) + own
        for turn in (1, -1):
            won = float(draw.random() < expit(position + turn * merit))
            first, second = (mine, other) if turn == 1 else (other, mine)
            verdicts.append(
                Verdict("judge", f"p{number}", first, second, won, float(better) if turn == 1 else float(not better))
            )
    return verdicts


def report(verdicts: Sequence[Verdict]) -> Report:
    (found,), _ = tell(verdicts)
    return found


BIASES = ("position_bias", "length_bias", "self_preference")


@pytest.mark.parametrize(
    ("planted_in", "size"),
    [("position_bias", {"position": 0.5}), ("length_bias", {"length": 0.5}), ("self_preference", {"own": 0.5})],
)
def test_the_planted_bias_is_found_and_no_other(planted_in: str, size: dict[str, float]) -> None:
    # Claim: a planted bias is surely above 0, and the others are not told to be there, though own texts are better.
    found = report(planted(1500, np.random.default_rng(5), **size)).measures
    assert found[planted_in].low > 0
    for other in set(BIASES) - {planted_in}:
        assert found[other].low < 0.02
        assert found[other].high > -0.02
        assert abs(found[other].value) < found[planted_in].value / 2


@pytest.mark.parametrize("prompts", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_a_fair_judge_has_no_bias_in_95_of_100_files(prompts: int) -> None:
    # Claim: the interval of each bias of a judge without one spans 0 in 95% of files (at most 5% + 3.5 standard errors do not).
    files = 100
    missed = dict.fromkeys(BIASES, 0)
    for seed in range(files):
        found = report(planted(prompts, np.random.default_rng(seed))).measures
        for name in BIASES:
            missed[name] += name in found and not found[name].low <= 0 <= found[name].high
    assert max(missed.values()) <= files * 0.05 + 3.5 * np.sqrt(files * 0.05 * 0.95)


def test_more_own_wins_are_no_self_preference() -> None:
    # Claim: a fair judge prefers its own texts in most pairs because they are better; it is not said to prefer itself.
    found = report(planted(1500, np.random.default_rng(9))).measures
    assert found["own_wins"].low > 0.5
    assert found["self_preference"].low < 0 < found["self_preference"].high


def test_one_order_tells_no_position_bias() -> None:
    # Claim: with one order of each pair, position is unknown, with the reason, even where the first text always wins.
    verdicts = [Verdict("j", f"p{i}", Text("a", 3.0), Text("b", 2.0), 1.0) for i in range(50)]
    found = report(verdicts)
    assert found.both_orders == 0
    assert found.measures["first_wins"].value == 1
    assert {"position_bias", "order_agreement", "accuracy", "kappa", "length_bias", "self_preference"} == set(found.unknown)
    assert "one order only" in found.unknown["position_bias"]
    assert "without gold" in found.unknown["length_bias"]


def test_accuracy_is_told_for_each_order() -> None:
    # Claim: a judge that always takes the first text is right in every pair whose better text is read first, and in no other.
    one, other = Text("a"), Text("b")  # gold prefers a
    orders = (((one, other), 1.0), ((other, one), 0.0))
    verdicts = [Verdict("j", f"p{i}", *sides, 1.0, gold) for i in range(30) for sides, gold in orders]
    found = report(verdicts).measures
    values = [found[name].value for name in ("accuracy", "accuracy_better_first", "accuracy_better_second", "order_agreement")]
    assert values == [0.5, 1.0, 0.0, 0.0]
    assert found["position_bias"].value == 0.5


def test_kappa_is_that_of_scikit_learn() -> None:
    # Claim: with one pair a prompt, agreement and kappa are the published statistics; perfect agreement still has an interval.
    from sklearn.metrics import cohen_kappa_score

    draw = np.random.default_rng(0)
    one = draw.choice([0.0, 0.5, 1.0], 300, p=[0.3, 0.1, 0.6])
    other = np.where(draw.random(300) < 0.6, one, draw.choice([0.0, 0.5, 1.0], 300))
    tables = [dict(enumerate(map(float, values))) for values in (one, other)]
    named = [{str(key): value for key, value in table.items()} for table in tables]
    agreed, kappa = judge_bias.kappa(named[0], named[1], {key: key for key in named[0]})
    assert agreed.value == pytest.approx((one == other).mean())
    assert kappa.value == pytest.approx(cohen_kappa_score(np.sign(one - 0.5).astype(int), np.sign(other - 0.5).astype(int)))
    assert kappa.low < kappa.value < kappa.high
    _, perfect = judge_bias.kappa(named[0], named[0], {key: key for key in named[0]})
    assert perfect.value == perfect.high == 1
    assert 0.9 < perfect.low < 1


def test_intervals_of_kappa_and_of_differences_cover() -> None:
    # Claim: 95% intervals (93% at least within Monte Carlo error) of kappa and of a difference of shares, also for rare events.
    draw, repeats, n = np.random.default_rng(3), 400, 60
    covered = np.zeros(2)
    for _ in range(repeats):
        truth = draw.random(n) < 0.5
        said = np.where(draw.random(n) < 0.85, truth, ~truth)
        one, other = ({str(i): float(v) for i, v in enumerate(side)} for side in (truth, said))
        kappa = judge_bias.kappa(one, other, {key: key for key in one})[1]
        shares = [(draw.random(n) < p).astype(float) for p in (0.05, 0.02)]
        low, high = difference_interval(*((float(s.mean()), share_interval(s)) for s in shares))
        covered += (kappa.low <= 0.7 <= kappa.high, low <= 0.03 <= high)
    assert (covered / repeats > 0.93 - 3 * np.sqrt(0.05 * 0.95 / repeats)).all()


# -- files ----------------------------------------------------------------------------------------------------------------
def rows_of(verdicts: Sequence[Verdict]) -> list[Row]:
    """As a file has them: both orders as two rows."""
    names = {1.0: "first", 0.0: "second", 0.5: "tie"}
    return [
        {
            "prompt": v.prompt, "first": "x" * int(v.first.length or 0) + v.first.key, "first_by": v.first.writer,
            "second": "x" * int(v.second.length or 0) + v.second.key, "second_by": v.second.writer, "judge": v.judge,
            "verdict": names[v.first_wins or 0.0], "gold": names[v.gold or 0.0],
        }
        for v in verdicts
    ]  # fmt: skip


def with_swapped(rows: Sequence[Row]) -> list[Row]:
    """The same with both orders in one row, as MT-Bench has them."""
    turned = {"first": "second", "second": "first", "tie": "tie"}
    return [{**one, "swapped": turned[other["verdict"]]} for one, other in zip(rows[::2], rows[1::2], strict=True)]


def written(path: Path, rows: Sequence[Row]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_form_of_a_file_tells_the_same(tmp_path: Path) -> None:
    # Claim: JSONL, CSV, Parquet, two rows a pair or one, words, numbers or writers' names: the same report.
    rows = rows_of(planted(40, np.random.default_rng(1), position=0.5))
    scale = {"first": 1, "second": 2, "tie": 1.5}
    winner = [{**r, "verdict": r[f"{r['verdict']}_by"]} for r in rows]
    forms = [rows, with_swapped(rows), [{**r, "verdict": scale[r["verdict"]]} for r in rows], winner]
    forms.append([{**r, "verdict": 2 - scale[r["verdict"]]} for r in rows])
    told = [
        report(read_verdicts(written(tmp_path / f"{number}{suffix}", form))[0])
        for number, form in enumerate(forms)
        for suffix in (".jsonl", ".csv", ".parquet")
    ]
    assert all(one == told[0] for one in told)
    assert told[0].both_orders == 40


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"verdict": "perhaps"}, "row 1: verdict: expected first, second, tie"),
        ({"verdict": 3}, "expected how far the first text wins"),
        ({"other": "left"}, ""),
    ],
)
def test_a_verdict_that_cannot_be_understood_is_named(change: Row, says: str, tmp_path: Path) -> None:
    # Claim: a wrong verdict stops, with its row; a column that nothing reads does not.
    row = {"prompt": "p", "first": "a", "second": "b", "verdict": "first"}
    file = written(tmp_path / "v.jsonl", [{**row, **change}, row])
    if not says:
        assert len(read_verdicts(file)[0]) == 2
        return
    with pytest.raises(Exception, match=says):
        read_verdicts(file)


def test_the_command_tells_in_sentences_and_in_json(
    ratchet: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # Claim: one sentence a line with interval and number of prompts; a second judge is compared; --json holds the same numbers;
    # a missing column is named with what there is.
    rows = rows_of(planted(60, np.random.default_rng(2), own=2.0))
    others = [{**row, "judge": "human", "verdict": row["gold"]} for row in rows]
    file = written(tmp_path / "v.jsonl", [*rows, *others, {**rows[0], "judge": "\x1b]0;owned\x07"}])
    assert ratchet("audit-judge", file) == 0
    text = capsys.readouterr().out
    assert "\\x1b]0;owned\\x07: 1 verdict" in text
    assert "\x1b" not in text
    lines = text.splitlines()
    assert "judge: 120 verdicts on 60 pairs, 60 pairs in both orders, 0 verdicts unreadable." in lines
    assert any(line.startswith("  Self-preference, errors for its own text minus errors against it: +") for line in lines)
    unknown = "Self-preference cannot be known: no pair sets a text of human against another's"
    assert f"  {unknown}: the writers are judge, other." in lines
    assert any(line.startswith("judge and human give the same verdict on ") for line in lines)
    assert all(line.endswith((".", ":")) for line in lines)
    assert ratchet("audit-judge", file, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    own = told["judges"][0]["measures"]["self_preference"]
    assert own["n"] == 60
    assert own["low"] > 0
    assert ratchet("audit-judge", file, "--map", "verdict=winner") == 2
    assert "a column of v.jsonl, which has first, first_by" in capsys.readouterr().err
