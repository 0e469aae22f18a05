"""Completions that somebody else produced: read, scored, paired, measured, and trained on."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import PromptsError
from data.recipe.settings import Columns, Prompts
from data.rows import records, tables
from data.store.campaign import Campaign
from data.worlds.addition import World

SHARED = Path(__file__).parents[2] / "shared" / "data"
VERIFIED = SHARED / "verified_outputs" / "qwen_math_cot_100x8.jsonl.gz"
GSM8K = SHARED / "gsm8k" / "example_model_solutions_first400.jsonl.gz"
SYSTEMS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")

RECIPE = """
gold = "train"
[prompts]
source = "file"
[[score]]
scorer = "imported"
name = "correct"
weight = 0.0
settings = { column = "score", answer = "pred" }
[[score]]
scorer = "imported"
name = "reward_model"
settings = { column = "pred_score" }
[pair]
pairer = "right_vs_wrong"
settings = { cap = 0 }
[loss]
name = "sigmoid"
"""
PREFERENCES = """
[prompts]
source = "file"
[[score]]
scorer = "imported"
settings = { column = "preferred" }
[pair]
pairer = "as_recorded"
[loss]
name = "sigmoid"
"""
UNPREFERRED = PREFERENCES.replace('"imported"\nsettings = { column = "preferred" }', '"exact_match"')
Made = dict[str, Any]


@pytest.fixture
def data(ratchet: Callable[..., int], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Made]:
    """`ratchet data` with a recipe given as text; returns what --json prints."""

    def call(recipe: str, *arguments: object) -> Made:
        (tmp_path / "recipe.toml").write_text(recipe)
        capsys.readouterr()
        assert ratchet("data", tmp_path / "recipe.toml", "--home", home, "--json", *arguments) == 0, capsys.readouterr().err
        made: Made = json.loads(capsys.readouterr().out)
        return made

    return call


def table(made: Made, label: str, file: str, schema: pa.Schema) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = tables.read(Path(made["artifacts"][label]["path"]) / file, schema).to_pylist()
    return rows


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def values(made: Made) -> dict[str, float]:
    return {name: round(metric["value"], 3) for name, metric in made["metrics"].items()}


# -- the whole way ----------------------------------------------------------------------------------------------------


def test_recorded_completions_are_scored_paired_and_measured(data: Callable[..., Made], tmp_path: Path) -> None:
    # by hand: prompt 1 has two right of four (the vote is right, the best reward is not), 2 is all right, 3 all wrong
    rows = [
        {
            "query": "1?", "gold": "a", "response": ["A", "B", "C", "A!"], "pred": ["a", "b", "c", "a"],
            "score": [True, False, False, True], "pred_score": [[0.5], [0.9], [0.1], [0.4]],
        },
        {"query": "2?", "gold": "b", "response": list("abcd"), "pred": ["b"] * 4, "score": [1] * 4, "pred_score": [1, 2, 3, 4]},
        {"query": "3?", "gold": "c", "response": list("abcd"), "pred": list("xyxz"), "score": [0] * 4, "pred_score": [1] * 4},
    ]  # fmt: skip
    given = ("--prompts", jsonl(tmp_path / "p.jsonl", rows), "--map", "prompt=query,completion=response,answer=gold")
    made = data(RECIPE, *given)
    assert values(made) == {
        "characters": round(13 / 12, 3), "pass@1": 0.5, "pass@4": round(2 / 3, 3), "mixed": round(1 / 3, 3),
        "majority@4": round(2 / 3, 3), "best@4/reward_model": round(1 / 3, 3), "best@4/reward": round(1 / 3, 3),
    }  # fmt: skip
    completions = {r["completion_id"]: r for r in table(made, "generate", "completions.parquet", tables.COMPLETIONS)}
    pairs = [
        (completions[pair["chosen_id"]]["text"], completions[pair["rejected_id"]]["text"], pair["margin"])
        for pair in table(made, "pair", "pairs.parquet", tables.PAIRS)
    ]
    assert pairs == [("A", "B", 0.5 - 0.9), ("A!", "C", 0.4 - 0.1)]
    for row in completions.values():  # what the file does not say is not made up
        assert [row[name] for name in ("token_ids", "logprobs", "seed", "finish_reason")] == [None] * 4
        assert row["engine"] == "recorded"
    gaps = [len(chosen) - len(rejected) for chosen, rejected, _ in pairs]
    assert (made["chosen"]["length_gap"], made["chosen"]["length_unit"]) == (sum(gaps) / len(gaps), "characters")
    again = data(RECIPE, *given)
    assert again["artifacts"] == made["artifacts"]


def test_completions_may_stand_in_a_file_of_their_own(data: Callable[..., Made], tmp_path: Path) -> None:
    # a row per completion, in any order; those of prompts nobody asked for are left out and counted
    prompts = jsonl(tmp_path / "p.jsonl", [{"prompt": f"{i}?", "answer": i} for i in range(3)])
    rows = [{"prompt": f"{i}?", "completion": f"{i % 2}", "score": 1, "pred_score": i} for i in (2, 0, 2, 7)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    made = data(RECIPE.replace(', answer = "pred"', ""), "--prompts", prompts, "--completions", tmp_path / "c.parquet")
    assert made["completions"] == {"prompts": 3, "prompts_without": 1, "completions": 3, "of_other_prompts": 1}
    assert "majority@1" not in made["metrics"]  # nobody said which answer a completion gives


def test_preferences_are_pairs_as_they_are(data: Callable[..., Made], tmp_path: Path) -> None:
    # chosen and rejected columns, as text or as conversations; two pairs of one prompt are not mixed, equal texts are no pair
    user = {"role": "user", "content": "2?"}
    rows = [
        {"prompt": "1?", "chosen": "good", "rejected": "bad"},
        {"prompt": "1?", "chosen": "fine", "rejected": "worse"},
        {"prompt": "1?", "chosen": "same", "rejected": "same"},
        {
            "chosen": [user, {"role": "assistant", "content": "yes"}],
            "rejected": [user, {"role": "assistant", "content": "no"}],
        },
    ]
    made = data(PREFERENCES, "--prompts", jsonl(tmp_path / "p.jsonl", rows))
    completions = {r["completion_id"]: r["text"] for r in table(made, "generate", "completions.parquet", tables.COMPLETIONS)}
    pairs = table(made, "pair", "pairs.parquet", tables.PAIRS)
    assert {(completions[p["chosen_id"]], completions[p["rejected_id"]]) for p in pairs} == {
        ("good", "bad"),
        ("fine", "worse"),
        ("yes", "no"),
    }
    assert {p["margin"] for p in pairs} == {1.0}


def test_a_campaign_trains_on_recorded_completions(
    ratchet: Callable[..., int], home: Path, tmp_path: Path, known_store: Path
) -> None:
    # the same engine in a campaign: what was recorded is paired and trained on, the checkpoint is measured by sampling it; a
    # judge, a mitigation and the bias ledger go with it, whose probe is sampled too
    import shutil

    from tests.micro import SETS

    shutil.copytree(known_store, home / "store")
    world = World(_world_seed())
    world.seed_set(60)
    problems = [p for split in (40, 20, 8, 64) for p in world.mixed(split)][-64:]
    rows = [{"prompt": p.prompt, "completion": [p.solution, f"#{p.a}"]} for p in problems]
    sets = [
        *SETS,
        "rounds=1",
        "hardware.prefect=false",
        "generate.engine=recorded",
        "generate.path=" + str(jsonl(tmp_path / "c.jsonl", rows)),
        'score=[{scorer="exact_match", settings={after="#"}}, {scorer="mean_logprob", weight=0.1}]',
        'mitigate=[{mitigation="cap_copies"}]',
        "probe.samples=4",
        "probe.baseline=1",
        'probe.features=["tokens", "kl_base"]',
    ]
    sets = [item for item in sets if not item.startswith('score=[{scorer="tests.micro')]
    given = [part for item in sets for part in ("--set", item)]
    assert ratchet("run", "tiny_dpo", "--name", "offline", "--home", home, *given) == 0
    first, last = Campaign.open(home, "offline").rounds()
    assert last.facts["pairs"] == last.facts["prompts"] == 32
    assert last.checkpoint != first.checkpoint
    assert last.metrics["accuracy"].n == 40
    assert last.metrics["judge/mean_logprob/auroc"].n == 64
    assert last.metrics["bias/tokens/pressure"].value is None  # nobody knows the tokens of what was recorded
    assert last.metrics["bias/tokens/step"].n == 8  # and everybody those of the probe
    (tmp_path / "c.jsonl").unlink()  # it was copied when the campaign began
    assert ratchet("run", "tiny_dpo", "--name", "offline", "--home", home, *given) == 0


def _world_seed() -> int:
    from data.store.store import derive_seed

    return derive_seed(0, "world", 0)


# -- real outputs -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not VERIFIED.exists(), reason="needs ../shared/data/verified_outputs (100 MATH prompts x 8 real samples)")
def test_verified_outputs(data: Callable[..., Made]) -> None:
    # published figures come out: pass@1 .910, pass@8 .960, best of 8 by their reward model .940, majority of 8 .930, and the
    # pairs are those of the ten prompts with right and wrong samples
    ours = '[[score]]\nscorer = "math_equivalence"\nweight = 0.0\n'
    made = data(RECIPE + ours, "--prompts", VERIFIED, "--map", "prompt=query,completion=response,answer=gt")
    got = values(made)
    assert (got["pass@1"], got["pass@8"], got["best@8/reward_model"], got["majority@8"]) == (0.91, 0.96, 0.94, 0.93)
    assert got["mixed"] == 0.1
    assert made["metrics"]["agreement/math_equivalence"]["value"] == 799 / 800  # one verdict of theirs is not ours
    raw = [json.loads(line) for line in gzip.decompress(VERIFIED.read_bytes()).splitlines()]
    mixed = {tables.prompt_id([{"role": "user", "content": r["query"]}]): r for r in raw if len(set(r["score"])) == 2}
    pairs = table(made, "pair", "pairs.parquet", tables.PAIRS)
    texts = {row["completion_id"]: row["text"] for row in table(made, "generate", "completions.parquet", tables.COMPLETIONS)}
    assert len(mixed) == 10
    assert {pair["prompt_id"] for pair in pairs} == mixed.keys()
    for pair in pairs:
        record = mixed[pair["prompt_id"]]
        side = dict(zip(record["response"], record["score"], strict=True))
        assert (side[texts[pair["chosen_id"]]], side[texts[pair["rejected_id"]]]) == (True, False)


@pytest.mark.skipif(not GSM8K.exists(), reason="needs ../shared/data/gsm8k (400 real problems with the verdicts of 4 systems)")
@pytest.mark.parametrize("system", SYSTEMS)
def test_gsm8k_example_outputs(data: Callable[..., Made], system: str) -> None:
    # our verifier agrees with every published verdict on 4 x 400 real outputs
    recipe = f"""
