from __future__ import annotations

import contextlib
import gc
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.errors import PartError
from tasks.run.parts import check_settings
from tasks.score import math_verdict, units, verify_pool
from tasks.score.scorers import Score, form
from tasks.score.scorers.answers import exact_match, math_equivalence

CHECKOUT = Path(__file__).parents[1]
GSM8K = CHECKOUT.parent / "shared" / "data" / "gsm8k" / "example_model_solutions_first400.jsonl.gz"

HARD = ("1", "$1$")  # no shortcut: a worker judges it

HOSTILE = {
    "tower": "9**9**9**9",
    "LaTeX tower": "$9^{9^{9^{9}}}$",
    "boxed tower": "\\boxed{9^{9^{9^{9}}}}",
    "power, then mod": "\\boxed{2^{10^{12}} \\mod 7}",
    "logarithm of a power": "\\boxed{\\log_{2}(2^{10^{10}})}",
    "factorial": "\\boxed{(10^9)!}",
    "long sum": "\\boxed{\\sum_{n=1}^{10^9} \\frac{1}{n^3}}",
    "nested parentheses": "$" + "(" * 3000 + "1" + ")" * 3000 + "$",
    "nested fractions": "\\boxed{" + "\\frac{1}{" * 800 + "2" + "}" * 800 + "}",
    "nested sines": "\\boxed{" + "\\sin(" * 500 + "x" + ")" * 500 + "}",
    "10,000 braces": "{" * 10_000 + "}" * 10_000,
    "10,000 boxed braces": "\\boxed" + "{" * 10_000 + "1" + "}" * 10_000,
    "open boxes": "\\boxed{" * 150_000,
    "1 MB of letters": "x" * 1_000_000,
    "1 MB of digits": "7" * 1_000_000,
    "1 MB boxed": "\\boxed{" + "9" * 1_000_000 + "}",
    "1 MB of dollars": "$" * 1_000_000,
    "1 MB of spaces": " " * 1_000_000,
    "1 MB of newlines": "\n" * 1_000_000,
    "1 MB of numbers": "1," * 500_000,
    "1 MB of formulas": "$1$ and " * 125_000,
    "1 MB of anchors": "final answer is " * 62_500,
    "minus signs": "-" * 10_000 + "1",
    "null bytes": "\x00\x00\\boxed{5}\x00",
    "lone surrogates": "\ud800\udfff \\boxed{5} \ud800",
    "only a surrogate": "\\boxed{\ud800}",
    "right to left": "\u202e5 \u202c",
    "unbalanced box": "\\boxed{\\frac{5",
    "unbalanced brackets": "$\\left( \\frac{1}{2 $",
    "a judge's score": "Score: 5",
    "code": "\\boxed{__import__('os').system('exit 1')}",
    "huge exponent": "\\boxed{1e999999999}",
    "empty": "",
}


@pytest.fixture(autouse=True, scope="module")
def _no_workers_left() -> Iterator[None]:
    yield
    verify_pool._close()


def rows(answer: str | None, text: str, finish: str = "stop") -> tuple[dict[str, Any], dict[str, Any]]:
    return {"prompt_id": "p", "answer": answer}, {"prompt_id": "p", "text": text, "finish_reason": finish}


def one(scorer: Any, answer: str | None, text: str, finish: str = "stop", **settings: Any) -> Score:
    prompt, completion = rows(answer, text, finish)
    score: Score
    (score,) = scorer([prompt], [completion], **settings)
    return score


def judge(items: list[tuple[str, str]], **settings: Any) -> list[Score]:
    prompts, completions = zip(*(rows(gold, text) for gold, text in items), strict=True)
    return math_equivalence(prompts, completions, **settings)


