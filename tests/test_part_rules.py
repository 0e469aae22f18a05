"""Rules about the parts of a recipe: all problems in one error, each told once."""

from __future__ import annotations

from typing import Any

import pytest

from data.errors import PartError
from flows.commands import part_rules
from flows.commands.part_rules import check_parts
from tasks.bias import observe
from tests.micro import micro


def message(*sets: str, recipe: str = "tiny_raft") -> str:
    with pytest.raises(PartError) as refused:
        check_parts(micro(recipe, *sets))
    return str(refused.value)


def test_all_problems_are_told_at_once() -> None:
    # Claim: four problems of four kinds make one error, with a line for each.
    sets = (
        'score=[{scorer="exact_mach"}]',
        "select.settings.cop=2",
        "train.lora={rank=4, four_bit=true}",
        "hardware.accelerate=two.yaml",
        'probe.features=["nothing_known"]',
        "probe.samples=2",
    )
    first, *problems = message(*sets).split("\n- ")
    expected = ["no 'exact_mach'", "selectors 'all_correct'", "no 'nothing_known'", "leave out hardware.accelerate"]
    assert first == f"{len(problems)} problems with the parts of this recipe"
    assert [text for text in expected if sum(text in problem for problem in problems) != 1] == []


def test_one_problem_keeps_its_own_line() -> None:
    # Claim: one problem is its message alone, also where several rules meet the part that has it.
    text = message('score=[{scorer="exact_match"}, {scorer="no_such"}]')
    assert text.startswith("scorers: no 'no_such'")
    assert "\n" not in text


def test_a_problem_of_several_rounds_is_told_once() -> None:
    # Claim: rounds share their problems; one that only a later round has is told too.
    one, two = micro("tiny_raft", "select.settings.cop=2"), micro("tiny_raft", "select.settings.cup=2")
    with pytest.raises(PartError) as refused:
        check_parts(one, one, two)
    assert str(refused.value).startswith("2 problems")
    check_parts(micro("tiny_raft"), micro("tiny_dpo"))


def test_an_online_loss_has_neither_verdicts_nor_a_judge() -> None:
    # Claim: the message names what the scorer needs, and what to do.
    online = ("loss.name=grpo", "select=false", "train.replay=false")
    judge = """score=[{scorer="exact_match"}, {scorer="judge", settings={template="tiny_verdict"}}]"""
    needed, advice = "Scorer 'judge' needs a judge checkpoint", "Use a rule-based scorer or an offline loss"
    assert message(*online, judge) == f"{needed}; the online loss 'grpo' supplies none. {advice}"


def test_countdowns_rule_is_the_one_its_prompts_say() -> None:
    # Claim: a demand that the built-in prompts contradict is refused; the rule they say is not.
    sets = ("prompts.source=countdown", "model.path=m")
    refused = message(*sets, 'score=[{scorer="countdown", settings={use_all=true}}]')
    assert refused.startswith("Scorer 'countdown' with use_all = true demands each number exactly once")
    check_parts(micro("tiny_raft", *sets, 'score=[{scorer="countdown", settings={use_all=false}}]'))


RSO = ("pair.pairer=rejection_sampled", "generate.n=16")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("{beta=0.5, count=15}", None),
        ("{beta=0.5, count=16}", "pair.settings.count = 16"),
        ("{beta=0.198, count=8}", None),  # 16 x exp(-1 / 0.198) = 0.103 wrong completions accepted at most
        ("{beta=0.197, count=8}", "Pairs of right and wrong need at least 0.1"),
        ("{beta=0.05, count=16}", "2 problems"),
    ],
)
def test_rejection_sampling_must_be_able_to_reject_and_to_pair(settings: str, expected: str | None) -> None:
    # Claim: refused are as many accepted as there are candidates, and a beta that accepts no wrong answer to pair with.
    sets = (*RSO, f"pair.settings={settings}")
    if expected is None:
        check_parts(micro("tiny_dpo", *sets))
    else:
        assert expected in message(*sets, recipe="tiny_dpo")


def test_the_rules_of_rejection_sampling_read_what_it_reads() -> None:
    # Claim: the weight of the verdict counts; other rewards have no known range; a selector needs no wrong answer; the pool
    # adds candidates; the pairs of a reward model are asked for too.
    cold, other = "pair.settings={beta=0.05, count=8}", '{scorer="tests.micro:ends_even", name="other"}'
    check_parts(micro("tiny_dpo", *RSO, cold, 'score=[{scorer="tests.micro:ends_even", weight=0.1}]'))
    check_parts(micro("tiny_dpo", *RSO, cold, f'score=[{{scorer="tests.micro:ends_even"}}, {other}]'))
    selector = ("select.selector=rejection_sampling", "generate.n=8")
    check_parts(micro("tiny_raft", *selector, "select.settings={beta=0.05, count=7}"))
    assert "select.settings.count = 8" in message(*selector, "select.settings={beta=0.05}")
    check_parts(micro("tiny_raft", *selector, "select.settings={beta=0.05}", "pool.base=true"))
    fitted = 'score=[{scorer="tests.micro:ends_even"}, {scorer="reward_model", checkpoint="trained"}]'
    fit = ("fit_reward.pairer=rejection_sampled", "fit_reward.settings={beta=0.5}")
    assert "fit_reward.settings.count = 8" in message(fitted, *fit, "generate.n=8")


