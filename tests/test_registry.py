"""MLflow as a projection of the Round records: on SQLite, with real MLflow and campaigns written by hand."""

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import mlflow
import pyarrow as pa
import pytest

from data import labels
from data.errors import CampaignError, DamagedArtifact, StageFailed
from data.recipe import recipe as recipes
from data.rows import tables
from data.store.campaign import Campaign, Decision, Metric, Ref, Round, Verdict
from data.store.store import Job, Store, hash_folder, sha256_text
from registry import payload, projection
from registry.checkpoints import resolve
from registry.client import MLflowUnreachable, mlflow_client, tracking_uri
from registry.compare import links
from registry.sync import sync_campaign

APART = multiprocessing.get_context(
    "forkserver"
)  # processes that have imported mlflow already, and share nothing with this one
SEED = int(os.environ.get("RATCHET_TEST_SEED", "0"))
APART.set_forkserver_preload(
    ["pytest", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"]
)
PROMPTS = [
    {"prompt_id": f"{i:04x}", "messages": [{"role": "user", "content": f"{i}+{i}="}], "source": "test"} for i in range(30)
]
Files = dict[str, tuple[Any, pa.Schema | None]]  # a file's name: its content, and the schema where it is a table


# -- a campaign by hand -------------------------------------------------------------------------------------------------
def put(store: Store, stage: str, about: str, files: Files) -> Ref:
    """Commit files (a table with its schema, or anything for JSON) as an artifact; returns how a Round names it."""
    job = Job(stage=stage, version=1, settings={"about": about}, inputs={}, seed=0)
    with store.attempt(job.key) as partial:
        for name, (content, schema) in files.items():
            if schema is None:
                (partial / "payload" / name).write_text(json.dumps(content))
            else:
                tables.write(tables.from_rows(content, schema), schema, partial / "payload" / name)
        made = store.commit(job, {}, "by hand", {})
    return Ref(key=made.key, digest=made.digest)


def completions(number: int) -> list[dict[str, Any]]:
    return [
        {
            "completion_id": f"{number}-{p['prompt_id']}",
            "prompt_id": p["prompt_id"],
            "sample": 0,
            "text": str(2 * i if i % 4 < number else i),
            "token_ids": [1, 2],
            "finish_reason": "stop",
            "seed": 0,
            "engine": "by hand",
        }
        for i, p in enumerate(PROMPTS)
    ]


def scores(number: int) -> list[dict[str, Any]]:
    ids = [(row["completion_id"], row["prompt_id"]) for row in completions(number)]
    return [
        {"completion_id": c, "prompt_id": p, "value": float(i % 4 < number), "status": "ok"} for i, (c, p) in enumerate(ids)
    ]


def checkpoint(store: Store, name: str, number: int) -> Ref:
    return put(
        store, "train", f"{name} {number}", {"config.json": ({"round": number}, None), "training.json": ({"loss": 1.0}, None)}
    )


def start(home: Path, name: str = "demo", **settings: Any) -> Campaign:
    recipe = recipes.load("tiny_dpo", overrides={"rounds": 3, **settings})
    return Campaign.start(home, name, recipe)


def add_round(campaign: Campaign, decision: Decision = "promote", trained: bool = True) -> Round:
    """Finish one more round, with the artifacts a real one has."""
    store, done = campaign.store, campaign.rounds()
    number, last = len(done), done[-1] if done else None
    made = last.head if last and not trained else checkpoint(store, campaign.name, number)
    champion = last.champion if last else made
    head = champion if decision == "roll_back" else made
    artifacts = {
        labels.HELD_OUT.completions("greedy").text: put(
            store, "generate", f"{number}", {"completions.parquet": (completions(number), tables.COMPLETIONS)}
        ),
        labels.HELD_OUT.scores("greedy").text: put(
            store, "score", f"{number}", {"scores.parquet": (scores(number), tables.SCORES)}
        ),
        labels.TRAIN.text: made,
    }
    if number == 0:  # as in a real campaign: later rounds find the prompts there
        files = {"held_out.parquet": (PROMPTS, tables.PROMPTS), "check.json": ({"shared": 0}, None)}
        artifacts[labels.PREPARE.text] = put(store, "prepare", "", files)
    finished = Round(
        round=number,
        head_before=last.head if last else made,
        checkpoint=made,
        head=head,
        champion=head if decision in ("start", "promote", "roll_back") else champion,
        reference=last.head if last else None,
        artifacts=artifacts,
        metrics={
            "accuracy": Metric(value=0.25 * number, low=0.25 * number - 0.1, high=0.25 * number + 0.1, n=30, split="held_out"),
            "pass@4": Metric(value=0.3 + 0.2 * number, n=30, split="held_out"),
            "accuracy_vs_base": Metric(value=None),
        },
        facts={"pairs": 10 * number},
        verdict=Verdict(decision=decision, reason="by hand"),
        versions={"torch": "2.13.0"},
        seconds=12.5,
    )
    return campaign.record(finished)


def finish(campaign: Campaign) -> None:
    final = {
        which: {"test_accuracy": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 30, "split": "test"}}
        for which in ("base", "head")
    }
    campaign.final_path.write_text(json.dumps(final))


