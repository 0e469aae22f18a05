"""What gold touches: where a recipe keeps verdicts out of training, nothing chosen depends on them. And who verifies."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data.errors import PartError
from data.labels import Label
from data.recipe import recipe as recipes
from data.recipe.recipe import Recipe
from data.recipe.settings import Hardware
from data.rows import tables
from data.store.campaign import Campaign
from data.store.store import Artifact
from flows.commands.check import gold_of
from flows.commands.part_rules import check_parts
from flows.commands.report import gold_line
from flows.round import gold
from flows.round.stages import Stages
from registry.projection import verdict_tags
from tasks.choose import mitigations
from tasks.prompts.curators import PassRate
from tasks.run import parts
from tasks.run.work import Work
from tasks.score.scorers import Score
from tests.micro import SETS
from tests.test_recipe import load_shipped

Row = dict[str, Any]
Verdicts = Mapping[str, float | None]
SETTINGS: dict[str, Row] = {  # of the parts that cannot do without
    "all_over_margin": {"minimum_margin": 0.25},
    "rejection_sampled": {"beta": 0.5, "count": 2},
    "rejection_sampling": {"beta": 0.5, "count": 2},
    "top_share": {"share": 0.3},
    "residualised": {"features": ["words"]},
    "reject_overlong": {"tokens": 25},
    "style_balanced": {"feature": "words"},
    "agreed": {"one": "judge", "other": "second"},
    "pass_rate_band": {"low": 0.2, "high": 0.8},
    "hard_first": {"share": 0.5},
    "no_near_duplicates": {"likeness": 0.8},
}
CHOOSERS = [(family, name) for family in ("selectors", "pairers") for name in parts.public(family)]
NEED = {"all_correct", "shortest_correct", "diverse_correct", "labelled", "right_vs_wrong", "longest_shared_prefix"}
USE = {"best_vs_worst", "all_over_margin", "best_vs_base", "prompt_contrast"}
BY_ORIGIN = ("given_vs_sample", "prompt_contrast", "best_vs_base")
PROMPTS, SAMPLES, RATE = 300, 8, 0.3


# -- a pool of completions, and the stages that choose ---------------------------------------------------------------------
@dataclass(frozen=True)
class Pool:
    completions: list[Row]
    verdicts: dict[str, float]
    judge: dict[str, float]
    second: dict[str, float]
    origins: dict[str, str]

    def with_verdicts(self, seed: int) -> dict[str, float]:
        """Verdicts of a verifier that knows nothing."""
        draw = random.Random(f"verdicts/{seed}")
        return {key: float(draw.random() < 0.5) for key in self.verdicts}


def pool(seed: int, prompts: int = PROMPTS) -> Pool:
    """Texts of a few steps and of any length, right at random; two judges that know nothing."""
    draw = random.Random(seed)
    rows: list[Row] = []
    origins: dict[str, str] = {}
    for place in range(prompts * SAMPLES):
        prompt, sample = f"p{place // SAMPLES:05d}", place % SAMPLES
        steps = [draw.choice("ab") + " word" * draw.randint(0, 3) for _ in range(3)]
        row: Row = {"completion_id": f"{prompt}-{sample}", "prompt_id": prompt, "sample": sample}
        row |= {"text": "\n".join([*steps, str(draw.random())]), "token_ids": [1] * draw.randint(3, 30), "logprobs": None}
        rows.append(row | {"finish_reason": "stop", "seed": None, "engine": "recorded"})
        origins[row["completion_id"]] = ("policy", "given", "base", "contrast")[sample % 4]
    judge, second = ({key: draw.random() for key in origins} for _ in range(2))
    return Pool(rows, {key: float(draw.random() < RATE) for key in origins}, judge, second, origins)


def recipe_of(chooser: tuple[str, str], permitted: str, *more: recipes.Setting) -> Recipe:
    """A verifier without weight beside two judges, and the part that chooses."""
    family, name = chooser
    judges = [{"scorer": "tests.test_gold:likes", "name": label} for label in ("judge", "second")]
    score = [{"scorer": "tests.micro:ends_even", "name": "gold", "weight": 0.0}, *judges]
    table, key = ("pair", "pairer") if family == "pairers" else ("select", "selector")
    loss = {"labelled": "kto", "ranked": "rrhf"}.get(name, "sigmoid" if family == "pairers" else "nll")
    sets: list[recipes.Setting] = [*SETS, ("score", score), ("select", False), ("pair", False), ("loss", {"name": loss})]
    sets += [("train.replay", False), ("pool.base", name in BY_ORIGIN), ("gold", permitted)]
    return recipes.load("tiny_raft", [*sets, (table, {key: name, "settings": SETTINGS.get(name, {})}), *more])


def likes(prompts: Sequence[Row], completions: Sequence[Row]) -> list[Score]:
    """A judge; its scores in these tests are written by hand."""
    return [Score(0.5)] * len(completions)


def chosen(folder: Path, recipe: Recipe, made: Pool, verdicts: Verdicts) -> Path:
    """The folder that `pair` or `select` writes, called as a round calls it."""
    calls: list[str] = []

    def put(name: str, file: str, schema: Any, rows: Sequence[Row]) -> Artifact:
        (folder / name).mkdir(parents=True, exist_ok=True)
        tables.write(tables.from_rows(rows, schema), schema, folder / name / file)
        return Artifact(name, name, name, folder / name)

    def scored(name: str, values: Verdicts) -> Artifact:
        rows = [{"completion_id": r["completion_id"], "prompt_id": r["prompt_id"]} for r in made.completions]
        rows = [row | {"value": values[row["completion_id"]], "status": "ok", "detail": None} for row in rows]
        return put(name, "scores.parquet", tables.SCORES, rows)

    def call(label: Label, stage: Any, settings: Any, inputs: Mapping[str, Any], seed: int, around: Any) -> Artifact:
        calls.append(label.text)
        out, scratch = folder / f"out-{len(calls)}", folder / "scratch"
        out.mkdir()
        scratch.mkdir(exist_ok=True)
        stage(Work("key", settings, {name: one.path for name, one in inputs.items()}, seed, out, scratch, Hardware()))
        return Artifact("key", "digest", label.text, out)

    completions = put("completions", "completions.parquet", tables.COMPLETIONS, made.completions)
    ids = [row["completion_id"] for row in made.completions]
    put("completions", "origins.parquet", tables.ORIGINS, [{"completion_id": i, "origin": made.origins[i]} for i in ids])
    record = json.dumps({"preferred": True})
    put("completions", "recorded.parquet", tables.RECORDED, [{"completion_id": i, "record": record} for i in ids])
    values = {"gold": verdicts, "judge": made.judge, "second": made.second}
    scores = {f"score/{name}": scored(name, each) for name, each in values.items()}
    stages = Stages(Campaign(folder, "gold", recipe), 1, call)
    (result,) = stages.choose(completions, stages.reward(scores), scores).values()
    return result.path


def table_of(folder: Path) -> Path:
    (file,) = folder.glob("*.parquet")
    return file


# -- what is chosen --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("chooser", CHOOSERS, ids=lambda chooser: chooser[1])
def test_a_verifier_that_only_gates_changes_nothing_that_is_chosen(chooser: tuple[str, str], tmp_path: Path) -> None:
    # Claim: with gold = "gate" another verifier leaves the chosen rows as they are, byte by byte, for whatever check accepts;
    # what it refuses is what cannot choose without verdicts.
    recipe, made = recipe_of(chooser, "gate"), pool(1)
    if chooser[1] in NEED:
        with pytest.raises(PartError, match=rf"gold = 'gate' keeps verdicts out of the training, but \w+ '{chooser[1]}' reads"):
            check_parts(recipe)
        with pytest.raises(PartError, match="keeps verdicts out of the training"):
            chosen(tmp_path / "refused", recipe, made, made.verdicts)
        return
    check_parts(recipe)
    tables_made = [
        table_of(chosen(tmp_path / str(seed), recipe, made, made.with_verdicts(seed) if seed else made.verdicts))
        for seed in range(3)
    ]
    assert pq.read_table(tables_made[0]).num_rows > 50
    assert len({file.read_bytes() for file in tables_made}) == 1


@pytest.mark.parametrize("name", parts.public("mitigations"))
def test_mitigations_neither(name: str, tmp_path: Path) -> None:
    # Claim: the same behind every mitigation; one that is given the verifier as a ranking is refused.
    entry = {"mitigation": name, "settings": SETTINGS.get(name, {})}
    recipe, made = recipe_of(("pairers", "best_vs_worst"), "gate", ("mitigate", [entry])), pool(2)
    check_parts(recipe)
    files = [
        table_of(chosen(tmp_path / str(seed), recipe, made, made.with_verdicts(seed) if seed else made.verdicts))
        for seed in range(3)
    ]
    assert pq.read_table(files[0]).num_rows > 20
    assert len({file.read_bytes() for file in files}) == 1
    if name == "agreed":
        entry["settings"] = {"one": "gold", "other": "judge"}
        with pytest.raises(PartError, match="mitigation 'agreed' reads them"):
            check_parts(recipe_of(("pairers", "best_vs_worst"), "gate", ("mitigate", [entry])))


@pytest.mark.parametrize("name", sorted(USE))
@pytest.mark.parametrize("permitted", ["gate", "train"])
def test_a_judge_that_knows_nothing_chooses_right_as_often_as_the_pool(name: str, permitted: str, tmp_path: Path) -> None:
    # Claim: the verifier of weight 0 does not help a random judge; where the recipe permits it no wrong text is chosen.
    made = pool(3, prompts=1500)
    folder = chosen(tmp_path, recipe_of(("pairers", name), permitted), made, made.verdicts)
    ids = [row["chosen_id"] for row in tables.read(table_of(folder), tables.PAIRS).to_pylist()]
    facts, right = json.loads((folder / "facts.json").read_text()), [made.verdicts[i] for i in ids]
    if permitted == "train":
        assert min(right) == 1.0
        return
    distinct = {i.partition("-")[0]: made.verdicts[i] for i in reversed(ids)}  # one per prompt: these are independent
    assert len(distinct) > 1000
    assert abs(sum(distinct.values()) / len(distinct) - RATE) < 3.3 * math.sqrt(RATE * (1 - RATE) / len(distinct))
    assert facts["wrong_chosen"] == right.count(0.0) > 0  # the facts still see the verdicts


def test_a_reward_that_holds_gold_is_kept_from_parts_too(tmp_path: Path) -> None:
    # Claim: SPIN's pairs do not depend on a reward, so the verifier may keep its weight; not even the margins then know it.
    weights: recipes.Setting = ("score.0.weight", 1.0)
    recipe, made = recipe_of(("pairers", "given_vs_sample"), "gate", weights), pool(4)
    check_parts(recipe)
    folders = [chosen(tmp_path / str(seed), recipe, made, made.with_verdicts(seed)) for seed in (1, 2)]
    assert table_of(folders[0]).read_bytes() == table_of(folders[1]).read_bytes()
    with pytest.raises(PartError, match="the weight of 'gold' reads them"):
        check_parts(recipe_of(("pairers", "best_vs_worst"), "gate", weights))
    offset: recipes.Setting = ("loss.offset", 1.0)
    with pytest.raises(PartError, match="the weight of 'gold' reads them"):
        check_parts(recipe_of(("pairers", "given_vs_sample"), "gate", weights, offset))


# -- what parts say about themselves ---------------------------------------------------------------------------------------
def called(chooser: tuple[str, str], made: Pool, verdicts: Verdicts, reward: Mapping[str, float | None]) -> list[Row]:
    family, name = chooser
    part = parts.configure(family, name, SETTINGS.get(name, {}), origins=made.origins)
    rows = [row | {"record": {"preferred": True}} for row in made.completions]
    found: list[Row] = part(rows, reward, {"gold": verdicts, "judge": made.judge})
    return [{key: value for key, value in row.items() if key != "margin"} for row in found]


@pytest.mark.parametrize("chooser", CHOOSERS, ids=lambda chooser: chooser[1])
def test_parts_that_choose_say_what_they_read(chooser: tuple[str, str]) -> None:
    # Claim: NEEDS_GOLD are those that choose nothing without verdicts, USES_GOLD those that only choose otherwise, and
    # IGNORES_REWARD those that choose the same by any reward. All others do not react to verdicts.
    made, unknown = pool(5), dict.fromkeys(pool(5).verdicts)
    by_gold, by_other = (called(chooser, made, v, made.judge) for v in (made.verdicts, made.with_verdicts(1)))
    without = called(chooser, made, unknown, made.judge)
    needs, uses, ignores = (parts.lists(a, *chooser) for a in ("NEEDS_GOLD", "USES_GOLD", "IGNORES_REWARD"))
    assert (by_gold != by_other) == (needs or uses)
    assert (without == []) == needs
    assert (called(chooser, made, made.verdicts, made.second) == by_gold) == ignores
    assert (needs, uses) == (chooser[1] in NEED, chooser[1] in USE)


@pytest.mark.parametrize("name", parts.public("mitigations"))
def test_mitigations_say_whether_they_read_verdicts(name: str) -> None:
    # Claim: only those in USES_GOLD react to another verifier. The reward follows the length: there is a style to remove.
    made = pool(6)
    of_length = {row["completion_id"]: len(row["text"].split()) + made.judge[row["completion_id"]] for row in made.completions}
    pairs = called(("pairers", "best_vs_worst"), made, dict.fromkeys(made.verdicts), made.judge)
    entry = {"mitigation": name, "settings": SETTINGS.get(name, {})}
    results = []
    for verdicts in (made.verdicts, made.with_verdicts(1)):
        scores = {"gold": verdicts, "judge": made.judge, "second": made.second}
        kinds = {"rewards": of_length, "chosen": pairs}
        results.append([mitigations.apply(kind, [entry], data, made.completions, scores) for kind, data in kinds.items()])
    assert (results[0] != results[1]) == parts.lists("USES_GOLD", "mitigations", name)


@pytest.mark.parametrize("name", parts.public("curators"))
def test_curators_say_whether_they_read_gold(name: str) -> None:
    # Claim: those in NEEDS_GOLD, and no others, keep other prompts where pass rates or gold answers are others.
    draw = random.Random(7)
    prompts = [
        {"prompt_id": f"p{n}", "messages": [{"role": "user", "content": f"a question of {draw.random()}"}], "answer": "7"}
        for n in range(200)
    ]
    curator = parts.configure("curators", name, SETTINGS.get(name, {}), against=prompts[:20])

    def kept(answers: str) -> list[list[str]]:
        asked = [prompt | {"answer": draw.choice(answers)} for prompt in prompts]
        history = [{p["prompt_id"]: PassRate(draw.randint(0, 8), 8) for p in prompts} for _ in range(6)]
        return [[row["prompt_id"] for row in curator(asked, past)] for past in (history, history[:1])]

    first, again = kept("7A"), kept("7A")
    assert (first != again) == parts.lists("NEEDS_GOLD", "curators", name)
    recipe = recipe_of(("selectors", "best_of_n"), "gate", ("curate", [{"curator": name, "settings": SETTINGS.get(name, {})}]))
    if parts.lists("NEEDS_GOLD", "curators", name):
        with pytest.raises(PartError, match=f"out of the curriculum, but curator '{name}' reads them"):
            check_parts(recipe)
    else:
        check_parts(recipe)


# -- who verifies ----------------------------------------------------------------------------------------------------------
ANSWERS = {  # verifier -> two gold answers, and a text that is right for the first alone
    "exact_match": ("7", "8", "7"),
    "math_equivalence": ("7", "8", r"so \boxed{7}"),
    "countdown": ("24 from 3, 8, 1", "11 from 3, 8, 1", "<answer>3*8</answer>"),
    "knights_knaves": ("Zoey is a knight", "Zoey is a knave", "<answer>Zoey is a knight</answer>"),
    "multiple_choice": ("B", "C", "The answer is B"),
    "normalised_text": ("the cat", "a dog", "Cat."),
    "quantity": ("5 km", "6 km", "5000 m"),
}
OTHERS: dict[str, Row] = {  # of the scorers that need no model and no verdicts
    "format": {"pattern": r".*\d.*"},
    "ensemble": {"members": [{"scorer": "exact_match"}, {"scorer": "format", "settings": {"pattern": r".*\d.*"}}]},
    "soft_overlong": {"max_tokens": 12, "cache": 8},
}
NEEDED: dict[str, Row] = {  # of the others
    "imported": {"column": "x"},
    "cosine_length": {"max_tokens": 9},
    "efficient_length": {"alpha": 0.1},
    "judge": {"template": "additive5"},
}
TEXTS = ("7", "8", r"so \boxed{7}", "seven семь", "7 7 7 7 7 7 7 7 7 7 7 7")


def scores_of(name: str, answer: str, texts: Sequence[str], settings: Row) -> list[float | None]:
    """Every text's score beside the others, as samples of one prompt."""
    scorer = parts.configure("scorers", name, settings, workers=1)
    prompt = {"prompt_id": "p", "messages": [{"role": "user", "content": "?"}], "answer": answer}
    rows = [
        {"completion_id": f"p{n}", "prompt_id": "p", "sample": n, "text": text, "finish_reason": "stop"}
        | {"token_ids": list(text.encode())}
        for n, text in enumerate(texts)
    ]
    return [score.value for score in scorer([prompt] * len(rows), rows)]