def workers() -> list[int]:
    return [p.pid for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


@pytest.mark.parametrize(
    ("answer", "text", "finish", "value", "status"),
    [
        ("42", "6*7=42;#42", "stop", 1.0, "ok"),
        ("42", "#41 no, # 42 \n", "stop", 1.0, "ok"),
        ("42", "#42 no, #41", "stop", 0.0, "ok"),
        ("42", "#042", "stop", 0.0, "ok"),
        ("42", "42", "stop", 0.0, "no_answer_found"),
        ("42", "#", "stop", 0.0, "no_answer_found"),
        ("42", "#42", "given", 1.0, "ok"),
        ("42", "#42", "length", 0.0, "truncated"),
        ("42", "6*7=", "length", 0.0, "truncated"),
        (None, "#42", "stop", None, "no_answer"),
        ("", "#", "stop", None, "no_answer"),
    ],
)
def test_exact_match(answer: str | None, text: str, finish: str, value: float | None, status: str) -> None:
    # The answer is what follows the last marker; no marker and a cut answer are wrong, no gold answer does not apply.
    score = one(exact_match, answer, text, finish, after="#")
    assert (score.value, score.status) == (value, status)


def test_exact_match_without_a_marker() -> None:
    # Without a marker the whole text, stripped, is the answer.
    assert one(exact_match, "yes", " yes\n").value == 1.0
    assert one(exact_match, "yes", "oh yes").value == 0.0
    assert one(exact_match, "yes", " ").status == "no_answer_found"


@pytest.mark.parametrize(
    ("answer", "text", "value"),
    [
        ("72", "so she makes \\boxed{72} dollars", 1.0),
        ("72", "The answer is 72.", 1.0),
        ("72", "The answer is 27.", 0.0),
        ("\\frac{3}{4}", "$\\boxed{0.75}$", 1.0),
        ("3/4", "$\\boxed{\\dfrac34}$", 1.0),
        ("3\\sqrt{13}", "$\\boxed{3}$", 0.0),
        ("3\\sqrt{13}", "$\\boxed{\\sqrt{117}}$", 1.0),
        ("x+1", "$\\boxed{1+x}$", 1.0),
        ("1,000", "#### 1000", 1.0),
        ("10{,}000", "$\\boxed{10000}$", 1.0),
        ("\\$18", "She makes \\boxed{18}", 1.0),
        ("$\\boxed{5}$", "\\boxed{5}", 1.0),
        ("72 dollars", "\\boxed{72}", 1.0),
        ("3, 5, 7", "$\\boxed{7, 3, 5}$", 1.0),
        ("\\text{Evelyn}", "$\\boxed{\\text{Evelyn}}$", 1.0),
        ("(3, \\frac{\\pi}{2})", "$\\boxed{(3, \\pi/2)}$", 1.0),
    ],
)
def test_gold_answers_are_read_as_they_stand_in_files(answer: str, text: str, value: float) -> None:
    # Bare numbers, LaTeX, amounts and lists are compared by what they mean.
    assert one(math_equivalence, answer, text).value == value


@pytest.mark.parametrize(
    ("answer", "text", "finish", "value", "status"),
    [
        ("72", "I do not know", "stop", 0.0, "no_answer_found"),
        ("forty two", "\\boxed{42}", "stop", None, "gold_parse_failure"),
        (None, "\\boxed{42}", "stop", None, "no_answer"),
        ("72", "\\boxed{72}", "length", 0.0, "truncated"),
        ("72", "\\boxed{72}", "given", 1.0, "ok"),
    ],
)
def test_math_statuses(answer: str | None, text: str, finish: str, value: float | None, status: str) -> None:
    # What could not be judged is recorded as what it is: unknown only where nobody can know.
    score = one(math_equivalence, answer, text, finish)
    assert (score.value, score.status) == (value, status)


def test_hostile_completions_cost_their_own_time_only() -> None:
    # No hostile text hangs, crashes the call or changes another verdict, and none of them counts as right by accident.
    honest = [(str(n), f"Score: 1, so \\boxed{{{n + n % 2}}}") for n in range(100, 100 + len(HOSTILE))]
    hostile = [("72", text) for text in HOSTILE.values()]
    start = time.monotonic()
    mixed = judge([item for both in zip(hostile, honest, strict=True) for item in both], timeout=0.5)
    assert time.monotonic() - start < 60 + len(HOSTILE) * 5
    assert [score.value for score in mixed[1::2]] == [float(n % 2 == 0) for n in range(100, 100 + len(HOSTILE))]
    verdicts = dict(zip(HOSTILE, mixed[::2], strict=True))
    assert {s.status for s in verdicts.values()} == {"ok", "no_answer_found", "timeout"}
    assert all(s.value == (None if s.status == "timeout" else 0.0) for s in verdicts.values()), verdicts
    assert verdicts["boxed tower"] == Score(None, "timeout")
    assert verdicts["a judge's score"] == Score(0.0, "ok", "5")
    for score in verdicts.values():
        (score.detail or "").encode()  # a lone surrogate would be refused by Parquet


def test_an_answer_at_the_end_of_a_huge_text_is_found() -> None:
    # Only the end of a huge text is read, so its length alone never loses the answer; identical items are judged once.
    text = "so it goes. " * 100_000 + "\\boxed{72}"
    assert [score.value for score in judge([("72", text)] * 500)] == [1.0] * 500


def test_workers_live_from_call_to_call_and_end_on_close() -> None:
    # The pool outlives the thread that first used it (PR_SET_PDEATHSIG is per thread), and closing leaves no process.
    verify_pool._close()
    caller = threading.Thread(target=judge, args=([(str(n), "$1$") for n in range(200)],))
    caller.start()
    caller.join()
    before = workers()
    time.sleep(0.5)
    assert judge([HARD])[0].value == 1.0
    assert len(before) == 2
    assert sorted(workers()) == sorted(before)
    verify_pool._close()
    assert workers() == []


def test_killed_workers_change_no_verdict() -> None:
    # Workers killed from outside (the OOM killer), idle or at work, are replaced, and what they were judging is judged again.
    items = [(str(n), "and so on " * 500 + f"\\boxed{{{n}}} or so") for n in range(600)]
    judge([HARD])
    killer = threading.Timer(0.3, kill_workers)
    killer.start()
    start = time.monotonic()
    assert [score.value for score in judge(items)] == [1.0] * 600
    killer.join()
    kill_workers()
    assert [score.value for score in judge(items[:50])] == [1.0] * 50
    assert time.monotonic() - start < 50  # a lock that died with its worker would hold the others for 60 seconds


def kill_workers() -> None:
    for pid in workers():
        os.kill(pid, signal.SIGKILL)


def test_a_worker_that_keeps_dying_is_a_crash_not_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    # If the worker keeps dying, the verdict is None with a status, never 0.0; the other completions get their verdicts.
    verify_pool._close()
    monkeypatch.setattr(verify_pool, "MATHEMATICS", only(die))
    assert judge([("1", "one"), ("1", "bad"), ("1", "two")]) == [
        Score(1.0),
        Score(None, "crashed", "its worker died twice"),
        Score(1.0),
    ]
    verify_pool._close()


def only(verdict: Any) -> verify_pool.Judge:
    """A judge with neither a shortcut nor anything to load."""
    return verify_pool.Judge(verdict, nothing, units.no_shortcut)


def nothing() -> None:
    pass


def die(gold: str, text: str) -> math_verdict.Verdict:
    if text == "bad":
        os.abort()
    return 1.0, "ok", None


def test_workers_that_cannot_start_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # A broken installation stops the stage; it must not look like completions that crash.
    verify_pool._close()
    monkeypatch.setattr(verify_pool, "_prepare", os.chdir)  # fails in the worker: it gets a process id
    with pytest.raises(BrokenExecutor):
        judge([HARD])


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Hypothesis watches garbage collections, and a KeyboardInterrupt that falls into its callback is lost."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
def test_an_interrupt_ends_the_workers() -> None:
    # Ctrl-C during a long verification stops it at once and leaves no process.
    judge([HARD])
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        judge([(str(n), "9**9**9**9") for n in range(4)], timeout=100.0)
    assert time.monotonic() - start < 30
    assert workers() == []


def spin(gold: str, text: str) -> math_verdict.Verdict:
    """Use as many CPU seconds as the text says, however long that takes."""
    began = time.process_time()
    while time.process_time() - began < float(text):
        pass
    return 1.0, "ok", None


@contextlib.contextmanager
def slowed(pids: list[int]) -> Iterator[None]:
    """Processes run a tenth of the time, as if nine others wanted their core."""
    done = threading.Event()

    def throttle() -> None:
        while not done.is_set():
            for sign, seconds in ((signal.SIGSTOP, 0.18), (signal.SIGCONT, 0.02)):
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, sign)
                time.sleep(seconds)

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_slow_machine_changes_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    # A verdict that needs half of its CPU seconds is reached, and one that needs four times as many is stopped, though each
    # takes ten times as long on the wall, and single waits end without an answer.
    verify_pool._close()
    verify_pool.verify_all([("0", "0")], 0.4, 1, only(spin))
    monkeypatch.setattr(verify_pool, "STANDSTILL", 1.0)
    with slowed(workers()):
        began = time.monotonic()
        assert verify_pool.verify_all([("1", "0.2")], 0.4, 1, only(spin)) == [(1.0, "ok", None)]
        assert time.monotonic() - began > 2 * 0.4
        assert verify_pool.verify_all([("2", "1.6")], 0.4, 1, only(spin)) == [(None, "timeout", None)]
    verify_pool._close()


