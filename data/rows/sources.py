"""Sources of records: a user's file, a folder, or a Hugging Face data set; and a digest of their content.

A folder may hold Parquet, JSONL or CSV files, or the output of `save_to_disk`. `hf:name[split]` or `hf:name:config[split]` is
read from Hugging Face's cache; with HF_HUB_OFFLINE=0 it is downloaded. The split may be left out where there is only one.
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
    """Every record with its location: source and row, where the row of a JSONL file is its line number.

    Raises:
        PromptsError: the source cannot be read, or has a bad row, which is named.
    """
    if not is_data_set(source):
        yield from _file(source)
        return
    records = _hub(source) if str(source).startswith("hf:") else _folder(source)
    try:
        for number, record in enumerate(records, 1):
            yield f"{source.name}: row {number}", record
    except (OSError, ValueError, TypeError, pa.ArrowInvalid) as error:
        raise PromptsError(f"{source}: expected records, found what `datasets` cannot read: {_on_one_line(error)}") from error


def digest(source: Path) -> str:
    """The digest that stands for a source in a key: of a file's bytes, or of a data set's records.

    Raises:
        PromptsError: there is no such file or data set.
    """
    if not is_data_set(source):
        if not source.is_file():
            raise PromptsError(f"expected a prompts file, found nothing at '{source}'; check the path")
        return sha256_file(source)
    content = hashlib.sha256()
    for _, record in read(source):
        content.update(json.dumps(record, sort_keys=True, default=str).encode() + b"\n")
    return content.hexdigest()


def absolute(source: Path) -> str:
    """The source with an absolute path, so that a campaign can be resumed from any directory."""
    return str(source) if str(source).startswith("hf:") else str(source.absolute())


def is_data_set(source: Path) -> bool:
    """Whether the `datasets` library reads the source: hf:..., a folder, or folder[split]."""
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
                    location = f"{path.name}: row {number}"
                    yield location, _parse(line, location)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise PromptsError(f"{path}: expected a readable .jsonl, .jsonl.gz or .parquet file: {error}") from error


def _parse(line: str, location: str) -> Record:
    try:
        record = json.loads(line)
        json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is valid JSON, but no valid text
    except (ValueError, RecursionError) as error:
        raise PromptsError(f"{location}: expected one JSON object per line: {error}") from error
    if not isinstance(record, dict):
        raise PromptsError(f"{location}: expected a JSON object, found {type(record).__name__}")
    return record


# -- data sets ----------------------------------------------------------------------------------------------------------
def _parts(source: Path) -> tuple[Path, str]:
    """Folder and split. A folder whose own name ends with [...] is taken as it is."""
    if source.is_dir():
        return source, ""
    match = FOLDER.fullmatch(str(source))
    return (Path(match["folder"]), match["split"] or "") if match else (source, "")


def _folder(source: Path) -> Any:
    import datasets

    folder, split = _parts(source)
    try:
        if (folder / "state.json").exists():
            splits: Any = {"all": datasets.load_from_disk(str(folder))}
        elif (folder / "dataset_dict.json").exists():
            splits = datasets.load_from_disk(str(folder))
        else:
            splits = datasets.load_dataset(str(folder), streaming=True)  # streaming leaves no copy in a cache
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise PromptsError(
            f"{source}: expected a folder of Parquet, JSONL or CSV files, or one that save_to_disk wrote, found: "
            f"{_on_one_line(error)}"
        ) from error
    return _split(source, splits, split)


def _hub(source: Path) -> Any:
    name = HUB.fullmatch(str(source))
    if not name:
        raise PromptsError(f"{source}: expected hf:name[split] or hf:name:config[split]")
    import datasets
    from huggingface_hub.constants import HF_HOME

    cache = str(Path(HF_HOME) / "datasets")  # shared by all homes
    try:
        loaded = datasets.load_dataset(name["name"], name["config"], split=name["split"], cache_dir=cache)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise PromptsError(
            f"{source}: expected a data set in Hugging Face's cache ({cache}), found: "
            f"{_on_one_line(error)}; set HF_HUB_OFFLINE=0 to download it"
        ) from error
    return loaded if name["split"] else _split(source, loaded, "")


def _split(source: Path, splits: Mapping[str, Any], split: str) -> Any:
    """The records of the named split, or of the only one.

    Raises:
        PromptsError: there is no such split, or none is named where there are several.
    """
    if split in splits:
        return splits[split]
    if split or len(splits) > 1:
        example = f"{str(source).partition('[')[0]}[{next(iter(splits))}]"
        raise PromptsError(f"{source}: expected one of its splits, as in {example}, found the splits {', '.join(splits)}")
    return next(iter(splits.values()))


def _on_one_line(error: Exception) -> str:
    """The message of `datasets`, which may span many lines."""
    return " ".join(str(error).split())
