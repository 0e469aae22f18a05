"""Reward models: trained from pairs by the formula, read back by the scorer; ensembles by hand, nested, and in the key."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from math import exp, log1p
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import ModelError, PartError, StageFailed
from data.rows import tables
from data.rows.completions import Row
from data.rows.folds import FOLDS, fold_of
from data.store.campaign import Campaign, Metric
from tasks.evaluate.judge_health import _paired, agreement
from tasks.models import models
from tasks.run import parts
from tasks.run.work import Work
from tasks.score.scorers import Score
from tasks.score.scorers.ensemble import aggregate, ensemble
from tasks.score.scorers.reward_model import reward_model
from tasks.train import fit_reward
from tasks.train.fit_reward import Settings
from tests.test_train import finished, read, work_of  # noqa: F401  (finished is a fixture)

SETTINGS: dict[str, Any] = {
    "margin": False, "center": 0.0, "steps": 1, "epochs": 1.0, "batch": 8, "accumulate": 1, "learning_rate": 1e-3,
    "schedule": "constant", "warmup": 0.0, "weight_decay": 0.0, "max_length": 128, "precision": "float32",
    "checkpointing": False, "save_every": 50, "split": "rounds", "trust_remote_code": False,
}  # fmt: skip


def fitting(campaign: Campaign, folder: Path, **changes: Any) -> Work:
    """A fit_reward call on the pairs of the micro campaign."""
    work = work_of(campaign, folder)
    return Work(work.key, Settings(**SETTINGS | changes), work.inputs, 5, work.out, work.scratch, work.hardware)


def rows_of(work: Work) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    pairs = read(work.inputs["pairs"] / "pairs.parquet", tables.PAIRS)
    completions = {r["completion_id"]: r for r in read(work.inputs["completions"] / "completions.parquet", tables.COMPLETIONS)}
    prompts = {r["prompt_id"]: r for r in read(work.inputs["prompts"] / "rounds.parquet", tables.PROMPTS)}
    return pairs, completions, prompts


def test_the_loss_is_bradley_terry_with_margin_and_centring(finished: Campaign, tmp_path: Path) -> None:  # noqa: F811
    # the first step's loss, over all pairs at once, is the formula on the untrained model's own outputs
    work = fitting(finished, tmp_path / "a")
    pairs, completions, prompts = rows_of(work)
    for pair in pairs:
        pair["margin"] = 0.5
    (tmp_path / "pairs").mkdir()
    tables.write(tables.from_rows(pairs, tables.PAIRS), tables.PAIRS, tmp_path / "pairs" / "pairs.parquet")
    changed = fitting(finished, tmp_path / "b", margin=True, center=0.1, batch=len(pairs))
    work = Work(
        changed.key,
        changed.settings,
        {**changed.inputs, "pairs": tmp_path / "pairs"},
        5,
        changed.out,
        changed.scratch,
        changed.hardware,
    )
    tokenizer = models.load_tokenizer(work.inputs["checkpoint"])
    fresh = fit_reward._with_reward_output(work, tokenizer).eval()

    def value(name: str) -> float:
        row = completions[name]
        ids = models.render(tokenizer, prompts[row["prompt_id"]]["messages"]) + row["token_ids"]
        result: float = fresh(input_ids=__import__("torch").tensor([ids])).logits[0, 0].item()
        return result

    by_hand = 0.0
    for pair in pairs:
        chosen, rejected = value(pair["chosen_id"]), value(pair["rejected_id"])
        by_hand += (log1p(exp(-(chosen - rejected - 0.5))) + 0.1 * (chosen + rejected) ** 2) / len(pairs)
    fit_reward.fit_reward(work)
    log_rows = read(work.out / "training.parquet", tables.TRAINING)
    assert next(r["value"] for r in log_rows if r["metric"] == "loss") == pytest.approx(by_hand, abs=1e-5)
    assert json.loads((work.out / "training.json").read_text())["rows"] == len(pairs)


def test_pairs_that_do_not_fit(finished: Campaign, tmp_path: Path) -> None:  # noqa: F811
    # where max_length leaves no pair the stage says how many there were
    with pytest.raises(StageFailed, match=r"none of \d+ pairs fits max_length = 4 tokens"):
        fit_reward.fit_reward(fitting(finished, tmp_path, max_length=4))


def test_a_trained_reward_model_ranks_its_pairs(finished: Campaign, tmp_path: Path) -> None:  # noqa: F811
    # the checkpoint opens in the scorer, and chosen completions get more than rejected ones
    work = fitting(finished, tmp_path, steps=60, learning_rate=3e-3)
    fit_reward.fit_reward(work)
    pairs, completions, prompts = rows_of(work)
    scorer = reward_model(checkpoint=work.out, batch=7)
    listed = list(completions.values())
    scores = scorer([prompts[row["prompt_id"]] for row in listed], listed)
    value = {row["completion_id"]: score.value for row, score in zip(listed, scores, strict=True)}
    ranked = [(value[p["chosen_id"]] or 0.0) > (value[p["rejected_id"]] or 0.0) for p in pairs]
    assert sum(ranked) / len(ranked) > 0.75
    alone = scorer([prompts[listed[3]["prompt_id"]]], [listed[3]])[0].value
    assert alone == pytest.approx(scores[3].value, abs=1e-4)  # whatever it is batched with
    short = reward_model(checkpoint=work.out, max_length=8)
    assert short([prompts[listed[3]["prompt_id"]]], [listed[3]]) == [Score(None, "too_long")]


def test_a_model_with_several_outputs_is_refused(finished: Campaign, tmp_path: Path) -> None:  # noqa: F811
    # a classifier is no reward model
    work = fitting(finished, tmp_path)
    fit_reward.fit_reward(work)
    config = json.loads((work.out / "config.json").read_text())
    config["id2label"], config["label2id"] = {"0": "a", "1": "b"}, {"a": 0, "b": 1}
    (work.out / "config.json").write_text(json.dumps(config))
    with pytest.raises((ModelError, RuntimeError)):
        reward_model(checkpoint=work.out)


BY_REWARD = (
    "gold=train",
    'score=[{scorer="tests.micro:ends_even", weight=0.0}, {scorer="reward_model", checkpoint="trained"}]',
    "select={selector='best_of_n'}", "train.replay=false", "fit_reward.steps=3", "fit_reward.batch=8", "evaluate.samples=0",
    "probe.samples=0", "health.samples=1",
)  # fmt: skip


@pytest.mark.slow
def test_a_round_fits_its_own_reward_model(run_micro: Any) -> None:
    # checkpoint = "trained": on the verifier's pairs of this round, from checkpoint 0, anew each round; it then chooses
    campaign = run_micro("tiny_raft", *BY_REWARD)
    first, second = campaign.rounds()[1:]
    assert first.artifacts["fit_reward"] != second.artifacts["fit_reward"]
    for made in (first, second):
        inputs = campaign.store.manifest(made.artifacts["fit_reward"].key)["input_keys"]
        assert inputs["checkpoint"] == campaign.rounds()[0].checkpoint.key
        assert inputs["completions"] == made.artifacts["generate"].key
        asked = campaign.store.manifest(made.artifacts["score/reward_model"].key)["input_keys"]["checkpoint"]
        assert asked == made.artifacts["fit_reward"].key
        folder = {name: campaign.store.folder(made.artifacts[name].key) / "payload" for name in made.artifacts}
        value = {r["completion_id"]: r["value"] for r in read(folder["score/reward_model"] / "scores.parquet", tables.SCORES)}
        verdict = {
            r["completion_id"]: r["value"]
            for r in read(folder["score/tests.micro:ends_even"] / "scores.parquet", tables.SCORES)
        }
        pairs = read(folder["fit_reward/pairs"] / "pairs.parquet", tables.PAIRS)
        assert {(verdict[p["chosen_id"]], verdict[p["rejected_id"]]) for p in pairs} == {(1.0, 0.0)}
        rows = read(folder["generate"] / "completions.parquet", tables.COMPLETIONS)
        for row in read(folder["select"] / "selected.parquet", tables.SELECTED):
            rivals = [
                value[r["completion_id"]] for r in rows if r["prompt_id"] == row["prompt_id"] and r["finish_reason"] == "stop"
            ]
            assert value[row["completion_id"]] == max(rivals)
    assert any(name.startswith("judge/reward_model/") for name in first.metrics)  # its health is watched as any judge's


def coin(prompts: Sequence[Row], completions: Sequence[Row], *, seed: int = 0) -> list[Score]:
    """Verdicts that are independent of the text."""
    return [Score(float(sha256(f"{seed}{row['completion_id']}".encode()).digest()[0] % 2)) for row in completions]


def is_short(prompts: Sequence[Row], completions: Sequence[Row]) -> list[Score]:
    """Verdicts that a small model can read off the text."""
    return [Score(float(len(row["text"]) <= 16)) for row in completions]


LEARNING = (  # so many steps that a model remembers its pairs
    "rounds=1", "fit_reward.steps=300", "fit_reward.batch=32", "fit_reward.learning_rate=0.005", "prompts.rounds=64",
    "prompts.per_round=64", "generate.n=8", "health.samples=0",
)  # fmt: skip


def health(run_micro: Any, verifier: str, settings: str, name: str) -> tuple[Metric, Campaign]:
    """The within-prompt AUROC of a reward model that was fitted on a verifier's verdicts."""
    fitted = "{scorer='reward_model', checkpoint='trained'}"
    judges = f"score=[{{scorer='{verifier}', weight=0.0, settings={settings}}}, {fitted}]"
    campaign = run_micro("tiny_raft", *BY_REWARD, *LEARNING, judges, name=name)
    return campaign.rounds()[1].metrics["judge/reward_model/within_prompt_auroc"], campaign


