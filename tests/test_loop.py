"""The loop end to end on micro campaigns: every stage for real, records, reuse, empty sets, the gate, a person's answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data.errors import ScorerFailed
from data.store.campaign import Campaign
from tasks.score.scorers import Score
from tests.micro import SETS

ROOT = Path(__file__).parent.parent
Run = Callable[..., Campaign]


def digests(campaign: Campaign) -> list[dict[str, str]]:
    return [{label: ref.digest for label, ref in r.artifacts.items()} for r in campaign.rounds()]


def manifests(campaign: Campaign) -> dict[str, int]:
    store = campaign.store
    return {key: (store.folder(key) / "manifest.json").stat().st_mtime_ns for key in store.keys()}


@pytest.mark.parametrize("source", [pytest.param("tiny_raft", marks=pytest.mark.minutes), "tiny_dpo", "tiny_control"])
def test_campaign_runs_and_records(source: str, run_micro: Run) -> None:
    # Claim: each shipped tiny recipe runs all its rounds for real, and each Round names model, reference, data and metrics.
    campaign = run_micro(source)
    rounds = campaign.rounds()
    assert [r.round for r in rounds] == [0, 1, 2]
    assert rounds[0].verdict.decision == "start"
    assert "aa_difference" in rounds[0].metrics
    for r in rounds[1:]:
        assert r.verdict.reason
        assert {"accuracy", "pass@1", "pass@2", "mean_tokens", "accuracy_vs_base", "accuracy_vs_champion"} <= r.metrics.keys()
        assert r.metrics["accuracy"].split == "held_out"
        assert ("train" in r.artifacts) == (r.start_from is not None)
        assert (r.reference is not None) == (source == "tiny_dpo" and "train" in r.artifacts)
        manifest = campaign.store.manifest(r.artifacts["train"].key)
        assert manifest["job"]["inputs"]["checkpoint"] == r.start_from.digest  # type: ignore[union-attr]
    assert campaign.state == "done"
    assert set(campaign.final()) == {"base", "champion", "head", "last"}  # type: ignore[arg-type]


@pytest.mark.parametrize(("rounds", "fresh"), [(1, False), pytest.param(2, True, marks=pytest.mark.minutes)])
def test_two_homes_give_equal_digests(run_micro: Run, tmp_path: Path, rounds: int, fresh: bool) -> None:
    # Claim: on CPU in fp32 on one thread the same recipe gives byte-identical artifacts, in another home too.
    first = run_micro("tiny_dpo", f"rounds={rounds}", place=tmp_path / "a", fresh=fresh)
    second = run_micro("tiny_dpo", f"rounds={rounds}", place=tmp_path / "b", fresh=fresh)
    assert first.store.root != second.store.root
    assert digests(first) == digests(second)


@pytest.mark.minutes
def test_second_campaign_shares_first_stages(run_micro: Run) -> None:
    # Claim: a campaign that differs from round 2 on reuses round 0 and 1 of another one; nothing of them is made again.
    first = run_micro("tiny_raft", name="one")
    before = manifests(first)
    second = run_micro("tiny_raft", 'at=[{round=2, set={"train.learning_rate"=1e-4}}]', name="two")
    assert digests(second)[:2] == digests(first)[:2]
    assert digests(second)[2]["train"] != digests(first)[2]["train"]
    assert {key: before[key] for key in before} == {key: manifests(second)[key] for key in before}


def test_longer_campaign_shares_all_rounds(run_micro: Run) -> None:
    # Claim: the number of rounds enters no key, so a longer campaign reuses every round of the shorter one.
    short = run_micro("tiny_raft", "rounds=1", name="short")
    long = run_micro("tiny_raft", "rounds=2", name="long")
    assert digests(long)[:2] == digests(short)


def test_arms_of_one_seed_share_their_base_and_first_sampling(run_micro: Run) -> None:
    # Claim: recipes that differ in method alone share checkpoint 0, its measurement and the first sampling, by key.
    raft, dpo = (run_micro(source, "rounds=1", name=source).rounds() for source in ("tiny_raft", "tiny_dpo"))
    assert raft[0].artifacts == dpo[0].artifacts
    for label in ("draw", "generate", "reward"):
        assert raft[1].artifacts[label] == dpo[1].artifacts[label]


def test_rerun_of_finished_campaign_recomputes_nothing(run_micro: Run, home: Path) -> None:
    # Claim: the same command on a finished campaign recomputes nothing and imports nothing that takes seconds.
    campaign = run_micro("tiny_raft", name="micro")
    before = manifests(campaign)
    sets = [part for item in (*SETS, "hardware.prefect=false") for part in ("--set", item)]
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "flows.cli",
        "run",
        "tiny_raft",
        "--name",
        "micro",
        "--home",
        str(home),
    ]
    command += sets
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert manifests(campaign) == before
    assert "round 1" not in done.stderr
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "prefect", "mlflow", "transformers", "trl", "vllm"}


@pytest.mark.usefixtures("prefect")
def test_under_prefect_reused_stages_show_as_cached(home: Path) -> None:
    # Claim: a campaign is one Prefect flow run with its own name; tasks are named by round; reused stages end as Cached.
    from flows.service import environment

    environment.prepare(home)
    import anyio
    from prefect.client.orchestration import get_client

    from flows.round.improve import improve
    from tests.micro import micro

    for name in ("first", "second"):
        Campaign.start(home, name, micro("tiny_raft", "rounds=1", prefect=True))
        assert improve(name, str(home)) == "done"

    async def read() -> tuple[dict[str, Any], dict[str, list[tuple[str, str | None]]]]:
        async with get_client() as client:
            flow_runs = {run.name: run for run in await client.read_flow_runs() if run.name in ("first", "second")}
            names = {run.id: name for name, run in flow_runs.items()}
            tasks: dict[str, list[tuple[str, str | None]]] = {name: [] for name in flow_runs}
            for run in await client.read_task_runs():
                if run.flow_run_id in names:  # other tests share the server
                    tasks[names[run.flow_run_id]].append((run.name, run.state_name))
        return flow_runs, tasks

    deadline = time.time() + 60
    while True:  # Prefect records task runs from events, a moment later
        flow_runs, tasks = anyio.run(read)
        if {state for _, state in tasks["second"]} == {"Cached"} and len(tasks["second"]) == len(tasks["first"]):
            break
        assert time.time() < deadline, tasks
        time.sleep(0.5)
    assert all(flow_runs[name].state_name == "Completed" for name in ("first", "second"))
    assert ("round 1: train", "Completed") in tasks["first"]


def silent(prompts: Sequence[Any], completions: Sequence[Any]) -> list[Score]:
    """A scorer that never applies."""
    return [Score(None, "no_answer") for _ in completions]


def wrong(prompts: Sequence[Any], completions: Sequence[Any]) -> list[Score]:
    """A scorer that finds everything wrong."""
    return [Score(0.0) for _ in completions]


def wellformed(prompts: Sequence[Any], completions: Sequence[Any]) -> list[Score]:
    """Right where there is one answer mark and some working before it; a ruined model does not manage that."""
    return [Score(float(row["text"].count("#") == 1 and len(row["text"]) > 8)) for row in completions]


def broken(prompts: Sequence[Any], completions: Sequence[Any]) -> list[Score]:
    """A scorer that cannot cope with a text that is not empty."""
    if any(row["text"] for row in completions):
        raise ZeroDivisionError("planted")
    return [Score(1.0) for _ in completions]


@pytest.mark.parametrize("source", ["tiny_raft", "tiny_dpo"])
@pytest.mark.parametrize("scorer", ["silent", "wrong"])
def test_empty_set_ends_the_round_with_a_reason(source: str, scorer: str, run_micro: Run) -> None:
    # Claim: a round without anything to train on holds, says why with counts, keeps the head, and the campaign still ends.
    campaign = run_micro(source, f'score=[{{scorer="tests.test_loop:{scorer}"}}]', "rounds=1")
    last = campaign.rounds()[-1]
    assert last.verdict.decision == "hold"
    assert "0 " in last.verdict.reason
    assert "32 prompts" in last.verdict.reason
    assert last.head == last.head_before
    assert "train" not in last.artifacts
    assert campaign.state == "done"


def test_scorer_that_raises_stops_the_round_and_names_the_row(run_micro: Run) -> None:
    # Claim: an exception in a scorer is never a score; the error names the completion.
    with pytest.raises(ScorerFailed, match=r"completion [0-9a-f]{24} of prompt [0-9a-f]{24}.*planted"):
        run_micro("tiny_raft", 'score=[{scorer="tests.test_loop:broken"}]', "rounds=1")


def test_gate_that_stops(ratchet: Callable[..., int], run_micro: Run, home: Path) -> None:
    # Claim: gate.on_worse = 'stop' ends the campaign at once with exit code 3, head back on the champion.
    ruin = ("train.learning_rate=1.0", "train.steps=20", 'score=[{scorer="tests.test_loop:wellformed"}]')
    campaign = run_micro("tiny_raft", "gate.on_worse=stop", *ruin)
    last = campaign.rounds()[-1]
    assert last.verdict.decision == "stop", last.verdict
    assert last.round == 1
    assert last.head == last.champion == campaign.rounds()[0].checkpoint
    assert ratchet("resume", "micro", "--home", home) == 3


def test_gate_that_asks_waits_for_a_person(ratchet: Callable[..., int], run_micro: Run, home: Path) -> None:
    # Claim: an asking gate leaves the round open (exit code 4); the answer finishes it without computing anything again.
    asks = ("gate.on_better=ask", "gate.on_unclear=ask", "gate.on_worse=ask", "rounds=1")
    campaign = run_micro("tiny_raft", *asks)
    assert campaign.state == "waiting"
    assert len(campaign.rounds()) == 1
    before = manifests(campaign)
    assert ratchet("resume", "micro", "--home", home) == 4
    assert ratchet("resume", "micro", "--home", home, "--decide", "perhaps") == 2
    assert ratchet("resume", "micro", "--home", home, "--decide", "promote") == 0
    last = campaign.rounds()[-1]
    assert last.verdict.decision == "promote"
    assert "decided by a person" in last.verdict.reason
    assert {key: manifests(campaign)[key] for key in before} == before


@pytest.mark.minutes
def test_keep_best_and_last_evicts_weights_and_a_fork_still_works(run_micro: Run) -> None:
    # Claim: keep = best+last frees other rounds' weights but keeps manifests; a campaign that needs one makes the same again.
    open_gate = "gate.rule=always_promote"
    kept = run_micro("tiny_raft", "rounds=3", "keep.checkpoints=best+last", open_gate, name="kept")
    rounds = kept.rounds()
    absent = [kept.store.find(r.checkpoint.key).absent for r in rounds]  # type: ignore[union-attr]
    assert absent == ["", "evicted", "evicted", ""]
    fork = run_micro("tiny_raft", "rounds=3", open_gate, 'at=[{round=3, set={"train.learning_rate"=1e-4}}]', name="fork")
    assert digests(fork)[:3] == digests(kept)[:3]
    assert fork.rounds()[-1].checkpoint.digest != rounds[-1].checkpoint.digest


@pytest.mark.slow
def test_isolated_stages_give_the_same_bytes(run_micro: Run, tmp_path: Path) -> None:
    # Claim: a stage in a process of its own (as on a GPU) gives the bytes it gives inline.
    inline = run_micro("tiny_raft", "rounds=1", place=tmp_path / "a")
    recipe_of = json.loads((inline.folder / "recipe.json").read_text())
    assert recipe_of["hardware"]["isolation"] == "auto"
    from flows.round.stages import Stages
    from tasks.run.stage import perform

    hardware = inline.recipe.hardware.model_copy(update={"isolation": "process"})
    apart = Campaign(tmp_path / "b", "apart", inline.recipe)
    stages = Stages(apart, 0, lambda _, s, c, i, seed, around: perform(apart.store, s, c, i, seed=seed, hardware=hardware))
    base = stages.base(stages.prepare())
    assert base.digest == inline.rounds()[0].checkpoint.digest


MINUTES = [pytest.param(stage, marks=pytest.mark.minutes) for stage in ("pair", "evaluate/greedy_score")]


@pytest.mark.parametrize("stage", ["generate", "train", *MINUTES])
def test_damage_is_noticed_and_healed(stage: str, run_micro: Run, home: Path) -> None:
    # Claim: a stored file that was changed behind our back is never used: it is set aside and made again, with equal digests.
    campaign = run_micro("tiny_dpo", "rounds=1", name="micro")
    known = digests(campaign)
    payload = campaign.store.folder(campaign.rounds()[1].artifacts[stage].key) / "payload"
    victim = next(p for p in sorted(payload.iterdir()) if p.suffix in (".parquet", ".safetensors"))
    if victim.suffix == ".parquet":  # half the rows of a table gone, and still a valid table
        table = pq.read_table(victim)
        pq.write_table(table.slice(0, table.num_rows // 2), victim)
    else:
        victim.write_bytes(victim.read_bytes()[:-100])
    longer = run_micro("tiny_dpo", "rounds=2", name="longer")
    assert digests(longer)[:2] == known
    assert any((campaign.store.root / "quarantine").iterdir())
    assert campaign.store.verify() == []


@pytest.mark.minutes
def test_torn_manifest_of_a_finished_round_is_healed(run_micro: Run) -> None:
    # Claim: where even the manifest of a needed artifact is torn, finished rounds are gone through again and come out equal.
    campaign = run_micro("tiny_raft")
    known = digests(campaign)
    (campaign.folder / "rounds" / "002.json").unlink()  # as if killed in round 2
    campaign.final_path.unlink()
    manifest = campaign.store.folder(campaign.rounds()[1].head.key) / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    assert run_micro("tiny_raft").state == "done"
    assert digests(campaign) == known


def test_every_checkpoint_is_measured_as_the_first_was(run_micro: Any) -> None:
    # Claim: a later round may sample with a longer window; held-out keeps its own, or cut answers would count as gain.
    at = 'at=[{round=2, set={"generate.max_tokens"=60, "train.max_length"=512}}]'
    campaign = run_micro("tiny_raft", "evaluate.samples=0", at)
    settings = [
        [campaign.store.manifest(r.artifacts[label].key)["job"]["settings"]["max_tokens"] for r in campaign.rounds()[first:]]
        for label, first in (("evaluate/greedy", 0), ("generate", 1))
    ]
    assert settings == [[48, 48, 48], [48, 60]]
