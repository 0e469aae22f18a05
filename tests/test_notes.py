"""Notes of `check`: settings that nothing reads, values that are the same for every row, effects that are easily overlooked."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from data.errors import RecipeError
from data.recipe import notes as module
from data.recipe import recipe as recipes
from data.recipe.loss import KINDS, Loss
from data.recipe.notes import IN_ANY_ROUND, IN_EVERY_ROUND, UNREAD, notes
from flows.commands import check
from tests.micro import micro
from tests.test_recipe import load_shipped
from tests.tiny_llama import make

OFFLINE = ("select={selector='all_correct'}", "loss.name=nll")
GRPO = ("select=false", "train.replay=false", "loss.name=grpo")
TRAINED = """score=[{scorer="exact_match", weight=0.0}, {scorer="reward_model", checkpoint="trained"}]"""
VERIFIER, MODEL = '{scorer="tests.micro:ends_even"}', '{scorer="reward_model", checkpoint="base"}'
BOTH = f"score=[{VERIFIER}, {MODEL}]"
EITHER_SIDE = {  # a recipe and settings of which a note speaks -> further settings with which it is silent
    "loss.beta = 0.3": (("tiny_raft", "loss.beta=0.3"), ("select.selector=labelled", "train.replay=false", "loss.name=kto")),
    "loss.gamma = 2.0": (("tiny_dpo", "loss.gamma=2.0"), ("loss.name=simpo",)),
    "loss.desirable_weight = 2.0": (
        ("tiny_raft", "loss.desirable_weight=2.0"),
        ("select.selector=labelled", "train.replay=false", "loss.name=kto", "train.accumulate=1"),
    ),
    "loss.reference = base": (("tiny_dpo", "loss.reference=base", "loss.name=simpo"), ("loss.name=sigmoid",)),
    "loss.ema_decay = 0.5": (("tiny_dpo", "loss.ema_decay=0.5"), ("loss.reference=ema",)),
    "train.epochs = 2.0": (("tiny_raft", "train.epochs=2.0"), ("train.steps=0",)),
    "train.patience = 5": (("tiny_raft", "train.patience=5"), ("train.validation=0.2",)),
    "train.max_length = 99": (("tiny_raft", *GRPO, "train.max_length=99"), OFFLINE),
    "train.minimum = 1 is not": (("tiny_raft", *GRPO), OFFLINE),
    "reward.penalty = 0.5": (("tiny_raft", "reward.penalty=0.5", TRAINED), ("score.0.weight=1.0", "reward.how=pessimistic")),
    "fit_reward.batch = 8": (("tiny_raft", "fit_reward.batch=8"), (TRAINED,)),
    "evaluate.temperature = 0.5": (("tiny_raft", "evaluate.temperature=0.5", "evaluate.samples=0"), ("evaluate.samples=2",)),
    "probe.baseline = 2": (("tiny_raft", "probe.baseline=2"), ("probe.samples=2",)),
    "probe.challenge = Really?": (
        ("tiny_raft", "probe.samples=2", "probe.challenge=Really?"),
        ("probe.counterfactuals=['challenge']",),
    ),
    "probe.neutral = Again.": (
        ("tiny_raft", "probe.samples=2", "probe.neutral=Again."),
        ("probe.counterfactuals=['challenge']",),
    ),
    "generate.path = x": (("tiny_raft", "generate.path=x"), ("generate.engine=recorded",)),
    "prompts.template = Q: {prompt}": (
        ("tiny_raft", "prompts.template='Q: {prompt}'"),
        ("generate.engine=recorded", "generate.path=x"),
    ),
    "[[at]] of round 9": (("tiny_raft", "at=[{round=9, set={train.steps=3}}]"), ("rounds=9",)),
    "loss.weighted": (("tiny_dpo", "loss.terms={}", "loss.weighted=true"), ("pair={pairer='most_vs_least_voted'}",)),
    "loss.offset": (
        ("tiny_dpo", "loss.terms={}", "loss.offset=1.0"),
        ("score=[{scorer='exact_match'}, {scorer='normalised_text'}]",),
    ),
    "fit_reward.margin": (("tiny_raft", TRAINED, "fit_reward.margin=true"), ("fit_reward.margin=false",)),
    "the rows of a micro-batch": (("tiny_dpo", "loss.name=aot", "loss.terms={}"), ("train.accumulate=1",)),
    "nothing on fewer than 30 prompts": (("tiny_raft", "probe.samples=2", "prompts.probe=29"), ("prompts.probe=30",)),
    "is mostly missed in its round": (("tiny_raft", "probe.samples=2", "prompts.probe=127"), ("prompts.probe=128",)),
    "up to 48 tokens": (("tiny_raft", "train.max_length=48"), ("train.max_length=49",)),
}


def told(source: str, *sets: str) -> list[str]:
    return notes([micro(source, *sets)])


@pytest.mark.parametrize("says", EITHER_SIDE)
def test_a_note_is_told_where_it_holds_and_only_there(says: str) -> None:
    # Claim: each note speaks on its side of the setting that decides, and is silent on the other.
    (source, *sets), more = EITHER_SIDE[says]
    assert [note for note in told(source, *sets) if says in note]
    assert not [note for note in told(source, *sets, *more) if says in note]


@pytest.mark.parametrize("name", recipes.shipped())
def test_shipped_recipes_have_no_setting_that_nothing_reads(name: str) -> None:
    # Claim: what a shipped recipe sets has an effect in one of its rounds.
    recipe = load_shipped(name)
    found = notes([recipe.at_round(number) for number in range(1, recipe.rounds + 1)])
    assert [note for note in found if "is not read by" in note] == []


def test_a_setting_that_one_round_reads_is_no_mistake() -> None:
    # Claim: SFT rounds before DPO rounds do not read beta; the campaign does.
    first = micro("tiny_raft", "loss.beta=0.3")
    assert [note for note in notes([first]) if "loss.beta" in note]
    assert notes([first, micro("tiny_dpo", "loss.beta=0.3")]) == []
    assert notes([]) == []


def test_every_setting_of_a_loss_is_read_refused_or_told() -> None:
    # Claim: for every loss, a changed setting of [loss] that it does not read is refused, or a note tells it.
    changed = {"terms": {"nll": 1.0}, "smoothing": 0.1, "weighted": True, "offset": 1.0, "length": 0.1}
    told_of = {name.removeprefix("loss.") for name in UNREAD if name.startswith("loss.")}
    assert set(Loss.model_fields) - {"name"} == set(changed) | told_of
    for name, kind in KINDS.items():
        for setting in set(changed) - set(kind.reads):
            with pytest.raises(ValueError, match=r"does not read|does not combine|belong to"):
                Loss(name=name, **{setting: changed[setting]})


def test_check_counts_the_prompts_that_leave_too_little_room(tmp_path: Path) -> None:
    # Claim: with a model of one's own, `check` counts tokens as training does; where no prompt fits at all it refuses.
    model, file = make(tmp_path / "model"), tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{i} " + "word " * (i % 4) * 20, "answer": "1"}) + "\n" for i in range(80)))
    given = {"model.path": str(model), "prompts.source": "file", "prompts.path": str(file)}
    few = (
        "prompts.seed=0",
        "prompts.rounds=0",
        "prompts.held_out=10",
        "prompts.test=10",
        "prompts.probe=0",
        "prompts.ood=0",
        "prompts.filler=0",
    )

    def told(limit: int) -> list[str]:
        sets = (*few, "train.replay=false", "generate.max_tokens=10", f"train.max_length={limit}")
        recipe = recipes.load("tiny_raft", sets, given)
        lengths = sorted(check.prompt_tokens(recipe))
        long = sum(length + 10 > limit for length in lengths)
        found = check.long_prompts(recipe, [recipe])
        assert not found or found[0].startswith(f"{long} of {len(lengths)} prompts have more than")
        return found

    assert told(60)
    assert not told(400)
    wordy = "prompts.template='Think about it for a while, then tell me what the right answer to {prompt} is.'"
    recipe = recipes.load("tiny_raft", (*few, "train.replay=false", "train.max_length=11", wordy), given)
    with pytest.raises(RecipeError, match=r"every prompt has \d+ tokens or more, and train\.max_length is 11"):
        check.long_prompts(recipe, [recipe])


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        ([BOTH], "tests.micro:ends_even (-1 to 1), reward_model (logits)"),
        ([BOTH, "reward.normalise=prompt"], ""),
        ([BOTH, "reward.how=mean"], ""),
        ([f"score=[{VERIFIER[:-1]}, weight=0.0}}, {MODEL}]"], ""),
        ([f'score=[{VERIFIER}, {{scorer="format", settings={{pattern="a"}}}}]'], ""),
        ([f'score=[{VERIFIER}, {{scorer="mean_logprob", name="sure"}}]', "reward.normalise=round"], "'sure' is mostly a short"),
        (['mitigate=[{mitigation="length_penalty", settings={per_token=0.01}}]'], "by their length"),
        (['mitigate=[{mitigation="length_penalty"}]'], ""),
    ],
)
def test_an_effect_is_told_where_it_is_and_only_there(sets: list[str], says: str) -> None:
    # Claim: one sentence where it applies, once however many rounds have it, and none on the other side.
    recipe = micro("tiny_dpo", *sets)
    found = [message for note in IN_ANY_ROUND for message in note(recipe)]
    assert len(found) == bool(says)
    assert all(says in note for note in found)
    assert notes([recipe, recipe]) == notes([recipe])


def test_every_note_is_listed() -> None:
    # Claim: a note that is written is also told.
    defined = [name for name, function in vars(module).items() if inspect.isgeneratorfunction(function)]
    assert sorted(defined) == sorted(note.__name__ for note in (*IN_EVERY_ROUND, *IN_ANY_ROUND))
