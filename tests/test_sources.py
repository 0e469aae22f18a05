"""Where records come from: folders and data sets give what a file of the same rows gives, and are known by what they say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from data.errors import PromptsError
from data.recipe.settings import Columns, Prompts
from data.rows import records, sources

ROWS = [{"question": f"{i}+{i}?", "answer": str(2 * i), "tags": ["sum", str(i)]} for i in range(5)]


def saved(folder: Path) -> Path:
    datasets.Dataset.from_list(ROWS).save_to_disk(folder)
    return folder


def saved_with_splits(folder: Path) -> Path:
    made = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:2])}
    datasets.DatasetDict(made).save_to_disk(folder)
    return Path(f"{folder}[train]")


def of_jsonl(folder: Path) -> Path:
    folder.mkdir()
    for split, rows in (("train", ROWS), ("test", ROWS[:2])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Path(f"{folder}[train]")


def of_parquet(folder: Path) -> Path:
    folder.mkdir()
    datasets.Dataset.from_list(ROWS).to_parquet(folder / "some.parquet")
    return folder


MAKERS = (saved, saved_with_splits, of_jsonl, of_parquet)


@pytest.mark.parametrize("make", MAKERS)
def test_a_folder_gives_what_a_file_gives(make: Callable[[Path], Path], tmp_path: Path) -> None:
    # rows in order, whatever the form; the place names source and row; the digest is that of the rows, wherever they lie
    source = make(tmp_path / "sums")
    found = list(sources.read(source))
    assert [row for _, row in found] == ROWS
    assert found[1][0] == f"{source.name}: row 2"
    other = saved(tmp_path / "other")
    assert sources.digest(source) == sources.digest(other)
    assert sources.digest(source) != sources.digest(saved_with_splits(tmp_path / "more").parent / "more[test]")
    assert sources.absolute(source) == str(source)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hugging Face's cache with the data set ratchet-tests/sums in it, as a download would leave it."""
    import huggingface_hub.constants

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    datasets.load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "plain"))
    (info,) = (tmp_path / "plain").rglob("dataset_info.json")
    place = tmp_path / "datasets" / "ratchet-tests___sums" / "main" / "0.0.0" / "f00d"
    shutil.copytree(info.parent, place)
    (place / "json-train.arrow").rename(place / "sums-train.arrow")
    known = json.loads(info.read_text()) | {"config_name": "main", "dataset_name": "sums"}
    (place / "dataset_info.json").write_text(json.dumps(known))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path))
    return tmp_path


def test_a_data_set_of_the_hub_is_read_from_the_cache(hub: Path) -> None:
    # offline; with or without a configuration and a split; known by its rows
    for name in ("hf:ratchet-tests/sums[train]", "hf:ratchet-tests/sums:main[train]", "hf:ratchet-tests/sums"):
        assert [row for _, row in sources.read(Path(name))] == ROWS
        assert sources.absolute(Path(name)) == name
    assert next(sources.read(Path("hf:ratchet-tests/sums:main[train]")))[0] == "sums:main[train]: row 1"
    assert sources.digest(Path("hf:ratchet-tests/sums")) == sources.digest(saved(hub / "sums"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf:ratchet-tests/none[train]", "expected a data set in Hugging Face's cache .*set HF_HUB_OFFLINE=0 to download it"),
        ("hf:ratchet-tests/sums[test]", "expected a data set in Hugging Face's cache .*test"),
        ("hf:[train]", "expected hf:name.split. or hf:name:config.split."),
    ],
)
def test_a_data_set_that_is_not_there(name: str, says: str, hub: Path) -> None:
    # the error says which data set was looked for, where, and how to get it
    with pytest.raises(PromptsError, match=says):
        list(sources.read(Path(name)))