MITIGATED = 'mitigate=[{mitigation="residualised", settings={features=["%s"]}}]'


def of_prompts(groups: Any, *, verdicts: Any) -> list[float | None]:
    """A user's own prompt feature."""
    return [None] * len(groups)


def with_a_setting(completions: Any, *, limit: int) -> list[float | None]:
    """A user's own feature that nobody can set."""
    return [float(limit)] * len(completions)


def with_a_prompt(completions: Any, *, prompts: Any) -> list[float | None]:
    """A user's own feature of completion and prompt."""
    return [None] * len(completions)


@pytest.mark.parametrize(
    ("feature", "says"),
    [
        ("script_share", "feature 'script_share' also needs prompts"),
        ("kl_base", "feature 'kl_base' also needs base_kl"),
        ("overconfidence", "features: no 'overconfidence'"),
        ("tests.test_part_rules:with_a_prompt", "also needs prompts"),
        ("tests.test_part_rules:of_prompts", "is one of whole prompts"),
        ("tests.test_part_rules:with_a_setting", "limit: Field required"),
    ],
)
def test_a_mitigation_takes_features_of_the_completion_alone(feature: str, says: str) -> None:
    # Claim: what would fail in the middle of a round is refused before it, with one message. The other side runs.
    text = message(MITIGATED % feature)
    assert says in text
    assert "\n" not in text
    check_parts(micro("tiny_raft", MITIGATED % "words"))


def test_a_users_prompt_feature_is_one() -> None:
    # Claim: the first parameter tells the family, so the ledger gives it whole prompts; a missing setting is refused.
    watched = ("probe.samples=2", 'probe.features=["tests.test_part_rules:%s"]')
    check_parts(micro("tiny_raft", watched[0], watched[1] % "of_prompts"))
    assert "limit: Field required" in message(watched[0], watched[1] % "with_a_setting")
    families = [observe.family_of(f"tests.test_part_rules:{name}") for name in ("of_prompts", "with_a_setting")]
    assert families == ["prompt_features", "features"]


def test_an_empty_band_is_refused() -> None:
    # Claim: low may equal high but not exceed it.
    band = """curate=[{curator="pass_rate_band", settings={low=0.5, high=%s}}]"""
    assert message(band % "0.4").endswith("found low = 0.5 and high = 0.4; exchange them")
    check_parts(micro("tiny_raft", band % "0.5"))


def test_learnable_needs_more_rounds_than_it_waits_for() -> None:
    # Claim: it judges after 5 rounds, so a campaign of 5 rounds never uses a judgement, and one of 6 does.
    curator = """curate=[{curator="learnable"}]"""
    assert "found rounds = 5, so it would never drop one" in message(curator, "rounds=5")
    check_parts(micro("tiny_raft", curator, "rounds=6"))


def test_an_online_loss_has_no_pass_rates() -> None:
    # Claim: curators that read earlier samples would keep every prompt, without a word; those that read texts work.
    online = ("loss.name=grpo", "select=false", "train.replay=false")
    for curator in ("{curator='pass_rate_band', settings={low=0.2, high=0.8}}", "{curator='hard_first', settings={share=0.5}}"):
        assert "and the online loss 'grpo' keeps no samples" in message(*online, f"curate=[{curator}]")
        check_parts(micro("tiny_raft", f"curate=[{curator}]"))
    check_parts(micro("tiny_raft", *online, "curate=[{curator='decontaminated'}]"))


def test_a_loss_reads_what_its_selector_says() -> None:
    # Claim: wrong completions that a selector keeps are never trained on as if they were right; labels and ranks are there.
    def sets(selector: str, loss: str) -> tuple[str, ...]:
        return (f"select={{selector='{selector}'}}", f"loss.name={loss}", "train.replay=false")

    for selector in ("labelled", "ranked"):
        assert "does not read which they are" in message(*sets(selector, "nll"))
    for loss, selector in (("kto", "ranked"), ("rrhf", "labelled"), ("kto", "all_correct"), ("lipo", "best_of_n")):
        assert f"loss.name = '{loss}'" in message(*sets(selector, loss))
    for loss, selector in (("kto", "labelled"), ("apo_zero_unpaired", "labelled"), ("pro", "ranked"), ("nll", "best_of_n")):
        check_parts(micro("tiny_raft", *sets(selector, loss)))


def test_a_scorer_without_a_model_names_none() -> None:
    # Claim: a checkpoint that a scorer would ignore is refused; the default, and a scorer that uses one, are not.
    verifier, rollouts = "{scorer='exact_match'}", "{scorer='step_rollouts', checkpoint='base'}"
    text = message(f"score=[{verifier}, {{scorer='normalised_text', checkpoint='base'}}]")
    assert "'normalised_text' uses no model" in text
    check_parts(micro("tiny_raft", f"score=[{verifier}, {{scorer='normalised_text'}}, {rollouts}]"))


def test_every_rule_is_listed() -> None:
    # Claim: a rule that is written is also applied.
    written = [f for f in vars(part_rules).values() if getattr(f, "__annotations__", {}).get("return") == "Messages"]
    assert set(written) - {part_rules.refusal} == set(part_rules.RULES)
