"""Where records come from: a file of one's own, a folder, or a data set of Hugging Face's; and a digest of what they say.

A folder may hold Parquet, JSONL or CSV files, or what `save_to_disk` left. `hf:name[split]` (`hf:name:config[split]`) is read
from Hugging Face's cache; HF_HUB_OFFLINE=0 allows to fetch it. A split may be left out where there is one only.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import PromptsError
from data.store.store import sha256_file

Record = Mapping[str, Any]

HUB = re.compile(r"hf:(?P<name>[^:\[\]]+)(:(?P<config>[^\[\]]+))?(\[(?P<split>[^\[\]]+)\])?")
FOLDER = re.compile(r"(?P<folder>.+?)(\[(?P<split>[^\[\]]+)\])?")


def read(source: Path) -> Iterator[tuple[str, Record]]:
    """(place, record) of every record; the place names source and row, in a file of lines as an editor counts them.

    Raises:
        PromptsError: a source that cannot be read, or a bad row, named.
    """
    if not is_data_set(source):
        yield from _file(source)
        return
    found = _hub(source) if str(source).startswith("hf:") else _folder(source)
    try:
        for number, record in enumerate(found, 1):
            yield f"{source.name}: row {number}", record
    except (OSError, ValueError, TypeError, pa.ArrowInvalid) as error:
        raise PromptsError(f"{source}: expected records, found what `datasets` cannot read: {_line(error)}") from error


def digest(source: Path) -> str:
    """What a source is known by in a key: the bytes of a file; of a data set its records, wherever they lie.

    Raises:
        PromptsError: there is nothing.
    """
    if not is_data_set(source):
        if not source.is_file():
            raise PromptsError(f"expected a prompts file, found nothing at '{source}'")
        return sha256_file(source)
    known = hashlib.sha256()
    for _, record in read(source):
        known.update(json.dumps(record, sort_keys=True, default=str).encode() + b"\n")
    return known.hexdigest()


def absolute(source: Path) -> str:
    """As a recipe names it, so that a resume works from anywhere."""
    return str(source) if str(source).startswith("hf:") else str(source.absolute())


def is_data_set(source: Path) -> bool:
    """Whether `datasets` reads it: hf:..., a folder, or a folder[split]."""
    return str(source).startswith("hf:") or (not source.is_file() and _parts(source)[0].is_dir())


# -- files --------------------------------------------------------------------------------------------------------------
def _file(path: Path) -> Iterator[tuple[str, Record]]:
    try:
        if path.suffix == ".parquet":
            for number, record in enumerate(pq.read_table(path).to_pylist(), 1):
                yield f"{path.name}: row {number}", record
            return
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    place = f"{path.name}: row {number}"
                    yield place, _parse(line, place)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise PromptsError(f"{path}: expected a readable .jsonl, .jsonl.gz or .parquet file: {error}") from error


def _parse(line: str, place: str) -> Record:
    try:
        record = json.loads(line)
        json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but not text
    except (ValueError, RecursionError) as error:
        raise PromptsError(f"{place}: expected one JSON object per line: {error}") from error
    if not isinstance(record, dict):
        raise PromptsError(f"{place}: expected a JSON object, found {type(record).__name__}")
    return record


# -- data sets ----------------------------------------------------------------------------------------------------------
def _parts(source: Path) -> tuple[Path, str]:
    """Folder and split; a folder whose very name ends with [...] is that folder."""
    if source.is_dir():
        return source, ""
    found = FOLDER.fullmatch(str(source))
    return (Path(found["folder"]), found["split"] or "") if found else (source, "")


def _folder(source: Path) -> Any:
    import datasets

    folder, split = _parts(source)
    try:
        if (folder / "state.json").exists():
            made: Any = {"all": datasets.load_from_disk(str(folder))}
        elif (folder / "dataset_dict.json").exists():
            made = datasets.load_from_disk(str(folder))
        else:
            made = datasets.load_dataset(str(folder), streaming=True)  # leaves no copy in a cache
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise PromptsError(
            f"{source}: expected a folder of Parquet, JSONL or CSV files, or one that save_to_disk left, found: {_line(error)}"
        ) from error
    return _split(source, made, split)


def _hub(source: Path) -> Any:
    found = HUB.fullmatch(str(source))
    if not found:
        raise PromptsError(f"{source}: expected hf:name[split] or hf:name:config[split]")
    import datasets
    from huggingface_hub.constants import HF_HOME

    cache = str(Path(HF_HOME) / "datasets")  # one for all homes
    try:
        made = datasets.load_dataset(found["name"], found["config"], split=found["split"], cache_dir=cache)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise PromptsError(
            f"{source}: expected a data set in Hugging Face's cache ({cache}), found: {_line(error)}; "
            "HF_HUB_OFFLINE=0 fetches it"
        ) from error
    return made if found["split"] else _split(source, made, "")


def _split(source: Path, found: Mapping[str, Any], split: str) -> Any:
    """The records of a split, or of the only one.

    Raises:
        PromptsError: there is no such split, or the choice is left open.
    """
    if split in found:
        return found[split]
    if split or len(found) > 1:
        example = f"{str(source).partition('[')[0]}[{next(iter(found))}]"
        raise PromptsError(f"{source}: expected one of its splits, as in {example}, found the splits {', '.join(found)}")
    return next(iter(found.values()))


def _line(error: Exception) -> str:
    """What `datasets` says over many lines."""
    return " ".join(str(error).split())
