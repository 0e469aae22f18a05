"""The catalogue of errors: each has a type, says what was expected, found and to do, and is shown by a test."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import errors
from data.errors import (
    DamagedArtifact,
    FeatureFailed,
    ModelError,
    PartError,
    RatchetError,
    RecipeError,
    ScorerFailed,
    StageFailed,
    TableError,
    WrongUse,
)
from data.recipe.recipe import load
from data.rows import tables
from data.store.store import Store
from data.store.sweep import parse_over
from tasks.bias.observe import _values
from tasks.run import parts
from tasks.score.score import scored

ROOT = Path(__file__).parent.parent
ROOMS = ("data", "tasks", "registry", "flows")
TESTS = "\n".join(path.read_text() for path in sorted((ROOT / "tests").glob("test_*.py"))).replace("\\", "")
PHRASE = re.compile(r"[A-Za-z][\w.\-]*(?:'s)?(?: [A-Za-z][\w.\-]*){1,3}")


def trees() -> Iterator[tuple[str, ast.Module]]:
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def family() -> set[str]:
    """Names of every error class of ours, wherever it is defined."""
    known = {name for name, one in vars(errors).items() if inspect.isclass(one) and issubclass(one, RatchetError)}
    classes = [node for _, tree in trees() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while found := {n.name for n in classes if {b.id for b in n.bases if isinstance(b, ast.Name)} & known} - known:
        known |= found
    return known


def raised() -> Iterator[tuple[str, list[str]]]:
    """(place, phrases of its message) of every error of ours that is raised with words of its own."""
    ours = family()
    for place, tree in trees():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
                continue
            if getattr(node.exc.func, "id", "") not in ours:
                continue
            texts = [
                c.value for a in node.exc.args for c in ast.walk(a) if isinstance(c, ast.Constant) and isinstance(c.value, str)
            ]
            phrases = [phrase for text in texts for phrase in PHRASE.findall(text) if len(phrase) >= 9]
            if phrases:
                yield f"{place}:{node.lineno}", phrases


def shown(phrases: list[str]) -> bool:
    """Whether a test quotes a phrase, or two neighbouring words of one that are long enough to be telling."""
    pairs = [" ".join(pair) for phrase in phrases for pair in itertools.pairwise(phrase.split())]
    return any(words in TESTS for words in [*phrases, *pairs] if len(words) >= 9)


def test_every_error_of_ours_is_shown_by_a_test() -> None:
    # Claim: no message of ours is first read by a user: a test quotes every one of them.
    places = list(raised())
    assert len(places) > 60
    assert [place for place, phrases in places if not shown(phrases)] == []


def test_every_error_says_when_it_comes_and_has_an_exit_code() -> None:
    # Claim: each type documents what it is for; the user's mistakes exit with 2, everything else with 1.
    types: list[type[RatchetError]] = [RatchetError, *RatchetError.__subclasses__(), *WrongUse.__subclasses__()]
    for one in types:
        assert (inspect.getdoc(one) or "").endswith(".")
        assert one.exit_code == (2 if issubclass(one, WrongUse) else 1)


# -- what no other test happens to show ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["train.replay=true", "prompts.seed=0"], "train.replay = true needs given solutions: set prompts.seed"),
        (["rounds"], "expected a.b=value"),
    ],
)
def test_recipes_that_contradict_themselves(sets: list[str], says: str) -> None:
    # Claim: a contradiction names both sides and what to set.
    with pytest.raises(RecipeError) as refused:
        load("tiny_raft", sets)
    assert says in str(refused.value)


def test_a_sweep_over_the_same_value_twice() -> None:
    # Claim: the setting is named with what is wanted.
    with pytest.raises(RecipeError, match=r"--over seed=1,1: expected each value once"):
        parse_over("seed=1,1")


def test_model_directories_that_cannot_be_used(tmp_path: Path) -> None:
    # Claim: what is missing is named, what is there is listed, and pickled weights are refused with the reason.
    from tasks.models.models import inspect_checkpoint

    with pytest.raises(ModelError, match=r"expected config\.json of a Hugging Face model, found no files"):
        inspect_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"expected weights as \.safetensors \(pickled weights can run code\)"):
        inspect_checkpoint(tmp_path)


@pytest.fixture
def store(known_store: Path, home: Path) -> Store:
    """A store of one's own to damage."""
    shutil.copytree(known_store, home / "store")
    return Store(home / "store")


def trained(store: Store) -> Path:
    """The folder of a checkpoint."""
    return next(store.folder(key) for key in sorted(store.keys()) if store.manifest(key)["job"]["stage"] == "train")


def test_a_payload_with_another_file_in_it(store: Store) -> None:
    # Claim: damage says which artifact and which file.
    key = trained(store).name
    (store.folder(key) / "payload" / "more.txt").write_text("x")
    assert store.verify() == [f"train {key[:12]}: files added or missing: more.txt"]
    manifest = store.folder(key) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"digest": "0"}))
    with pytest.raises(DamagedArtifact, match="its digest does not match its list of files"):
        store.manifest(key)


def test_a_changed_byte(store: Store) -> None:
    # Claim: a payload whose size is right and whose bytes are not is named with its file.
    key = trained(store).name
    file = store.folder(key) / "payload" / "training.json"
    file.write_text(file.read_text().replace("{", "[", 1))
    assert store.verify() == [f"train {key[:12]}: training.json no longer matches its hash"]