def judges_right_and_wrong(name: str, answers: tuple[str, str], texts: Sequence[str], settings: Row) -> bool:
    """Only 1, 0 and None; the same alone as among others; and another gold answer makes another verdict."""
    first, second = (scores_of(name, answer, texts, settings) for answer in answers)
    alone = [scores_of(name, answers[0], [text], settings)[0] for text in texts]
    return {*first, *second} <= {0.0, 1.0, None} and alone == first and first != second


@pytest.mark.parametrize("name", [n for n in parts.public("scorers") if n != "imported"])
def test_a_scorer_says_whether_it_verifies(name: str) -> None:
    # Claim: verifiers, and no others, judge each text by itself as right or wrong by the gold answer. A scorer that needs a
    # model or verdicts is none. `imported` is as good as its column, and `check` has a rule of its own about it.
    if parts.needs("scorers", name) & {"checkpoint", "verdicts", "rollouts"}:
        assert not parts.verifies(name)
        return
    one, other, text = ANSWERS.get(name, ("7", "8", "7"))
    texts = [text, *TEXTS]
    assert judges_right_and_wrong(name, (one, other), texts, OTHERS.get(name, {})) == parts.verifies(name)
    assert parts.verifies(name) == (name in ANSWERS)
    if name in ANSWERS:
        assert (scores_of(name, one, [text], {}), scores_of(name, other, [text], {})) == ([1.0], [0.0])