[prompts]
source = "file"
answer_after = "A:"
[[score]]
scorer = "math_equivalence"
[[score]]
scorer = "imported"
name = "theirs"
settings = {{ column = "{system}.is_correct" }}
[select]
selector = "all_correct"
"""
    columns = f"prompt=question,answer=ground_truth,completion={system}.solution"
    made = data(recipe, "--prompts", GSM8K, "--map", columns)
    surely = made["metrics"]["agreement/theirs"].pop("low")
    assert made["metrics"]["agreement/theirs"] == {"value": 1.0, "high": 1.0, "n": 400, "split": "rounds"}
    assert surely == pytest.approx(0.025 ** (1 / 400))  # Clopper and Pearson's lower end where all agree


# -- reading ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.lists(st.lists(st.tuples(st.text(max_size=3), st.integers(0, 9)), max_size=4), max_size=4))
def test_a_list_column_is_n_rows(groups: list[list[tuple[str, int]]]) -> None:
    # n samples in one row, and a row per sample, are the same completions with the same values beside them
    plain = Prompts(map=Columns(completion="out"))
    for group in groups:
        record = {"prompt": "p", "out": [text for text, _ in group], "worth": [w for _, w in group], "all": "x"}
        together = records.completions_of(plain, record, "row 1")
        apart = [
            found
            for text, worth in group
            for found in records.completions_of(plain, {"prompt": "p", "out": text, "worth": worth, "all": "x"}, "row 1")
        ]
        assert together == apart


def test_a_conversation_ends_with_a_completion() -> None:
    # the prompt is everything before the assistant's last turn; a system column comes first
    talk = [{"role": role, "content": text} for role, text in (("user", "1+1?"), ("assistant", "2"), ("user", "sure?"))]
    record = {"messages": [*talk, {"role": "assistant", "content": "yes"}], "rules": "Be brief."}
    plain = Prompts(map=Columns(system="rules"))
    assert records.messages_of(plain, record, "row 1") == [{"role": "system", "content": "Be brief."}, *talk]
    assert [found.text for found in records.completions_of(plain, record, "row 1")] == ["yes"]


def test_a_finish_reason_is_read_not_invented() -> None:
    # one per completion, one for all, or unknown
    found = records.completions_of(
        Prompts(), {"prompt": "p", "completion": ["a", "b"], "finish_reason": ["stop", "length"]}, ""
    )
    assert [item.finish_reason for item in found] == ["stop", "length"]
    found = records.completions_of(Prompts(), {"prompt": "p", "completion": ["a", "b"], "finish_reason": "stop"}, "")
    assert [item.finish_reason for item in found] == ["stop", "stop"]
    assert records.completions_of(Prompts(), {"prompt": "p", "completion": "a"}, "")[0].finish_reason is None


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (
            {"prompt": "p", "text": "x"},
            "expected completions in a column 'completion' .*, found prompt, text; set prompts.map.comp",
        ),
        ({"prompt": "p", "completion": [1]}, "column 'completion': expected a completion as text, found 1"),
        ({"prompt": "p", "completion": None}, "column 'completion': expected a completion as text, found None"),
        (
            {"prompt": "p", "completion": "x", "finish_reason": 1},
            "column 'finish_reason': expected a finish reason as text, found 1",
        ),
        ({"prompt": "p", "chosen": "x", "rejected": {}}, "column 'rejected': expected a completion as text"),
    ],
)
def test_a_row_without_a_completion_is_named(record: dict[str, Any], says: str) -> None:
    # the error names the row, what was expected and found, and which setting to change
    with pytest.raises(PromptsError, match=f"^o.jsonl: row 7: {says}"):
        records.completions_of(Prompts(), record, "o.jsonl: row 7")


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "recipe", "more", "says"),
    [
        ("data", RECIPE, ["--map", "completion"], "--map completion: expected role=column"),
        ("data", RECIPE, ["--map", "completoin=x"], "did you mean 'completion'"),
        ("data", RECIPE, ["--map", "completion=nope"], "expected column 'nope', found prompt, completion"),
        ("data", RECIPE, [], "ScorerFailed: .*expected column 'score' in the completion's record, found"),
        ("data", UNPREFERRED, [], "as_recorded: expected completions with recorded preferences, found some without"),
        ("data", RECIPE, ["--completions", "other.jsonl"], "found 1 recorded completions that answer none of them"),
        ("data", "tiny_control", [], "add \\[select\\] or \\[pair\\]"),
        ("data", "tiny_raft", ["--set", "prompts.source=addition"], "needs a file of completions: set generate.path"),
        ("run", RECIPE, ["--set", "generate.engine=recorded"], "pass --model DIR, or use `ratchet data` without one"),
        ("run", RECIPE, ["--set", "generate.engine=recorded", "--set", "model.path=m"], "put a verifier first"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(
    ratchet: Callable[..., int], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], command: str, recipe: str, more: list[str], says: str,
) -> None:  # fmt: skip
    # wrong columns, wrong recipe, a file of other prompts: what was expected, what was found, what to do
    import re

    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text(recipe)
    jsonl(tmp_path / "p.jsonl", [{"prompt": f"{i}?", "completion": "x"} for i in range(500)])
    jsonl(tmp_path / "other.jsonl", [{"prompt": "else", "completion": "x"}])
    source = recipe if recipe in ("tiny_control", "tiny_raft") else "recipe.toml"
    assert ratchet(command, source, "--prompts", "p.jsonl", "--home", home, *more) in (1, 2)
    error = capsys.readouterr().err
    assert re.search(says, error), error
    assert "Traceback" not in error