@pytest.fixture
def campaign(home: Path) -> Campaign:
    """Rounds 0 to 3: promoted, held without training, rolled back."""
    made = start(home)
    add_round(made, "start")
    add_round(made, "promote")
    add_round(made, "hold", trained=False)
    add_round(made, "roll_back")
    return made


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """MLflow's tables, made once: the migrations take two seconds."""
    home = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with mlflow_client(home):
            return (home / "mlflow.db").read_bytes()


@pytest.fixture
def home(tmp_path: Path, empty_database: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(empty_database)
    return tmp_path


# -- reading MLflow back ------------------------------------------------------------------------------------------------
def client(home: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=tracking_uri(home), registry_uri=tracking_uri(home))


def experiment_id(c: mlflow.MlflowClient) -> str:
    experiment = c.get_experiment_by_name("ratchet")
    assert experiment is not None
    return experiment.experiment_id


def everything(home: Path, name: str = "demo") -> tuple[dict[str, Any], dict[str, Any]]:
    """All that MLflow shows of a campaign, with run ids replaced by names: two deliveries are equal when this is."""
    c = client(home)
    found = c.search_runs([experiment_id(c)], f"tags.`ratchet.campaign` = '{name}'")
    ids = {run.info.run_id: run.info.run_name for run in found}
    shown = {run.info.run_name: _run(c, run, ids) for run in found}
    assert len(shown) == len(found), "a run was made twice"
    model = f"ratchet-{name}"
    aliases = c.get_registered_model(model).aliases
    versions = {
        v.version: (
            v.tags,
            sorted(a for a in aliases if aliases[a] == v.version),
            ids.get(v.run_id or "", "deleted"),
            v.source.replace(v.run_id, "RUN") if v.source and v.run_id else None,
        )
        for v in c.search_model_versions(f"name = '{model}'")
    }
    return shown, versions


def _run(c: mlflow.MlflowClient, run: mlflow.entities.Run, ids: dict[str, str]) -> dict[str, Any]:
    data = run.inputs.dataset_inputs if run.inputs else []
    own = {k: v for k, v in run.data.tags.items() if k not in ("ratchet.campaign_id", "mlflow.parentRunId", "ratchet.folder")}
    return {
        "tags": own | {"parent": ids.get(run.data.tags.get("mlflow.parentRunId", ""))},
        "params": run.data.params,
        "history": {k: [(m.step, m.value) for m in c.get_metric_history(run.info.run_id, k)] for k in run.data.metrics},
        "inputs": sorted((d.dataset.name, d.dataset.digest, d.tags[0].value) for d in data),
        "files": sorted(files(c, run.info.run_id)),
        "status": run.info.status,
    }


def files(c: mlflow.MlflowClient, run_id: str, below: str | None = None) -> Iterator[tuple[str, int | None]]:
    for entry in c.list_artifacts(run_id, below):
        if entry.is_dir:
            yield from files(c, run_id, entry.path)
        else:
            yield entry.path, entry.file_size


# -- claims -------------------------------------------------------------------------------------------------------------
def test_a_campaign_becomes_a_parent_run_with_a_run_per_round(home: Path, campaign: Campaign) -> None:
    # Charts overlay campaigns (step = round on the parent), and each round's page names its model, data and verdict.
    finish(campaign)
    assert sync_campaign(campaign) == [0, 1, 2, 3]
    runs, _ = everything(home)
    parent, second = runs["demo"], runs["round 001"]
    assert parent["history"]["accuracy"] == [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75)]
    assert parent["history"]["pass_at_4"][0] == (0, 0.3)
    assert parent["history"]["final_head_test_accuracy_low"] == [(0, 0.4)]
    assert "accuracy_vs_base" not in parent["history"]  # it does not apply, which is not 0
    assert parent["params"]["loss.beta"] == "0.5"
    assert parent["params"]["score.0.scorer"] == "exact_match"
    assert not any(name.startswith("hardware") for name in parent["params"])
    assert parent["status"] == "FINISHED"
    assert parent["tags"]["state"] == "done"
    assert second["tags"]["parent"] == "demo"
    assert second["history"]["accuracy_high"] == [(1, 0.35)]
    assert second["params"] == {"round": "001", "facts.pairs": "10"}
    record = campaign.rounds()[1]
    assert second["tags"]["checkpoint"] == record.checkpoint.digest
    assert second["tags"]["artifact.train"] == record.artifacts["train"].digest[:12]
    assert (
        f"| train | {record.artifacts['train'].digest[:12]} | {record.artifacts['train'].key[:12]} |"
        in second["tags"]["mlflow.note.content"]
    )
    assert ("evaluate/greedy", record.artifacts["evaluate/greedy"].digest[:36], "evaluation") in second["inputs"]
    assert ("train", record.artifacts["train"].digest[:36], "training") not in second["inputs"]  # it holds no table
    assert [path for path, _ in second["files"]] == [
        "checkpoint/pointer.json",
        "round.json",
        "samples.json",
        "tables/evaluate/greedy/completions.parquet",
        "tables/evaluate/greedy_score/scores.parquet",
        "tables/train/training.json",
    ]