@pytest.mark.parametrize("name", [n for n in parts.public("scorers") if n not in ANSWERS])
def test_what_does_not_verify_is_refused_as_the_first_scorer(name: str) -> None:
    # Claim: check refuses it there, also in a suite; with `votes` first the share of one sample, 1.0, would count as right.
    entry = {"scorer": name, "settings": (OTHERS | NEEDED).get(name, {})}
    with pytest.raises(PartError, match=r"put (one of these|a verifier|the verifier) (there|first)"):
        check_parts(recipes.load("tiny_raft", [*SETS, ("score", [entry])]))
    with pytest.raises(PartError, match="expected a verifier as the score of suite 'far'"):
        check_parts(recipes.load("tiny_raft", [*SETS, ("suites", [{"name": "far", "path": "far.jsonl", "score": entry}])]))


OWN = """
from tasks.score.scorers import Score
def graded(prompts, completions):
    return [Score(0.3) for _ in completions]
def checked(prompts, completions):
    return [Score(float(p["answer"] in c["text"])) for p, c in zip(prompts, completions)]
"""


def test_a_users_own_scorer_verifies_unless_its_file_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: without VERIFIERS in the file every plain scorer may be first; with it only those that it names, and these hold
    # gold where they have a weight.
    (tmp_path / "silent_file.py").write_text(OWN)
    (tmp_path / "telling_file.py").write_text(OWN + 'VERIFIERS = ("checked",)\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [parts.verifies(f"silent_file:{name}") for name in ("graded", "checked")] == [True, True]
    assert [parts.verifies(f"telling_file:{name}") for name in ("graded", "checked")] == [False, True]
    assert not parts.verifies("tests.test_score:Echo")  # it takes verdicts

    def permitted(second: str) -> str:
        score = [{"scorer": "exact_match", "weight": 0.0}, {"scorer": second}]
        return gold.permission(recipes.load("tiny_raft", [*SETS, ("score", score)]))

    assert [permitted(f"telling_file:{name}") for name in ("graded", "checked")] == ["gate", "train"]


# -- what recipes and rounds say -------------------------------------------------------------------------------------------
TOUCHED = {  # by the methods' papers
    **dict.fromkeys(recipes.shipped(), "training, gate"),
    **dict.fromkeys(("scpo", "self_rewarding", "spin"), "gate"),
    "curriculum": "training, curriculum, gate",
    "tiny_control": "nothing",
}


@pytest.mark.parametrize("name", recipes.shipped())
def test_what_gold_touches_in_each_shipped_recipe(name: str) -> None:
    # Claim: RAFT's, DPO's and RL's data are chosen by verdicts; votes, the policy's own judgements and given answers are not.
    recipe = load_shipped(name)
    for number in range(1, recipe.rounds + 1):
        assert gold.in_words(recipe.at_round(number)) == TOUCHED[name]


HOLDERS: dict[str, Row] = {  # scores that hold gold, beside a verifier of weight 0
    "efficient_length": {"settings": {"alpha": 0.2}},
    "step_rollouts": {"checkpoint": "policy"},
    "reward_model": {"checkpoint": "trained"},
    "ensemble": {"settings": {"members": [{"scorer": "exact_match"}, {"scorer": "format", "settings": {"pattern": "x"}}]}},
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_weight_on_what_stands_on_verdicts_must_be_permitted(name: str) -> None:
    # Claim: verdicts reach the reward by other ways than the verifier's weight; check names the score.
    score = [{"scorer": "exact_match", "weight": 0.0}, {"scorer": name, **HOLDERS[name]}]
    sets: list[recipes.Setting] = [*SETS, ("score", score), ("select", {"selector": "best_of_n"}), ("train.replay", False)]
    with pytest.raises(PartError, match=f"no verifier has a weight, so gold = 'gate', .* the weight of '{name}' reads them"):
        check_parts(recipes.load("tiny_raft", sets))
    check_parts(recipes.load("tiny_raft", [*sets, "gold=train"]))
    without = [score[0], score[1] | {"weight": 0.0}, {"scorer": "votes"}]
    check_parts(recipes.load("tiny_raft", [*sets, ("score", without)]))


def test_never_leaves_no_gate() -> None:
    # Claim: gold = "never" is refused while the gate compares accuracies, and then touches nothing.
    judged = ("selectors", "best_of_n")
    with pytest.raises(PartError, match=r"out of the gate, but gate.rule = 'paired_interval' reads them; set gate.rule"):
        check_parts(recipe_of(judged, "never"))
    recipe = recipe_of(judged, "never", ("gate.rule", "always_promote"))
    check_parts(recipe)
    assert gold_of(recipe) == (["never"], {})


def kept(prompts: Sequence[Row], history: Sequence[Mapping[str, float]]) -> list[Row]:
    """A curator of a user's own, which says nothing about gold: with pass rates it would keep nothing."""
    return [] if history else list(prompts)


def test_a_campaign_says_what_gold_touched(
    run_micro: Callable[..., Campaign], ratchet: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    # Claim: the record, `show` and MLflow's tags say it; curators get no pass rates and the choice no verdicts.
    score = 'score=[{scorer="tests.micro:ends_even", weight=0.0}, {scorer="tests.judges:random_judge", name="judge"}]'
    sets = (score, 'pair={pairer="best_vs_worst"}', 'curate=[{curator="tests.test_gold:kept"}]', "train.minimum=1000")
    campaign = run_micro("tiny_dpo", *sets)
    start, first, second = campaign.rounds()
    assert [finished.facts["gold"] for finished in (start, first, second)] == ["nothing", "gate", "gate"]
    assert verdict_tags(second)["gold"] == "gate"
    inputs = {name: set(campaign.store.manifest(second.artifacts[name].key)["input_keys"]) for name in ("curate", "pair")}
    assert inputs["curate"] == {"prompts"}
    scores = {"score/judge", "watched/tests.micro:ends_even"}
    assert inputs["pair"] == {"completions", "reward", "prompts", "tokenizer", *scores}
    assert first.facts["wrong_chosen"] > 0
    assert gold_line(campaign) == "gold touched gate"
    assert ratchet("show", "micro", "--home", campaign.home) == 0
    assert "micro: gold touched gate\n" in capsys.readouterr().out


def test_check_says_what_gold_may_and_does_touch(ratchet: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    # Claim: the permission, the places, and what reads verdicts there.
    assert ratchet("check", "tiny_raft") == 0
    line = "gold        train: verdicts touch training (selector 'all_correct'); gate (gate.rule = 'paired_interval')\n"
    assert line in capsys.readouterr().out
    assert ratchet("check", "tiny_control", "--json") == 0
    assert json.loads(capsys.readouterr().out)["gold"] == {"may": ["train"], "touches": {}}