def test_a_part_that_is_not_there() -> None:
    # Claim: a name no shelf has is answered with the closest one, all there are, and how to name one's own.
    with pytest.raises(
        PartError, match=r"no 'exact_mach' \(did you mean 'exact_match'\?\); expected one of .*, or package\.module:name"
    ):
        parts.find("scorers", "exact_mach")


@pytest.mark.parametrize(
    ("gives", "says"),
    [
        ([], r"scorer 'mine': expected 1 Score values, found 0; see tasks/score/scorers"),
        (None, r"scorer 'mine' failed on completion c"),
    ],
)
def test_scorers_that_break_the_rules(gives: list[object] | None, says: str) -> None:
    # Claim: a scorer of one's own that answers for too few, or raises, is named with the row.
    def mine(prompts: object, completions: object) -> list[object]:
        if gives is None:
            raise RuntimeError("no")
        return gives

    row = {"prompt_id": "p", "completion_id": "c", "text": "t", "finish_reason": "stop"}
    with pytest.raises(ScorerFailed, match=says):
        scored("mine", mine, {"p": {}}, [row], None)


def test_features_that_break_the_rules() -> None:
    # Claim: a feature of one's own that answers for too few is named with what was wanted.
    with pytest.raises(FeatureFailed, match="feature 'mine': expected 2 values, one a row, found 0"):
        _values("mine", lambda rows: [], [{}, {}], {})


def test_a_table_of_another_shape(tmp_path: Path) -> None:
    # Claim: a column of another type is refused when the table is read, with the file named.
    file = tmp_path / "scores.parquet"
    pq.write_table(pa.table({name: ["x"] for name in tables.SCORES.names}), file)
    with pytest.raises(TableError, match=r"scores\.parquet: does not fit its schema"):
        tables.read(file, tables.SCORES)


def test_a_training_that_blows_up(run_micro: Callable[..., object]) -> None:
    # Claim: a loss or a weight that is not a number ends the stage with what to change; no checkpoint is made of it.
    with pytest.raises(StageFailed, match=r"the loss is (nan|inf) at step \d\. Lower train\.learning_rate"):
        run_micro("tiny_control", "rounds=1", "train.learning_rate=1e30")
    with pytest.raises(StageFailed, match=r"ended with NaN or infinite weights\. Lower train\.learning_rate"):
        run_micro("tiny_control", "rounds=1", "train.steps=1", "train.learning_rate=1e39", name="one-step")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_checkpoint_that_blew_up_draws_nothing(known_store: Path, temperature: float, tmp_path: Path) -> None:
    # Claim: weights that give no probabilities are said to, drawn greedily or not; they are never completions.
    from safetensors.torch import load_file, save_file

    from tasks.generate.engines import Batch, Decoding
    from tasks.generate.engines.local import transformers

    model = tmp_path / "model"
    shutil.copytree(trained(Store(known_store)) / "payload", model)
    weights = {name: tensor * float("nan") for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    prompt = {"prompt_id": "p", "messages": [{"role": "user", "content": "1+1?"}]}
    with pytest.raises(StageFailed, match="the model's logits are not finite numbers"):
        list(transformers(model).sample([Batch([prompt], 0, [0])], Decoding(2, temperature, 1.0, 4)))


class NoDeployment:
    """What Prefect's client answers where no deployment is known yet."""

    def __enter__(self) -> NoDeployment:
        return self

    def __exit__(self, *error: object) -> None: ...

    def create_work_pool(self, pool: object) -> None: ...

    def read_deployment_by_name(self, name: str) -> None:
        from prefect.exceptions import ObjectNotFound

        raise ObjectNotFound(Exception(name))


def test_prefect_that_refuses_the_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    # Claim: what Prefect says against prefect.yaml reaches the person who started the services.
    from flows.service import serve

    done = subprocess.CompletedProcess([], 1, "", "bad schedule")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: done)
    monkeypatch.setattr(serve, "CHECKOUT", Path("/another/checkout"))
    monkeypatch.setattr("prefect.client.orchestration.get_client", lambda **kwargs: NoDeployment())
    with pytest.raises(errors.ServiceFailed, match=r"Prefect could not create the deployment of prefect\.yaml:\nbad schedule"):
        serve.deploy()


@pytest.mark.parametrize("command", [("verify",), ("gc",), ("lineage", "x")])
def test_nothing_there_yet(
    command: tuple[str, ...], ratchet: Callable[..., int], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Claim: a home without a store is said so, with exit code 2, and not made.
    assert ratchet(*command, "--home", home) == 2
    assert f"nothing is stored in {home} yet" in capsys.readouterr().err
    assert not home.exists()


def test_prompts_that_are_not_there(
    ratchet: Callable[..., int], home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # Claim: a path that leads nowhere is named before anything is written.
    from tests.tiny_llama import make

    model = make(tmp_path / "model")
    assert ratchet("run", "raft", "--model", model, "--prompts", tmp_path / "none.jsonl", "--home", home) == 2
    assert "none.jsonl" in capsys.readouterr().err
    assert not (home / "campaigns").exists()