def test_folders_that_will_not_do(tmp_path: Path) -> None:
    # an open choice of splits, a split that is not there, nothing to read, nothing at all
    both = saved_with_splits(tmp_path / "sums").parent / "sums"
    with pytest.raises(PromptsError, match=r"expected one of its splits, as in .*sums\[train\], found the splits train, test"):
        list(sources.read(both))
    with pytest.raises(PromptsError, match="found the splits train, test"):
        list(sources.read(Path(f"{both}[dev]")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(PromptsError, match="expected a folder of Parquet, JSONL or CSV files"):
        list(sources.read(tmp_path / "empty"))
    (tmp_path / "mixed").mkdir()
    for name in ("a", "b"):
        (tmp_path / "mixed" / f"{name}.jsonl").write_text(json.dumps({name: "1?"}) + "\n")
    with pytest.raises(PromptsError, match=r"expected records, found what `datasets` cannot read: .*column names") as refused:
        list(sources.read(tmp_path / "mixed"))
    assert "\n" not in str(refused.value)
    with pytest.raises(PromptsError, match=r"expected a prompts file, found nothing at .*gone\[train\]"):
        sources.digest(tmp_path / "gone[train]")


def test_a_folder_runs_through_the_command_line(tmp_path: Path, ratchet: Callable[..., int], home: Path) -> None:
    # `--prompts FOLDER[split]` with a column map: scored, selected, measured
    rows = [{"query": f"{i}+{i}?", "gold": str(2 * i), "response": [f"#{2 * i}", "#0"]} for i in range(1, 9)]
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "sums")
    given = ("--prompts", f"{tmp_path / 'sums'}[train]", "--map", "prompt=query,completion=response,answer=gold")
    assert ratchet("data", "raft", "--home", home, *given) == 0


# -- conversations and preferences --------------------------------------------------------------------------------------


def talk(*contents: str, system: str = "") -> list[dict[str, str]]:
    """A conversation that begins with the user, after the system if there is one."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def test_preferences_of_several_turns(tmp_path: Path) -> None:
    # a system message and three turns before the compared answers; as a data set gives them; columns may be nested
    chosen, rejected = (
        talk("1+1?", "2", "sure?", "yes", system="Be brief."),
        talk("1+1?", "2", "sure?", "no", system="Be brief."),
    )
    datasets.Dataset.from_list([{"pair": {"better": chosen, "worse": rejected}}]).save_to_disk(tmp_path / "pairs")
    ((place, record),) = sources.read(tmp_path / "pairs")
    settings = Prompts(map=Columns(chosen="pair.better", rejected="pair.worse"))
    assert records.messages_of(settings, record, place) == chosen[:-1]
    found = records.completions_of(settings, record, place)
    assert [(one.text, one.given["preferred"]) for one in found] == [("yes", True), ("no", False)]


def test_a_conversation_that_begins_otherwise_is_no_completion() -> None:
    # what was answered must be what was asked: a prompt column that holds the first turn alone, sides that part earlier
    record = {"prompt": "1+1?", "chosen": talk("1+1?", "2", "sure?", "yes"), "rejected": talk("1+1?", "2", "sure?", "no")}
    with pytest.raises(
        PromptsError, match=r"row 1: column 'chosen': .*with another prompt \('sure\?'\); set prompts\.map\.prompt"
    ):
        records.completions_of(Prompts(), record, "row 1")
    whole = Prompts(map=Columns(prompt="chosen"))
    assert [one.text for one in records.completions_of(whole, record, "row 1")] == ["yes", "no"]
    with pytest.raises(PromptsError, match=r"column 'rejected': .*with another prompt"):
        records.completions_of(Prompts(), {"chosen": talk("1+1?", "2"), "rejected": talk("1+2?", "2")}, "row 1")
    asked = Prompts(template="Q: {prompt}")
    assert records.completions_of(asked, {"prompt": "1+1?", "completion": talk("1+1?", "2")}, "row 1")[0].text == "2"


def test_two_system_messages_are_refused() -> None:
    # chat templates take one
    record = {"messages": talk("1+1?", system="Be brief."), "rules": "Be long."}
    with pytest.raises(PromptsError, match="expected one system message, found one in 'messages' and one in 'rules'"):
        records.messages_of(Prompts(map=Columns(system="rules")), record, "row 1")
