"""Rules about the parts of a recipe: all problems in one error, each told once."""

from __future__ import annotations

import pytest

from data.errors import PartError
from flows.commands import part_rules
from flows.commands.part_rules import check_parts
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