def test_data_sets_are_training_or_evaluation_by_their_label(home: Path, run_micro: Callable[..., Campaign]) -> None:
    # MLflow files what every label of a real campaign says, suites and anchors among the evaluation data.
    suite = home.parent / "suite.jsonl"
    suite.write_text("".join(json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1)}) + "\n" for i in range(4)))
    judge = '{scorer="mean_logprob", name="sure", checkpoint="base", weight=0.5}'
    campaign = run_micro(
        "tiny_raft",
        "rounds=1",
        f'suites=[{{name="far", path="{suite}", score={{scorer="exact_match"}}}}]',
        f'score=[{{scorer="tests.micro:ends_even"}}, {judge}]',
        fresh=True,
    )
    c = client(home)
    runs = {run.info.run_name: run for run in c.search_runs([experiment_id(c)])}
    inputs = runs["round 001"].inputs
    assert inputs is not None
    data = {d.dataset.name: {t.key: t.value for t in d.tags} for d in inputs.dataset_inputs}
    uses = {name: tags["mlflow.data.context"] for name, tags in data.items()}
    finished = campaign.rounds()[1]
    assert uses.items() <= {(labels.read(text).mlflow, labels.read(text).use) for text in finished.artifacts}
    evaluation = ("suite/far/greedy", "anchors", "anchors/scores/sure", "judge_health/sure", "evaluate/greedy_score")
    assert {uses[name] for name in evaluation} == {"evaluation"}
    assert {uses[name] for name in ("generate", "score/sure", "reward", "select")} == {"training"}


def test_delivering_twice_changes_nothing(home: Path, campaign: Campaign) -> None:
    # No metric is doubled, no run and no version is made twice, and the second call delivers nothing.
    sync_campaign(campaign)
    before = everything(home)
    assert sync_campaign(campaign) == []
    assert everything(home) == before


