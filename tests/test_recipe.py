from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.errors import RecipeError
from data.recipe import recipe as recipes
from data.recipe import rules
from data.recipe.dotted import flatten, parse_set, set_value
from data.recipe.loss import KINDS
from data.recipe.recipe import Recipe, build, differences, forked, load
from data.recipe.rules import FROZEN_AFTER_START, RULES

OWN = {"model.path": "/models/mine", "prompts.path": "/data/mine.jsonl"}
PAIRS = load("tiny_dpo")
WORD = st.from_regex(r"[a-z]{3,8}", fullmatch=True)
SCALAR = st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6)
SETTINGS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    WORD, SCALAR | st.lists(SCALAR, max_size=2) | st.just({}), max_size=3
)


def load_shipped(name: str, *sets: str) -> Recipe:
    values = tomllib.loads(recipes.shipped()[name].read_text())
    return load(name, sets, OWN if values["prompts"]["source"] == "file" else {})


def tables(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The dotted paths of the tables of a recipe, the recipe itself first; a part's settings are the part's own."""
    yield path
    for name, value in values.items():
        inner = f"{path}.{name}" if path else name
        if isinstance(value, dict) and name not in ("settings", "set", "terms"):
            yield from tables(value, inner)
        elif isinstance(value, list):
            for index, entry in enumerate(v for v in value if isinstance(v, dict)):
                yield from tables(entry, f"{inner}.{index}")


def refusal(*sets: str, recipe: str = "tiny_dpo") -> str:
    with pytest.raises(RecipeError) as caught:
        load_shipped(recipe, *sets)
    return str(caught.value)


# -- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes.shipped())
def test_every_shipped_recipe_loads(name: str) -> None:
    # each is valid in every one of its rounds, says what it is, and comes back from its own JSON unchanged
    recipe = load_shipped(name)
    assert recipe.description
    for number in range(recipe.rounds + 1):
        assert recipe.at_round(number) == recipe or recipe.at
    assert build(json.loads(json.dumps(recipe.plain())), "again") == recipe


@pytest.mark.parametrize("name", ["iterative_dpo", "raft"])
def test_recipes_for_ones_own_model_say_what_they_need(name: str) -> None:
    # without a model and prompts they cannot start; the message names the option
    with pytest.raises(RecipeError, match="pass --model DIR"):
        load(name)
    with pytest.raises(RecipeError, match="pass --prompts FILE"):
        load(name, overrides={"model.path": "/m"})


def test_a_recipe_that_is_not_there_suggests_one(tmp_path: Path) -> None:
    # a slip in the name, a missing file and a file that is not TOML each say so
    with pytest.raises(RecipeError, match=r"no recipe 'tiny_rft': expected one of .*did you mean 'tiny_raft'\?"):
        load("tiny_rft")
    with pytest.raises(RecipeError, match=r"a \.toml file that exists"):
        load(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("rounds = = 3")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("broken", "binary"):
        with pytest.raises(RecipeError, match=f"{name}.toml: expected TOML"):
            load(tmp_path / f"{name}.toml")


def test_a_file_of_ones_own_is_read_as_a_shipped_one(tmp_path: Path) -> None:
    # a copied recipe means the same as the shipped one
    path = tmp_path / "mine.toml"
    path.write_text(recipes.shipped()["tiny_raft"].read_text())
    assert load(path) == load(str(path)) == load("tiny_raft")


FREE = ("health.edits",)  # tables whose keys are the user's own


@pytest.mark.parametrize("path", [*(t for t in tables(load_shipped("tiny_raft").plain()) if t not in FREE), "pair", "at.0"])
def test_unknown_keys_are_refused_at_any_depth(path: str) -> None:
    # a typo never becomes a silent default: the key's place is named, and the closest known key of that place
    values = load_shipped("tiny_dpo" if path == "pair" else "tiny_raft").plain()
    values["at"] = [{"round": 1, "set": {}}]
    place: Any = values
    for step in path.split(".") if path else []:
        place = place[int(step) if isinstance(place, list) else step]
    known = next(iter(place))
    place[known + "x"] = 1
    with pytest.raises(RecipeError) as caught:
        build(values, "mine.toml")
    dotted = f"{path}.{known}x" if path else f"{known}x"
    assert str(caught.value).startswith(f"mine.toml: unknown key '{dotted}' (did you mean '{known}'?); known here: ")


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ("loss.beta=-1", "loss.beta: Input should be greater than or equal to 0, found -1"),
        ("loss.beta=fast", "loss.beta: Input should be a valid number, unable to parse string as a number, found 'fast'"),
        ("loss.beta=inf", "loss.beta: expected a finite number, found inf"),
        ("score.0.weight=nan", "score.0.weight: expected a finite number, found nan"),
        ("score.0.settings.x=-inf", "score.0.settings.x: expected a finite number, found -inf"),
        ("rounds=0", "rounds: Input should be greater than or equal to 1, found 0"),
        ("generate=3", "generate: Input should be a valid dictionary or instance of Generate, found 3"),
        ("loss.name=sigmoidd", f"loss: unknown loss 'sigmoidd' (did you mean 'sigmoid'?); expected one of {', '.join(KINDS)}"),
        ("train.schedule=cosinus", "train.schedule: Input should be 'cosine', 'linear' or 'constant', found 'cosinus'"),
        ("train.accumulate=5", "train: batch (32) must divide by accumulate (5)"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(item: str, says: str) -> None:
    # what was expected, what was found, where
    assert refusal(item) == f"{recipes.shipped()['tiny_dpo']}: {says}"


GRPO = ("pair=false", "loss={name='grpo'}")
SCORES = "score=[{scorer='a'}, {scorer='b'}]"
RECORDED = "generate.engine=recorded"

# rule -> a recipe and settings that break this rule and no other, and words of its message
BREAKS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "select_or_pair": ("tiny_dpo", ("select.selector=all_correct",), "expected one of them, not both"),
    "pair_needs_a_pair_loss": ("tiny_dpo", ("loss={name='nll'}",), "[pair] needs a pair loss, found loss.name = 'nll'"),
    "select_needs_a_loss_on_completions": (
        "tiny_raft",
        ("loss.name=ipo", "train.replay=false"),
        "loss.name = 'ipo' trains on pairs, found [select]; use [pair] instead",
    ),
    "offline_loss_needs_its_table": (
        "tiny_control",
        ("loss.name=kto", "train.replay=false"),
        "'kto' trains on labelled completions, found neither [select] nor [pair]; add a [select] table with labels",
    ),
    "something_to_train_on": ("tiny_control", ("train.replay=false",), "nothing to train on; add [select] or [pair]"),
    "online_batch_holds_whole_groups": ("tiny_dpo", (*GRPO, "generate.n=5"), "divides train.batch (32), found generate.n = 5"),
    "replay_needs_solutions": ("tiny_raft", ("prompts.seed=0",), "train.replay = true needs given solutions"),
    "replay_needs_nll": ("tiny_dpo", ("train.replay=true",), "needs loss.name = 'nll', found 'sigmoid'"),
    "validation_needs_rows": ("tiny_dpo", (*GRPO, "train.validation=0.2"), "has no rows before it samples; set it to 0"),
    "curate_needs_sampled_prompts": (
        "tiny_control",
        ("curate=[{curator='decontaminated'}]",),
        "chooses the prompts that a round samples, found neither [select] nor [pair] nor an online loss",
    ),
    "other_samplers_need_a_choice": (
        "tiny_dpo",
        (*GRPO, RECORDED, "generate.path=x"),
        "gives completions to choose from, but the online loss 'grpo' samples by itself",
    ),
    "given_pool_excludes_curate": (
        "tiny_dpo",
        ("pool.given=true", "curate=[{curator='decontaminated'}]"),
        "[[curate]] chooses among those of the rounds split; set one, not both",
    ),
    "given_pool_needs_solutions": (
        "tiny_dpo",
        ("pool.given=true", "prompts.seed=0"),
        "pool.given = true needs given solutions",
    ),
    "pool_and_mitigate_need_a_choice": ("tiny_control", ("pool.earlier=1",), "[[mitigate]] and [pool] change what"),
    "lengthen_needs_samples": ("tiny_dpo", (*GRPO, "generate.lengthen={limit=99}"), "have no such samples; remove it"),
    "recorded_pool_samples_nothing": (
        "tiny_dpo",
        (RECORDED, "generate.path=x", "pool.base=true"),
        "pool.base and pool.contrast sample a checkpoint",
    ),
    "servers_have_no_base": (
        "tiny_dpo",
        ("generate.engine=endpoint", "pool.base=true"),
        "does not have; set pool.base = false",
    ),
    "tiny_model_needs_addition": (
        "tiny_dpo",
        ("prompts.source=countdown",),
        "only knows addition, found prompts.source = 'cou",
    ),
    "file_source_needs_a_path": ("tiny_dpo", ("prompts.source=file", "model.path=m"), "pass --prompts FILE"),
    "recorded_needs_a_file": ("tiny_dpo", (RECORDED,), "needs a file of completions: set generate.path"),
    "gate_needs_held_out": ("tiny_dpo", ("prompts.held_out=0",), "found prompts.held_out = 0"),
    "scorer_is_needed": ("tiny_dpo", ("score=[]",), "expected at least one [[score]], found none"),
    "some_score_has_weight": ("tiny_dpo", ("score.0.weight=0",), "every [[score]] has weight 0"),
    "ensemble_needs_several_scores": ("tiny_dpo", ("reward.how=min",), "needs at least two [[score]] tables with a weight"),
    "normalise_is_for_sums": (
        "tiny_dpo",
        (SCORES, "reward.how=min", "reward.normalise=round"),
        "needs reward.how = 'sum', found",
    ),
    "online_reward_is_a_sum": ("tiny_dpo", (*GRPO, SCORES, "reward.how=min"), "found the online loss 'grpo'"),
    "score_names_differ": ("tiny_dpo", ("score=[{scorer='a'}, {scorer='b', name='a'}]",), "name of its own, found a, a"),
    "suite_names_differ": ("tiny_dpo", ("suites=[{name='s', path='x'}, {name='s', path='y'}]",), "name of its own, found s, s"),
    "kl_budget_needs_a_logged_kl": ("tiny_raft", ("gate.kl_budget=5",), "needs a loss that logs its KL to a reference"),
    "kl_budget_needs_the_previous_checkpoint": (
        "tiny_dpo",
        ("gate.kl_budget=5", "loss.reference=base"),
        "found 'base' and 'previous'",
    ),
    "challenge_and_neutral_turn_differ": (
        "tiny_dpo",
        ("probe.samples=2", "probe.counterfactuals=['challenge']", "probe.neutral='Are you sure?'"),
        "probe.challenge is compared with probe.neutral, found 'Are you sure?' for both",
    ),
    "numbers_are_finite": ("tiny_dpo", ("score.0.weight=inf",), "score.0.weight: expected a finite number, found inf"),
    "at_leaves_frozen_settings": ("tiny_dpo", ("at=[{round=2, set={seed=1}}]",), "'seed' cannot change between rounds"),
}


def test_every_rule_has_a_recipe_that_breaks_it() -> None:
    # a rule that is dropped, or added without a row above, is noticed
    assert list(BREAKS) == [rule.__name__ for rule in RULES]
    defined = [n for n, f in vars(rules).items() if inspect.isgeneratorfunction(f)]
    assert sorted(defined) == sorted(BREAKS)


@pytest.mark.parametrize("rule", BREAKS)
def test_a_rule_broken_alone_gives_its_one_message(rule: str) -> None:
    # settings that cannot both be meant stop before anything runs, with one message and no traceback in it
    recipe, sets, says = BREAKS[rule]
    message = refusal(*sets, recipe=recipe)
    assert says in message
    assert "\n" not in message
    assert "error" not in message


@pytest.mark.parametrize(
    ("recipe", "sets", "says"),
    [
        ("tiny_dpo", ["loss.name=kto", "loss.terms={}"], "[pair] needs a pair loss, found loss.name = 'kto'"),
        ("tiny_raft", ["loss.name=grpo", "train.replay=false"], "'grpo' trains online, found [select]; remove [select]"),
        ("tiny_control", ["loss.name=dpo", "train.replay=false"], "unknown loss 'dpo'"),
        ("tiny_control", ["loss.name=ipo", "train.replay=false"], "neither [select] nor [pair]; add a [pair] table"),
        ("tiny_control", ["loss.name=rrhf", "train.replay=false"], "add a [select] table with ranks"),
        ("tiny_dpo", [*GRPO, "train.batch=1", "generate.n=1"], "found generate.n = 1"),
        ("tiny_dpo", [RECORDED, "generate.path=x", "pool.contrast='{prompt} badly'"], "sample a checkpoint"),
        ("tiny_dpo", [RECORDED, "generate.path=x", "generate.lengthen={limit=99}"], "have no such samples"),
        ("tiny_control", ["mitigate=[{mitigation='length_penalty'}]"], "[[mitigate]] and [pool] change what"),
        ("tiny_dpo", [*GRPO, "pool.earlier=1"], "[[mitigate]] and [pool] change what"),
        ("tiny_dpo", ["gate.kl_budget=5", "train.start_from=best"], "found 'previous' and 'best'"),
        ("tiny_dpo", [*GRPO, "loss.beta=0", "gate.kl_budget=5"], "logs its KL"),
        ("tiny_raft", ["score=[{scorer='a'}, {scorer='a', weight=2}]"], "found a, a"),
        ("tiny_dpo", [*GRPO, "reward.normalise=prompt"], "reward.normalise = 'prompt' needs an offline loss"),
        ("tiny_dpo", [SCORES, "reward.how=pessimistic", "reward.penalty=2"], "less than or equal to 1"),
        ("tiny_control", ["generate.engine=endpoint"], "nothing is chosen; choose a local engine"),
        ("tiny_dpo", ["loss={name='exo_pair'}"], "'exo_pair' takes the log of smoothing; expected smoothing > 0"),
    ],
)
def test_the_other_sides_of_a_rule(recipe: str, sets: list[str], says: str) -> None:
    # a rule with several conditions is broken by each of them, and still gives one message
    message = refusal(*sets, recipe=recipe)
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("recipe", "sets"),
    [
        ("tiny_dpo", [*GRPO, "generate.n=8"]),
        ("tiny_dpo", [*GRPO, SCORES]),
        ("tiny_dpo", [*GRPO, "loss.beta=0.1", "loss.reference=base", "gate.kl_budget=5"]),
        ("tiny_dpo", [SCORES, "reward.how=min"]),
        ("tiny_dpo", ["gate.kl_budget=5"]),
        ("tiny_dpo", ["score=[{scorer='a'}, {scorer='a', name='b', weight=0}]"]),
        ("tiny_dpo", [RECORDED, "generate.path=x", "prompts.held_out=0", "prompts.source=countdown"]),
        ("tiny_dpo", ["prompts.source=countdown", "model.path=m"]),
        ("tiny_dpo", ["pool.given=true"]),
        ("tiny_dpo", [*GRPO, "curate=[{curator='decontaminated'}]"]),
        ("tiny_dpo", ["train.validation=0.2"]),
        ("tiny_dpo", ["loss={name='exo_pair', smoothing=0.001}"]),
        ("tiny_control", []),
    ],
)
def test_what_lies_within_the_rules_loads(recipe: str, sets: list[str]) -> None:
    # the nearest settings on the allowed side of a rule
    load(recipe, sets)


def test_five_mistakes_give_five_messages() -> None:
    # one run tells all of them, each on a line of its own
    sets = ("select.selector=all_correct", "prompts.held_out=0", "score.0.weight=0", "gate.kl_budget=inf", "train.replay=true")
    message = refusal(*sets)
    first, *lines = message.splitlines()
    assert first == f"{recipes.shipped()['tiny_dpo']}: 5 mistakes"
    words = (
        "expected one of them",
        "needs loss.name = 'nll'",
        "held_out = 0",
        "has weight 0",
        "gate.kl_budget: expected a fin",
    )
    assert [says in line for says, line in zip(words, lines, strict=True)] == [True] * 5


def test_a_loss_names_all_its_contradictions() -> None:
    # the rules within [loss] are told together as well, each with the table's name
    message = refusal("loss={name='hinge', beta=0, smoothing=0.1, terms={sftt=1}, weighted=true}")
    assert [line.split(": ")[0] for line in message.splitlines()[1:]] == ["- loss"] * 4


def test_every_problem_is_named_at_once() -> None:
    # three mistakes take one run to find
    message = refusal("loss.bta=1", "rounds=-1", "trian.steps=1")
    assert all(place in message for place in ("'loss.bta'", "rounds: ", "'trian'"))


def test_a_recipe_cannot_be_changed() -> None:
    # what a key was made from stays what it was
    with pytest.raises(ValidationError, match="frozen"):
        PAIRS.loss.beta = 1.0  # type: ignore[misc]  # the mistake that is to be refused


# -- --set ------------------------------------------------------------------------------------------------------------


@given(WORD, st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.lists(st.integers(0, 9)))
def test_set_reads_toml_values(path: str, value: Any) -> None:
    # --set takes what the file takes
    assert parse_set(f"{path}={json.dumps(value).replace('Infinity', 'inf')}") == (path, value)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=20))
def test_set_takes_any_text(value: str) -> None:
    # in quotes always as text; bare as text wherever it is not TOML; nothing raises
    assert parse_set(f"a.b={json.dumps(value, ensure_ascii=False)}") == ("a.b", value)
    path, read = parse_set(f"a.b={value}")
    assert path == "a.b"
    try:
        assert read == tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        assert read == value


@pytest.mark.parametrize("item", ["loss.beta", "=3", ""])
def test_set_needs_a_place_and_a_value(item: str) -> None:
    # what is missing is shown
    assert refusal(item) == f"--set {item}: expected a.b=value"


@pytest.mark.parametrize("item", ["score.7.weight=1", "rounds.x=1", "score.first.weight=1", "description.x.y=1"])
def test_set_of_a_place_that_cannot_be_is_refused(item: str) -> None:
    # a path through a number, a text or a list that is too short leads to no setting
    assert refusal(item).startswith(
        f"'{item.split('=')[0]}' leads to no setting of the recipe; expected a path such as loss.beta"
    )


def test_set_reaches_into_lists_and_settings_and_the_last_one_wins() -> None:
    # everything a recipe says can be changed from the command line, after --model and --prompts
    sets = ["score.0.weight=2", "pair.settings.cap=9", "loss.beta=0.3", "loss.beta=0.4", "model.path=x"]
    recipe = load("tiny_dpo", sets, {"model.path": "y"})
    assert (recipe.score[0].weight, recipe.pair and recipe.pair.settings) == (2.0, {"cap": 9})
    assert (recipe.loss.beta, recipe.model.path) == (0.4, "x")


# -- [[at]] -----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 6), st.sampled_from(["loss.beta", "train.steps", "generate.n"]), st.integers(1, 9))),
    st.integers(0, 8),
)
def test_overrides_hold_from_their_round_on(entries: list[tuple[int, str, int]], number: int) -> None:
    # a round's recipe is the start with every entry of its round or before applied in round order; nothing else moves
    plain = PAIRS.plain() | {"at": [{"round": at, "set": {path: value}} for at, path, value in entries]}
    recipe = build(plain, "test")
    expected = flatten(recipe.plain())
    for at, path, value in sorted(entries, key=lambda entry: entry[0]):
        if at <= number:
            expected[path] = value
    assert flatten(recipe.at_round(number).plain()) == expected


@pytest.mark.parametrize("written", ['{ "train.steps" = 9, "loss.beta" = 2 }', "{ train.steps = 9, loss.beta = 2 }"])
def test_an_override_changes_one_value_however_it_is_quoted(written: str) -> None:
    # TOML reads an unquoted train.steps as a table {steps}; the rest of [train] must keep what the recipe says
    recipe = load("tiny_dpo", [f"at=[{{ round = 2, set = {written} }}]"])
    assert recipe.at_round(1).train == PAIRS.train
    assert recipe.at_round(2).train == PAIRS.train.model_copy(update={"steps": 9})
    assert recipe.at_round(2).loss == PAIRS.loss.model_copy(update={"beta": 2.0})


def test_a_parts_settings_change_as_a_whole() -> None:
    # another pairer has other settings: those of the old one must not linger
    change = 'at=[{ round = 2, set = { pair.pairer = "best_vs_worst", pair.settings = { minimum_margin = 1 } } }]'
    recipe = load("tiny_dpo", [change]).at_round(2)
    assert recipe.pair is not None
    assert recipe.pair.settings == {"minimum_margin": 1}
    cleared = load("tiny_dpo", ["at=[{ round = 2, set = { pair.settings = {} } }]"]).at_round(2)
    assert cleared.pair is not None
    assert cleared.pair.settings == {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('{"train.step" = 3}', "[[at]] of round 3: unknown key 'train.step' (did you mean 'steps'?)"),
        ('{"loss.beta" = 0}', "[[at]] of round 3: loss: beta = 0 leaves 'sigmoid' without a signal"),
        ('{"loss.name" = "nll", "loss.terms" = {}}', "[[at]] of round 3: [pair] needs a pair loss"),
        ('{"score.4.weight" = 1}', "[[at]] of round 3: 'score.4.weight' leads to no setting"),
    ],
)
def test_a_later_rounds_mistake_is_found_before_the_first(change: str, says: str) -> None:
    # nobody waits two rounds to learn of a typo in the third
    assert says in refusal(f"at=[{{round = 3, set = {change}}}]")


@pytest.mark.parametrize("path", [*FROZEN_AFTER_START, "prompts.held_out", "model.path", "hardware.workers"])
def test_what_a_campaign_stands_on_cannot_change_between_rounds(path: str) -> None:
    # rounds must stay comparable: the same prompts, the same checkpoint 0
    message = refusal(f'at=[{{round = 2, set = {{"{path}" = 1}}}}]')
    assert f"[[at]] of round 2: '{path}' cannot change between rounds" in message


def test_the_verifier_cannot_change_between_rounds() -> None:
    # what measures checkpoints stays; its weight may change, and what rewards beside it
    other = 'at=[{round = 2, set = {"score.0.scorer" = "math_equivalence", "score.0.settings" = {}}}]'
    assert "the first [[score]] measures every checkpoint and cannot change between rounds" in refusal(other)
    recipes.load("tiny_raft", ['at=[{round = 2, set = {"score.0.weight" = 0.5}}]'])


def test_every_broken_later_round_is_named_once() -> None:
    # two entries break two rounds: both are told, each with its own round, though the first one's mistake lasts
    message = refusal('at=[{round=2, set={"loss.beta"=0}}, {round=3, set={"train.batch"=-1, "score.0.scorer"="x"}}]')
    assert message.splitlines() == [
        f"{recipes.shipped()['tiny_dpo']}: 2 mistakes",
        "- [[at]] of round 2: loss: beta = 0 leaves 'sigmoid' without a signal; expected beta > 0",
        "- [[at]] of round 3: train.batch: Input should be greater than or equal to 1, found -1",
    ]


def test_a_fork_names_every_setting_it_cannot_change() -> None:
    # all settings that the finished rounds depend on, and the command that starts anew with them
    with pytest.raises(RecipeError, match=r"--set seed, model\.path: .*`run --set seed=\.\.\. --set model\.path=\.\.\.`"):
        forked(PAIRS, 1, ["seed=1", "loss.beta=0.2", "model.path=x"])


# -- differences ------------------------------------------------------------------------------------------------------

CHANGES = {
    "loss.beta": st.floats(0.125, 4),
    "train.steps": st.integers(0, 5),
    "seed": st.integers(0, 3),
    "description": st.sampled_from(["-", "", "other"]),
    "score.0.settings": SETTINGS,
    "pair.settings": SETTINGS,
    "hardware.workers": st.integers(1, 4),
    "hardware.device": st.sampled_from(["cpu", "cuda"]),
}
CHANGED = st.fixed_dictionaries({}, optional=CHANGES)


def changed(changes: Mapping[str, Any]) -> Recipe:
    values = PAIRS.plain()
    for path, value in changes.items():
        set_value(values, path, value)
    return build(values, "test")


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(CHANGED, CHANGED)
def test_differences_are_what_changed_and_hardware_never_is(one: dict[str, Any], two: dict[str, Any]) -> None:
    # no line exactly where the recipes mean the same work (1, 1.0, true and "-" are different), a line for each place else
    def plain(recipe: Recipe) -> dict[str, Any]:
        return {path: json.dumps(v) for path, v in flatten(recipe.plain()).items() if not path.startswith("hardware.")}

    old, new = plain(changed(one)), plain(changed(two))
    lines = differences(changed(one), changed(two))
    assert [line.split(": ")[0] for line in lines] == sorted(
        path for path in old.keys() | new.keys() if old.get(path) != new.get(path)
    )


def test_a_difference_shows_both_values() -> None:
    # what a person reads: place, before, after, "-" where there is none
    other = load("tiny_dpo", ["loss.beta=0.25", "pair.settings.extra=1", "hardware.workers=7"])
    assert differences(PAIRS, other) == ["loss.beta: 0.5 -> 0.25", "pair.settings.extra: - -> 1"]
    assert differences(PAIRS, PAIRS) == []


@pytest.mark.parametrize(("one", "two"), [(1, True), (1, 1.0), ("", "-"), (0, "0"), ({}, [])])
def test_values_that_make_other_keys_are_different(one: Any, two: Any) -> None:
    # a part sees what the recipe says, and so does its key: 1, 1.0 and true are not the same there
    [line] = differences(changed({"pair.settings": {"cap": one}}), changed({"pair.settings": {"cap": two}}))
    assert line == f"pair.settings.cap: {one} -> {two}"
    assert differences(changed({"pair.settings": {}}), changed({"pair.settings": {"cap": "-"}})) != []


def test_sft_rounds_may_warm_up_dpo_rounds() -> None:
    # Claim: [[at]] can end selecting and begin pairing, though TOML has no null.
    change = 'at=[{round=2, set={select=false, pair={pairer="right_vs_wrong"}, "loss.name"="sigmoid", "train.replay"=false}}]'
    recipe = load("tiny_raft", [change])
    assert recipe.at_round(1).select is not None
    later = recipe.at_round(2)
    assert later.select is None
    assert later.pair is not None