@pytest.mark.minutes
def test_health_is_of_prompts_that_the_model_did_not_see(run_micro: Any) -> None:
    # Claim: on verdicts by coin flips the within-prompt AUROC is .5 within its interval, while the round's own model remembers
    # them. So the alarm about a judge that ranks by chance is raised where it should be. A real signal is seen as one.
    # 4 seeds, decided beforehand; one interval of 95% may miss.
    found = [health(run_micro, "tests.test_reward_model:coin", f"{{seed={seed}}}", f"coin-{seed}") for seed in range(4)]
    values, lows, highs = (np.array([getattr(metric, name) for metric, _ in found]) for name in ("value", "low", "high"))
    assert ((lows <= 0.5) & (highs >= 0.5)).sum() >= 3
    assert abs(values.mean() - 0.5) < 0.03
    for high, (_, campaign) in zip(highs, found, strict=True):
        assert remembered_auroc(campaign) > 0.6
        raised = [alarm for alarm in campaign.rounds()[1].alarms if alarm.source == "judge"]
        assert bool(raised) == (high < 0.55)
    signal, campaign = health(run_micro, "tests.test_reward_model:is_short", "{}", "signal")
    assert signal.low is not None
    assert signal.low > 0.6
    assert not [alarm for alarm in campaign.rounds()[1].alarms if alarm.source == "judge"]