def test_rounds_delivered_one_by_one_or_late_look_the_same(home: Path, campaign: Campaign) -> None:
    # An outage leaves no trace: rounds delivered as they finish equal rounds delivered together afterwards.
    later = start(home, "later")
    for decision in ("start", "promote", "hold", "roll_back"):
        add_round(later, decision, trained=decision != "hold")
        assert sync_campaign(later) == [later.rounds()[-1].round]
    sync_campaign(campaign)
    together, one_by_one = everything(home)[0], everything(home, "later")[0]
    for name in ("round 000", "round 003"):
        assert together[name]["history"] == one_by_one[name]["history"]
        assert [path for path, _ in together[name]["files"]] == [path for path, _ in one_by_one[name]["files"]]
    assert together["demo"]["history"] == one_by_one["later"]["history"]


def test_aliases_follow_the_newest_round_and_an_untrained_round_adds_no_version(home: Path, campaign: Campaign) -> None:
    # `champion` and `head` name the version with the digest the newest Round names, also when that goes back.
    rounds = campaign.rounds()
    sync_campaign(campaign)
    _, versions = everything(home)
    by_digest = {tags["ratchet.digest"]: sorted(aliases) for tags, aliases, _, _ in versions.values()}
    assert len(versions) == 3, "round 2 trained nothing"
    assert by_digest[rounds[1].checkpoint.digest] == ["champion", "head"]
    assert by_digest[rounds[3].checkpoint.digest] == []
    add_round(campaign, "hold")
    sync_campaign(campaign)
    _, versions = everything(home)
    assert sorted(aliases for _, aliases, _, _ in versions.values()) == [[], [], ["champion"], ["head"]]


def test_resolve_leads_back_to_the_checkpoint(home: Path, campaign: Campaign) -> None:
    # From MLflow's alias to the folder in the store, digests checked on the way.
    sync_campaign(campaign)
    found = resolve(home, "demo", "champion")
    assert json.loads((found.path / "config.json").read_text()) == {"round": 1}
    assert (found.digest, found.round, found.model) == (campaign.rounds()[1].checkpoint.digest, 1, "ratchet-demo")


def test_resolve_trusts_nothing_that_disagrees(home: Path, campaign: Campaign) -> None:
    # A pointer that was edited, an evicted checkpoint and an unknown alias each get an error of their own kind.
    with pytest.raises(CampaignError, match="not in MLflow yet"):
        resolve(home, "demo")
    sync_campaign(campaign)
    with pytest.raises(CampaignError, match="expected one of champion, head"):
        resolve(home, "demo", "best")
    found = resolve(home, "demo")
    campaign.store.evict(found.key)
    with pytest.raises(StageFailed, match="evicted"):
        resolve(home, "demo")
    c = client(home)
    run = c.get_model_version(found.model, found.version).run_id
    assert run is not None
    c.log_dict(run, {"key": found.key}, "checkpoint/pointer.json")
    with pytest.raises(DamagedArtifact, match="its pointer"):
        resolve(home, "demo")
    c.log_dict(run, {"round": "1", "key": found.key, "digest": sha256_text("edited")}, "checkpoint/pointer.json")
    with pytest.raises(DamagedArtifact, match="neither is trusted"):
        resolve(home, "demo")


def test_samples_are_the_same_prompts_every_round(home: Path, campaign: Campaign) -> None:
    # So that the compare view lines rounds up by prompt.
    sync_campaign(campaign)
    c = client(home)
    runs = c.search_runs([experiment_id(c)], "tags.`ratchet.kind` = 'round'")
    read = {r.info.run_name: json.loads(Path(c.download_artifacts(r.info.run_id, "samples.json")).read_text()) for r in runs}
    assert {tuple(row[0] for row in table["data"]) for table in read.values()} == {tuple(f"{i}+{i}=" for i in range(20))}
    assert read["round 001"]["columns"] == ["prompt", "completion", "score"]
    assert read["round 001"]["data"][:2] == [["0+0=", "0", 1.0], ["1+1=", "1", 0.0]]
    shown = {run.info.run_name: json.loads(run.data.tags["mlflow.loggedArtifacts"]) for run in runs}
    assert shown["round 001"] == [{"path": "samples.json", "type": "table"}]


