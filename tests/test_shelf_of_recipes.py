"""The shelf of recipes: each binds in every round, and each value that came from somewhere says where."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest

from data.recipe import recipe as recipes
from data.rows import tables
from data.store.campaign import Campaign
from flows.commands import check
from flows.commands.check import cost
from flows.commands.estimate import rows_per_prompt, sampled_to_train_on, seven_b
from flows.commands.part_rules import check_parts
from flows.round.resolve import accumulation, micro_batches
from flows.service import environment
from tests.micro import SETS
from tests.test_recipe import load_shipped

SOURCED = ("n", "temperature", "top_p", "beta", "gamma", "length", "learning_rate", "epochs", "steps", "batch", "max_tokens")
OF_OUR_OWN = r"^(tiny_|.*control)"


@pytest.mark.parametrize("name", recipes.shipped())
def test_every_shipped_recipe_binds_in_every_round(name: str) -> None:
    # parts exist and take their settings, whatever [[at]] changes
    recipe = load_shipped(name)
    for number in range(1, recipe.rounds + 1):
        check_parts(recipe.at_round(number))


@pytest.mark.parametrize("name", [n for n in recipes.shipped() if not re.match(OF_OUR_OWN, n)])
def test_a_published_methods_recipe_says_where_it_was_read(name: str) -> None:
    # a paper or a repository is named in the file, and at least three values carry a comment of their own
    text = recipes.shipped()[name].read_text()
    assert re.search(r"arXiv|Online-DPO-R1|OpenRLHF|DeepScaleR|repository", text)
    settings = [line for line in text.splitlines() if re.match(rf"({'|'.join(SOURCED)}) = ", line)]
    assert sum("#" in line for line in settings) >= 2, settings


COUNTS = {"seed": 0, "rounds": 7000, "probe": 0, "held_out": 500, "test": 200, "ood": 0}


@pytest.mark.parametrize("name", [n for n in recipes.shipped() if not re.match(OF_OUR_OWN, n)])
def test_every_published_recipe_has_its_cost_on_7b(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # tokens, GPU-hours and disk for 7,000 prompts; hours are the tokens over the assumed rates, and no recipe is for free
    monkeypatch.setattr(check, "model_bytes", lambda recipe: 15_000_000_000)
    recipe = load_shipped(name)
    estimate = check.cost(recipe, COUNTS | {"seed": recipe.prompts.seed}, 0)
    cost = estimate["seven_b"]
    assert cost.decoded == estimate["tokens_at_most"] >= estimate["completions"]
    assert cost.decode_hours == pytest.approx(cost.decoded / 5000 / 3600)
    assert cost.trained > 0
    assert 7.999 < cost.train_hours * 3600 * 0.4 * 989e12 / 7.6e9 / cost.trained < 10.001
    assert all(re.search(r"\d", line) for line in cost.lines())


def test_the_cost_follows_what_changes_between_rounds_and_who_else_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    # a window that grows counts as long as it is; other samples and a judge's answers are decoded too; a cap bounds the pairs
    def of_four(*sets: str) -> tuple[int, int]:
        return sampled_to_train_on(load_shipped("iterative_dpo", "generate.n=4", "generate.max_tokens=100", *sets), 10)

    def judged(template: str) -> str:
        judge = f"{{scorer='judge', settings={{template='{template}', samples=3, max_tokens=50}}}}"
        return f"score=[{{scorer='math_equivalence'}}, {judge}]"

    assert of_four() == (40, 4000)
    assert of_four("pool.base=true") == (80, 8000)
    assert of_four(judged("additive5")) == (40, 4000 + 40 * 3 * 50)
    assert of_four(judged("better_of_two")) == (40, 4000 + 10 * (4 * 3) * 3 * 50)
    monkeypatch.setattr(check, "model_bytes", lambda recipe: 0)
    counts = {"seed": 0, "rounds": 10, "held_out": 0, "test": 0, "ood": 0}
    few = ("generate.n=4", "rounds=2", "probe.samples=4", "prompts.probe=5", judged("additive5"))
    at_most = [cost(load_shipped("iterative_dpo", *few), counts | {"probe": probe}, 0) for probe in (0, 5)]
    told = at_most[1]["tokens_at_most"] - at_most[0]["tokens_at_most"]
    sampled = at_most[1]["completions"] - at_most[0]["completions"]
    assert told == sampled * load_shipped("iterative_dpo").generate.max_tokens + 5 * 3 * (4 * 3 * 50)  # 3 drawings judged
    longer = load_shipped("context_lengthening")
    at = [sampled_to_train_on(longer.at_round(number), 10)[1] for number in (1, 3, 5)]
    assert at == [80 * 8192, 80 * 16384, 80 * 24576]
    most = {"iterative_dpo": 1, "irpo": 10, "kto": 8, "rso": 8, "self_rewarding": 1, "raft": 4, "grpo": 64}
    assert {name: rows_per_prompt(load_shipped(name)) for name in most} == most


@pytest.mark.parametrize(
    ("name", "sets", "micro"),
    [
        ("iterative_dpo", ("train.batch=32", "train.max_length=2048"), 4),  # 4 pairs of 2 x 2,048 tokens
        ("raft", ("train.batch=36", "train.max_length=4096"), 4),  # 9 times 4: the fewest that divide
        ("raft", ("train.batch=8", "train.max_length=100000"), 1),
        ("kto", ("train.batch=8", "train.max_length=100000"), 2),
        # a row of a list is a prompt with its completions: 16,384 tokens hold two of 4 x 2,048
        ("raft", ("train.batch=8", "train.max_length=2048", "generate.n=4", "loss.name=rrhf", "select.selector=ranked"), 2),
    ],
)
def test_micro_batches_follow_the_device(name: str, sets: tuple[str, ...], micro: int) -> None:
    # 0 = chosen: whole batches on a CPU, within 16,384 tokens on a GPU; a number of one's own stands
    for device in ("cuda", "cpu"):
        recipe = load_shipped(name, *sets, "train.accumulate=0", f"hardware.device={device}")
        found = recipe.train.batch // accumulation(recipe, recipe.train, recipe.loss)
        assert found == (micro if device == "cuda" else recipe.train.batch)
    assert micro_batches(load_shipped(name, "hardware.device=cuda"), 64, 2 * 4096) == 32  # as reward models have it
    fixed = load_shipped(name, *sets, "train.accumulate=4", "hardware.device=cuda")
    assert accumulation(fixed, fixed.train, fixed.loss) == 4


def test_the_cost_on_7b_is_its_formula() -> None:
    # one round, 1,000 prompts of 8 samples of 1,024 tokens, 100 steps of 32 pairs, full weights, a reference
    sets = ["rounds=1", "train.steps=100", "train.batch=32", "train.accumulate=32", "generate.max_tokens=1024"]
    cost = seven_b(load_shipped("iterative_dpo", *sets), 1000, 8 * 1000 * 1024)
    assert cost.trained == 100 * 32 * 2 * 1024
    assert cost.train_hours == pytest.approx(cost.trained * 10 * 7.6e9 / (0.4 * 989e12) / 3600)
    assert cost.decode_hours == pytest.approx(8 * 1000 * 1024 / 5000 / 3600)
    assert cost.memory_gb == pytest.approx(5 * 4 * 7.6)
    assert "does not fit" in cost.lines()[1]
    lora = seven_b(load_shipped("iterative_dpo", *sets, "train.lora={rank=16}"), 1000, 1)
    assert lora.memory_gb == pytest.approx(4 * 7.6)
    four_bit = seven_b(load_shipped("iterative_dpo", *sets, "train.lora={four_bit=true}"), 1000, 1)
    assert four_bit.memory_gb == pytest.approx(4 * 7.6)  # the reference, proved whole before anything is rounded
    four_bit = seven_b(load_shipped("raft", *sets[:2], "train.lora={four_bit=true}"), 1000, 1)
    assert four_bit.memory_gb == pytest.approx(4.127 / 8 * 7.6)


# Each recipe as it is, but in the micro world, with its verifier, steps and sample counts.
WORLD = (
    "prompts.source=addition", "prompts.answer_after=", "score.0.scorer=tests.micro:ends_even", "score.0.settings={}",
    "train.accumulate=1", "probe.samples=0", "evaluate.samples=0", "health.samples=0", "hardware.prefect=false",
)  # fmt: skip
INSTEAD: dict[str, tuple[str, ...]] = {
    "scpo": ("score.1.settings={after='#'}", "pair.settings={minimum_votes=0.2}", "generate.n=8"),
    "self_rewarding": ("score.1.settings={template='tiny_verdict', reading='expected', minimum_mass=0.0}",),
    "spin": ("prompts.per_round=0",),
    "rso": ("generate.n=8", "pair.settings={beta=0.5, count=4}"),
    **dict.fromkeys(
        ("llama2_rejection_sampling", "rlhf_workflow"),
        ("fit_reward.steps=2", "fit_reward.batch=8", "fit_reward.accumulate=0"),
    ),
}


@pytest.fixture(scope="module")
def one_home(known_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for all of them: what their first rounds share is made once."""
    home = tmp_path_factory.mktemp("shelf")
    shutil.copytree(known_store, home / "store")
    return home


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in recipes.shipped() if not re.match(OF_OUR_OWN, n)])
def test_every_published_recipe_trains_two_rounds(one_home: Path, name: str) -> None:
    # with its own curating, pool, scores, choice, loss and rates: each round makes a new checkpoint and leaves its log
    environment.prepare(one_home)
    from flows.round.improve import improve

    sizes = [entry for entry in SETS if not entry.startswith("score=")]
    campaign = Campaign.start(one_home, name, recipes.load(name, [*sizes, *WORLD, *INSTEAD.get(name, ())]))
    improve.fn(name, str(one_home))
    rounds = campaign.rounds()
    assert len({r.checkpoint.digest for r in rounds}) == 3, [r.verdict.reason for r in rounds]
    for made in rounds[1:]:
        log = campaign.store.folder(made.checkpoint.key) / "payload" / "training.parquet"
        losses = [row["value"] for row in tables.read(log, tables.TRAINING).to_pylist() if row["metric"] == "loss"]
        assert len(losses) == 6
        assert all(math.isfinite(value) for value in losses)