def remembered_auroc(campaign: Campaign) -> float:
    """The same metric of the round's own reward model on what it was fitted on."""
    made = campaign.rounds()[1].artifacts
    judged, verdicts = (
        read(campaign.store.folder(made[label].key) / "payload" / "scores.parquet", tables.SCORES)
        for label in ("score/reward_model", "score/tests.test_reward_model:coin")
    )
    within = next(row for row in agreement(_paired(judged, verdicts)) if row["metric"] == "within_prompt_auroc")
    return float(within["value"])


def test_no_fold_scores_a_prompt_that_it_was_fitted_on(run_micro: Any) -> None:
    # Claim: the pairs of a prompt are fitted on by the other fold's model alone, which scores it; every completion has a score.
    campaign = run_micro("tiny_raft", *BY_REWARD, "rounds=1")
    made = campaign.rounds()[1].artifacts
    folder = {name: campaign.store.folder(ref.key) / "payload" for name, ref in made.items()}
    pairs = read(folder["fit_reward/pairs"] / "pairs.parquet", tables.PAIRS)
    for fold in range(FOLDS):
        fitted = json.loads((folder[f"fit_reward/fold/{fold}"] / "training.json").read_text())["rows"]
        assert fitted == sum(fold_of(pair["prompt_id"]) != fold for pair in pairs) > 0
    scored = read(folder["judge_health/reward_model/out_of_fold"] / "scores.parquet", tables.SCORES)
    drawn = read(folder["generate"] / "completions.parquet", tables.COMPLETIONS)
    assert [row["completion_id"] for row in scored] == [row["completion_id"] for row in drawn]
    rows = {row["prompt_id"]: row for row in read(folder["draw"] / "rounds.parquet", tables.PROMPTS)}
    for fold in range(FOLDS):
        members = [row for row in drawn if fold_of(row["prompt_id"]) == fold]
        model = reward_model(checkpoint=folder[f"fit_reward/fold/{fold}"])
        expected = [score.value for score in model([rows[row["prompt_id"]] for row in members], members)]
        assert [row["value"] for row in scored if fold_of(row["prompt_id"]) == fold] == pytest.approx(expected, abs=1e-5)
    assert campaign.store.manifest(made["judge_health/reward_model"].key)["input_keys"]["judged"] == (
        made["judge_health/reward_model/out_of_fold"].key
    )