@pytest.mark.minutes
def test_a_busy_machine_changes_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    # The same beside four busy processes per core.
    verify_pool._close()
    monkeypatch.setattr(verify_pool, "STANDSTILL", 0.5)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 * len(os.sched_getaffinity(0)))]
    try:
        began = time.monotonic()
        verdicts = verify_pool.verify_all([("0", "0.4"), ("1", "3.2"), ("2", "0.4")], 0.8, 1, only(spin))
        took = time.monotonic() - began
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert verdicts == [(1.0, "ok", None), (None, "timeout", None), (1.0, "ok", None)]
    assert took > 2 * (0.4 + 0.8 + 0.4)  # the load was felt
    verify_pool._close()


def test_a_suspended_worker_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # A worker that gets no CPU time at all is given up, so a stage never hangs; its item has no verdict.
    verify_pool._close()
    judge([HARD])
    monkeypatch.setattr(verify_pool, "STANDSTILL", 1.0)
    for pid in workers():
        os.kill(pid, signal.SIGSTOP)
    assert judge([HARD]) == [Score(None, "timeout", "suspended")]
    verify_pool._close()


def test_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    # A worker cannot take the machine's memory; running out is an exception inside it, and a status.
    verify_pool._close()
    monkeypatch.setattr(verify_pool, "MATHEMATICS", only(hog))
    assert judge([HARD]) == [Score(None, "crashed", "out of memory")]
    verify_pool._close()