def test_a_large_table_is_named_not_copied(home: Path, campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    # MLflow does not fill the disk: above the limit only place and digest are logged.
    monkeypatch.setattr(payload, "LARGEST", 10)
    sync_campaign(campaign)
    second = everything(home)[0]["round 001"]
    assert not any(path.endswith(".parquet") for path, _ in second["files"])
    assert len(second["inputs"]) == 2


def test_an_evicted_table_does_not_stop_the_delivery(home: Path, campaign: Campaign) -> None:
    # Keep policies delete payloads; the run still names key and digest.
    ref = campaign.rounds()[1].artifacts["evaluate/greedy"]
    campaign.store.evict(ref.key)
    sync_campaign(campaign)
    second = everything(home)[0]["round 001"]
    assert second["tags"]["artifact.evaluate/greedy"] == ref.digest[:12]
    assert "samples.json" not in dict(second["files"])


def test_settings_that_change_between_rounds_show_on_the_rounds(home: Path) -> None:
    # A schedule ([[at]]) is visible where rounds are compared.
    made = start(home, at=[{"round": 1, "set": {"loss.beta": 0.1}}])
    add_round(made, "start")
    add_round(made)
    sync_campaign(made)
    runs, _ = everything(home)
    assert [runs[name]["params"]["loss.beta"] for name in ("round 000", "round 001")] == ["0.5", "0.1"]


def test_a_campaign_that_goes_on_is_running_again(home: Path, campaign: Campaign) -> None:
    # A stopped campaign ends its parent run; a later round reopens it.
    add_round(campaign, "stop")
    sync_campaign(campaign)
    assert everything(home)[0]["demo"]["status"] == "FINISHED"
    add_round(campaign)
    assert sync_campaign(campaign) == [5]
    assert everything(home)[0]["demo"]["status"] == "RUNNING"


def test_a_deleted_run_is_delivered_again_without_doubling_the_chart(home: Path, campaign: Campaign) -> None:
    # Somebody deletes a round in the UI: it comes back, and the parent's line keeps one point per round.
    sync_campaign(campaign)
    before = everything(home)
    c = client(home)
    lost = c.search_runs([experiment_id(c)], "tags.`ratchet.round` = '3'")[0]
    c.delete_run(lost.info.run_id)
    assert sync_campaign(campaign) == [3]
    assert everything(home)[0] == before[0]


def test_a_namesake_is_another_campaign(home: Path, campaign: Campaign) -> None:
    # A campaign deleted and begun anew under its old name does not continue the old one's runs.
    sync_campaign(campaign)
    (campaign.folder / "mlflow.id").unlink()
    assert sync_campaign(campaign) == [0, 1, 2, 3]
    assert resolve(home, "demo").model.startswith("ratchet-demo-")


def test_two_copies_that_part_ways_are_told(home: Path, campaign: Campaign) -> None:
    # The same campaign with another round 3 must not pass as delivered.
    sync_campaign(campaign)
    changed = campaign.rounds()[3].model_copy(update={"facts": {"pairs": 99}})
    campaign.record(changed)
    with pytest.raises(MLflowUnreachable, match="holds another round 3"):
        sync_campaign(campaign)


def test_a_round_that_is_computed_again_is_the_same_round(home: Path, campaign: Campaign) -> None:
    # How long it took is no part of what is compared, also with the hash that older versions wrote.
    sync_campaign(campaign)
    again = campaign.rounds()[3].model_copy(update={"seconds": 99.0})
    campaign.record(again)
    assert sync_campaign(campaign) == []
    c = client(home)
    run = c.search_runs([experiment_id(c)], "tags.`ratchet.round` = '3'")[0].info.run_id
    c.set_tag(run, "ratchet.record", hashlib.sha256(again.model_dump_json().encode()).hexdigest()[:32])
    assert sync_campaign(campaign) == []
    assert c.get_run(run).data.tags["ratchet.record"] == projection.record_hash(again)


def delete_tags(c: mlflow.MlflowClient, run: mlflow.entities.Run) -> None:
    """All that a person can delete, but for the tag by which the campaign's runs are found."""
    for name in run.data.tags:
        if name not in ("ratchet.campaign_id", "mlflow.runName", "mlflow.user"):
            c.delete_tag(run.info.run_id, name)


def test_tags_that_a_person_deleted_are_written_again(home: Path, campaign: Campaign) -> None:
    # Every tag of every run is deleted: nothing stops, no run is made twice, and MLflow shows the same as before.
    sync_campaign(campaign)
    before, c = everything(home), client(home)
    for run in c.search_runs([experiment_id(c)]):
        delete_tags(c, run)
    sync_campaign(campaign)
    assert everything(home) == before


@pytest.mark.parametrize("tag", ["ratchet.kind", "ratchet.round", "ratchet.record", "mlflow.parentRunId", "ratchet.campaign"])
def test_tags_that_a_person_edited_do_no_harm(home: Path, tag: str, empty_database: bytes) -> None:
    # An edited tag is put right where code reads it; only another record's hash is told, since it may be another round.
    made = start(home)
    add_round(made, "start")
    sync_campaign(made)
    before, c = everything(home), client(home)
    for run in c.search_runs([experiment_id(c)]):
        if tag != "ratchet.record" or tag in run.data.tags:
            c.set_tag(run.info.run_id, tag, "7")
    if tag == "ratchet.record":
        with pytest.raises(MLflowUnreachable, match="holds another round 0"):
            sync_campaign(made)
        return
    sync_campaign(made)
    after = everything(home)
    for shown in (*before[0].values(), *after[0].values()):
        shown["tags"].pop("ratchet.round", None)  # nobody reads that of the campaign's own run
    assert after == before


def test_what_a_person_wrote_stays(home: Path, campaign: Campaign) -> None:
    # A description or a tag of one's own in MLflow is not overwritten by the next delivery.
    sync_campaign(campaign)
    c = client(home)
    [run] = c.search_runs([experiment_id(c)], "tags.`ratchet.round` = '1'")
    for name, text in (("mlflow.note.content", "look here"), ("mine", "x")):
        c.set_tag(run.info.run_id, name, text)
    add_round(campaign)
    assert sync_campaign(campaign) == [4]
    tags = c.get_run(run.info.run_id).data.tags
    assert (tags["mlflow.note.content"], tags["mine"]) == ("look here", "x")


def test_a_renamed_experiment_is_found_and_a_deleted_one_is_named(home: Path, campaign: Campaign) -> None:
    # Under its new name it goes on with the same runs; deleted, the message says what to do.
    sync_campaign(campaign)
    c, place = client(home), experiment_id(client(home))
    c.rename_experiment(place, "mine")
    add_round(campaign)
    assert sync_campaign(campaign) == [4]
    assert len(c.search_runs([place])) == 6
    assert f"experiments/{place}/" in links(home, ["demo"])["campaigns"]
    c.rename_experiment(place, "ratchet")
    c.delete_experiment(place)
    with pytest.raises(MLflowUnreachable, match="found it deleted; restore it in the MLflow UI"):
        sync_campaign(campaign)


def test_parameters_that_were_edited_stop_no_delivery(home: Path, campaign: Campaign) -> None:
    # MLflow refuses another value for a parameter, so one that is there is never sent again.
    sync_campaign(campaign)
    with sqlite3.connect(home / "mlflow.db") as database:
        database.execute("UPDATE params SET value = '7' WHERE key <> 'round'")
        database.execute("UPDATE runs SET status = 'RUNNING'")
    assert sync_campaign(campaign) == [0, 1, 2, 3]


def test_a_deleted_model_comes_back_with_the_next_checkpoint(home: Path, campaign: Campaign) -> None:
    # Links and deliveries go on without it; the next trained round is registered, with its aliases.
    sync_campaign(campaign)
    client(home).delete_registered_model("ratchet-demo")
    assert "None" not in str(links(home, ["demo"]))
    add_round(campaign)
    sync_campaign(campaign)
    assert resolve(home, "demo").round == 4


def tree(folder: Path) -> dict[str, str]:
    """What a folder holds; SQLite's own side files and empty locks are no content."""
    return {name: value for name, value in hash_folder(folder).items() if not name.endswith((".lock", "-wal", "-shm"))}


def test_a_moved_home_works_and_a_copy_leaves_the_original_alone(
    home: Path, campaign: Campaign, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # MLflow's database holds absolute places. After a move, and in a copy, files are written and read where the home is now.
    sync_campaign(campaign)
    place = tmp_path_factory.mktemp("100%_of'places'")
    moved = home.rename(place / "moved")
    copied = Path(shutil.copytree(moved, place / "copied"))
    home.mkdir()  # and something else now stands at the old place
    before = tree(moved)
    for new in (copied, moved):
        if new == moved:
            assert tree(moved) == before, "the copy wrote into the original"
        here = Campaign.open(new, "demo")
        add_round(here)
        assert sync_campaign(here) == [4]
        c = client(new)
        runs = c.search_runs([experiment_id(c)])
        assert len(runs) == 6
        assert {run.info.artifact_uri.split("/mlartifacts/")[0] for run in runs} == {new.as_uri()}
        for run in runs:
            assert c.list_artifacts(run.info.run_id)
        assert resolve(new, "demo").path.is_relative_to(new)
        [parent] = c.search_runs([experiment_id(c)], "tags.`ratchet.kind` = 'campaign'")
        assert parent.data.tags["ratchet.folder"] == str(here.folder)
    assert list(home.iterdir()) == []


def test_a_copy_on_a_shared_server_is_a_campaign_of_its_own(
    home: Path, campaign: Campaign, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both deliver to one MLflow. The copy gets runs of its own; without the original it is a move, which goes on with the old.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(home))
    monkeypatch.setattr("registry.sync.remote", lambda uri: True)
    sync_campaign(campaign)
    before, place = everything(home)[0], tmp_path_factory.mktemp("shared")
    for name, original_there in (("copied", True), ("moved", False)):
        shutil.copytree(home / "store", place / name / "store")
        shutil.copytree(campaign.folder, place / name / "campaigns" / "demo")
        aside = campaign.folder.rename(home / "aside") if not original_there else None
        delivered = sync_campaign(Campaign.open(place / name, "demo"))
        assert delivered == ([0, 1, 2, 3] if original_there else []), name
        if aside:
            aside.rename(campaign.folder)
    ids = {(place / name / "campaigns" / "demo" / "mlflow.id").read_text() for name in ("copied", "moved")}
    assert len(ids) == 2
    (copied,) = ids - {(campaign.folder / "mlflow.id").read_text()}
    c = client(home)
    for run in c.search_runs([experiment_id(c)], f"tags.`ratchet.campaign_id` = '{copied}'"):
        c.delete_run(run.info.run_id)
    assert everything(home)[0] == before


def test_a_home_reached_by_a_link_is_no_other_home(home: Path, campaign: Campaign, tmp_path: Path) -> None:
    # Two paths to one folder do not rewrite the database in turn.
    sync_campaign(campaign)
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(home)
    assert sync_campaign(Campaign.open(link, "demo")) == []
    c = client(home)
    assert all(run.info.artifact_uri.startswith(home.as_uri()) for run in c.search_runs([experiment_id(c)]))


def test_an_outage_is_one_clear_error(home: Path, campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    # The flow has one thing to catch, soon, and the message says what to do; afterwards everything is delivered.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(MLflowUnreachable, match=r"(?s)127\.0\.0\.1:9.*run the same command again"):
        sync_campaign(campaign)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sync_campaign(campaign) == [0, 1, 2, 3]


def test_a_broken_database_is_one_clear_error(home: Path, campaign: Campaign) -> None:
    # Not a traceback of SQLAlchemy's.
    (home / "mlflow.db").write_text("this is no database")
    with pytest.raises(MLflowUnreachable, match=r"mlflow\.db"):
        sync_campaign(campaign)


def test_a_database_that_another_program_holds_is_told_soon(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: a locked database is one message in seconds, not minutes of silence, and MLflow answers once it is free.
    monkeypatch.setattr("registry.client.LONGEST_LOCK", 0.2)
    with mlflow_client(home):
        pass
    other = sqlite3.connect(home / "mlflow.db", isolation_level=None)
    other.execute("begin exclusive")
    began = time.monotonic()
    told = r"(?s)mlflow\.db.*database is locked.*run the same command again"
    with pytest.raises(MLflowUnreachable, match=told), mlflow_client(home):
        pass
    assert time.monotonic() - began < 5
    other.close()
    with mlflow_client(home) as client:
        assert client.search_experiments()


def test_links_lead_to_the_rounds_in_order(home: Path, campaign: Campaign) -> None:
    # The compare view shows columns in the order of the URL, and cannot read one that does not begin with the runs.
    sync_campaign(campaign)
    found = links(home, ["demo"])
    c = client(home)
    runs = c.search_runs([experiment_id(c)], "tags.`ratchet.kind` = 'round'")
    places = [found["demo: rounds"].index(run.info.run_id) for run in sorted(runs, key=lambda run: run.info.run_name)]
    assert places == sorted(places)
    assert "/#/compare-runs?runs=" in found["demo: rounds"]
    assert "workflowType=machine_learning" in found["campaigns"]


@pytest.mark.minutes
def test_a_delivery_killed_at_random_moments_ends_like_one_that_was_not(
    home: Path, campaign: Campaign, empty_database: bytes
) -> None:
    # SIGKILL again and again in the middle of a delivery: whatever it left, the next call completes, and nothing is doubled.
    finish(campaign)
    calm = apart(sync_and_read, campaign)
    moments = random.Random(SEED)
    for longest in (0.4, 1.0):
        forget(campaign, empty_database)
        while not killed_while_syncing(campaign, moments.uniform(0.0, longest)):  # too late: it had ended
            forget(campaign, empty_database)
            longest /= 2
        while killed_while_syncing(campaign, moments.uniform(0.0, longest)):
            longest *= 1.4
        assert apart(sync_and_read, campaign) == calm


def test_a_kill_while_the_database_is_made_is_made_good(home: Path, campaign: Campaign) -> None:
    # MLflow makes its tables in two seconds of migrations; half of them must never pass as a database.
    (home / "mlflow.db").unlink()
    process = began_syncing(campaign)
    while not any(home.glob("mlflow.db.new*")):  # until the first table is being made, not for a while: machines differ
        assert process.is_alive()
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (home / "mlflow.db").exists()
    assert sync_campaign(campaign) == [0, 1, 2, 3]


def forget(campaign: Campaign, database: bytes) -> None:
    """Everything MLflow knows of the home is gone; the Rounds are still there."""
    shutil.rmtree(campaign.home / "mlartifacts")
    (campaign.folder / "mlflow.id").unlink()
    (campaign.home / "mlflow.db").write_bytes(database)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a process of its own: MLflow keeps a database open that this test replaces."""
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=APART) as pool:
        return pool.submit(function, *arguments).result()


def sync_and_read(campaign: Campaign) -> tuple[dict[str, Any], dict[str, Any]]:
    sync_campaign(campaign)
    return everything(campaign.home)


def killed_while_syncing(campaign: Campaign, seconds: float) -> bool:
    """Sync in a process of its own and SIGKILL it so many seconds after it began; False where it had ended by itself."""
    process = began_syncing(campaign)
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def began_syncing(campaign: Campaign) -> BaseProcess:
    ours, theirs = APART.Pipe()
    process = APART.Process(target=announce_and_sync, args=(theirs, campaign))
    process.start()
    assert ours.recv() == "began"
    return process


def announce_and_sync(pipe: Connection, campaign: Campaign) -> None:
    pipe.send("began")
    sync_campaign(campaign)