def test_folds_are_of_equal_size() -> None:
    # Claim: a fold has its share of 10,000 prompts, to within four standard errors.
    folds = [fold_of(f"prompt {number}") for number in range(10_000)]
    assert all(abs(folds.count(fold) - 10_000 / FOLDS) < 4 * 50 for fold in range(FOLDS))


def test_too_few_pairs_for_a_reward_model_hold_the_round(run_micro: Any) -> None:
    # nobody's guess takes its place: the scores say not_fitted, nothing has a reward, the head stays
    campaign = run_micro("tiny_raft", *BY_REWARD, "train.minimum=500", "rounds=1")
    made = campaign.rounds()[1]
    assert "fit_reward" not in made.artifacts
    folder = campaign.store.folder(made.artifacts["score/reward_model"].key) / "payload"
    assert {r["status"] for r in read(folder / "scores.parquet", tables.SCORES)} == {"not_fitted"}
    assert made.verdict.decision == "hold"
    assert made.verdict.reason.startswith("Nothing was trained, so the head does not change: 0 selected completions")


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (
            ("score.1.scorer=judge", "score.1.settings={template='additive5'}"),
            "a reward model with one output, which 'judge' cannot use",
        ),
        (("fit_reward.pairer=given_vs_sample",), "compares completions by origin; use one that compares rewards"),
        (("score.1.checkpoint=",), "asks a model; set its checkpoint to"),
    ],
)
def test_what_cannot_be_fitted_is_refused(sets: tuple[str, ...], says: str) -> None:
    # before anything runs
    from flows.commands.part_rules import check_parts
    from tests.micro import micro

    with pytest.raises(PartError, match=says):
        check_parts(micro("tiny_raft", *BY_REWARD, *sets))


def test_ensembles_by_hand() -> None:
    # 1, 2, 6: mean 3, median 2, min 1; below the mean lack 2 and 1, so the lower semideviation is sqrt(5 / 3)
    values = [1.0, 2.0, 6.0]
    assert aggregate(values, "mean") == 3.0
    assert aggregate(values, "median") == 2.0
    assert aggregate(values, "min") == 1.0
    assert aggregate(values, "pessimistic", 0.5) == pytest.approx(3 - 0.5 * (5 / 3) ** 0.5)


def member(text: str) -> dict[str, Any]:
    return {"scorer": "format", "settings": {"pattern": text}}


def test_ensembles_nest_and_enter_the_key() -> None:
    # an ensemble of an ensemble; parts() names every member, so that a new version of one makes a new key; mistakes are early
    inner = {"scorer": "ensemble", "settings": {"members": [member("a.*"), member(".*b")], "how": "min"}}
    made = parts.configure("scorers", "ensemble", {"members": [inner, member(".*")], "how": "mean"}, workers=1)
    prompt = {"prompt_id": "p", "messages": [], "answer": "1"}
    rows = [{"completion_id": t, "prompt_id": "p", "text": t, "finish_reason": "stop"} for t in ("ab", "ac")]
    half = 0.5**0.5  # two values that differ, standardised: the inner minimum is 0 and -half, then half and -half again
    assert [score.value for score in made([prompt, prompt], rows)] == pytest.approx([half / 2, -half / 2])
    assert ensemble.parts({"members": [inner, member(".*")]}) == [("scorers", "ensemble"), *[("scorers", "format")] * 3]
    judge = {"scorer": "mean_logprob"}
    for wrong, says in (
        ({"scorer": "format", "weight": 2}, "expected members as { scorer = 'NAME'.*found {'scorer': 'format', 'weight': 2}"),
        (judge, r"member 'mean_logprob' needs checkpoint, which only a \[\[score\]\] of its own gets"),
        ({"scorer": "reward_model"}, "checkpoint"),
    ):
        with pytest.raises(PartError, match=says):
            parts.configure("scorers", "ensemble", {"members": [member("a"), wrong]}, workers=1)