def hog(gold: str, text: str) -> math_verdict.Verdict:
    try:
        bytearray(verify_pool.MEMORY_CAP)
    except MemoryError:
        return None, "crashed", "out of memory"
    return 1.0, "ok", None


def test_a_killed_parent_leaves_no_worker() -> None:
    # SIGKILL of the parent, while workers compute, ends them too.
    script = """
import threading, psutil, time
from tasks.score import math_verdict; from tasks.score import verify_pool
verify_pool.verify_all([("1", "$1$")], 5.0, 2)
threading.Thread(target=verify_pool.verify_all, args=([("1", "9**9**9**9")], 500.0, 2), daemon=True).start()
time.sleep(1)
print(*[p.pid for p in psutil.Process().children()], flush=True)
time.sleep(100)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=CHECKOUT)
    assert parent.stdout
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) >= 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
    assert alive == []


def test_format() -> None:
    # The whole stripped text must match, whatever the model wrote around it.
    think = r"(?s)<think>.*</think>\s*<answer>.*</answer>"
    assert one(form.format, None, "\n<think>a\nb</think> <answer>1</answer> ", pattern=think) == Score(1.0)
    assert one(form.format, None, "<think>a</think> <answer>1</answer> and more", pattern=think) == Score(0.0)


def test_a_regex_bomb_costs_a_second() -> None:
    # Catastrophic backtracking on hostile text stops, as a time-out without a value.
    start = time.monotonic()
    assert one(form.format, None, "a" * 5000 + "b", pattern="(a|aa)+") == Score(None, "timeout")
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("scorer", "settings", "says"),
    [
        ("math_equivalence", {"timeout": 0}, "timeout: Input should be greater than 0"),
        ("format", {"pattern": "("}, "pattern: .*expected a regular expression"),
    ],
)
def test_settings_that_make_no_sense_are_refused(scorer: str, settings: dict[str, object], says: str) -> None:
    # A bad setting is refused where the recipe is checked, before anything runs.
    with pytest.raises(PartError, match=says):
        check_settings("scorers", scorer, settings)


def test_misaligned_rows_are_refused() -> None:
    # prompts[i] belongs to completions[i]; a shorter list is a mistake, not fewer scores.
    prompt, completion = rows("1", "1")
    for scorer in (exact_match, math_equivalence):
        with pytest.raises(ValueError, match=r"shorter|longer"):
            scorer([prompt], [completion, completion])


@pytest.mark.skipif(not GSM8K.exists(), reason="needs ../shared/data/gsm8k (400 real problems with the verdicts of 4 systems)")
def test_gsm8k_verdicts() -> None:
    # math_equivalence agrees with every one of 1,600 published verdicts, exact_match with all but a "5600" for "5,600".
    records = [json.loads(line) for line in gzip.decompress(GSM8K.read_bytes()).splitlines()]
    systems = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    want = [float(record[s]["is_correct"]) for record in records for s in systems]
    pairs = [rows(r["ground_truth"].rsplit("A:", 1)[1].strip(), r[s]["solution"]) for r in records for s in systems]
    prompts, completions = zip(*pairs, strict=True)
    exact = [score.value for score in exact_match(prompts, completions, after="A:")]
    assert [(have, right) for have, right in zip(exact, want, strict=True) if have != right] == [(0.0, 1.0)]
    assert [score.value for score in math_equivalence(prompts, completions)] == want
