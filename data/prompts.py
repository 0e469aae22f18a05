"""Prompt sources: rows of PROMPTS per split, from a built-in world or a user's file, and the proof that splits are disjoint."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data import addition, countdown, knights_knaves, tables
from data.errors import PromptsError
from data.recipe import Prompts

SPLITS = ("seed", "rounds", "probe", "held_out", "test", "ood")
PROMPT_NAMES = ("prompt", "question", "problem", "instruction", "query", "input", "messages")
ANSWER_NAMES = ("answer", "gold", "solution", "final_answer", "target", "response", "output")

PUZZLES = {"countdown": countdown, "knights_knaves": knights_knaves}

Row = dict[str, Any]


def splits(settings: Prompts, path: Path | None, seed: int) -> tuple[dict[str, list[Row]], list[Row]]:
    """Rows of PROMPTS for each split, and the given solutions ({prompt_id, text}) of the seed split."""
    if settings.source == "addition":
        return _addition(settings, seed)
    if settings.source in PUZZLES:
        return _puzzles(settings, seed)
    assert path is not None
    return _file(settings, path), []


def _addition(settings: Prompts, seed: int) -> tuple[dict[str, list[Row]], list[Row]]:
    world, rows = addition.World(seed), {}
    solved = world.seed_set(settings.seed)
    rows["seed"] = [_problem(p) for p in solved]
    for split in ("held_out", "test", "probe", "rounds"):  # fixed order: a larger rounds split moves no other
        rows[split] = [_problem(p) for p in world.mixed(getattr(settings, split))]
    rows["ood"] = [_problem(p) for p in addition.World(seed).problems([5] * settings.ood)]
    padded = round(settings.filler * len(solved))  # every share of them, spread evenly over the lengths
    places = {round(i * len(solved) / padded) for i in range(padded)} if padded else set()
    texts = [p.solution.replace("#", "~#") if i in places else p.solution for i, p in enumerate(solved)]
    return rows, [{"prompt_id": row["prompt_id"], "text": text} for row, text in zip(rows["seed"], texts, strict=True)]


def _puzzles(settings: Prompts, seed: int) -> tuple[dict[str, list[Row]], list[Row]]:
    world: Any = PUZZLES[settings.source].World(seed)
    made = {split: world.puzzles(getattr(settings, split)) for split in ("seed", "held_out", "test", "probe", "rounds")}
    made["ood"] = world.hard(settings.ood)
    rows = {split: [_row(p.prompt, p.answer, settings.source, p.stratum) for p in puzzles] for split, puzzles in made.items()}
    given = [{"prompt_id": r["prompt_id"], "text": p.solution} for r, p in zip(rows["seed"], made["seed"], strict=True)]
    return rows, given


def _problem(problem: addition.Problem) -> Row:
    return _row(problem.prompt, problem.answer, "addition", f"{len(str(problem.a))} digits")


def _row(content: str | list[dict[str, str]], answer: str | None, source: str, stratum: str | None = None) -> Row:
    messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
    return {
        "prompt_id": tables.prompt_id(messages),
        "messages": messages,
        "answer": answer,
        "source": source,
        "stratum": stratum,
        "difficulty": None,
    }


def _file(settings: Prompts, path: Path) -> dict[str, list[Row]]:
    """Split a user's file by rank of a hash of each prompt, the rounds last.

    When the file grows a row may move towards the rounds, never away from them: nothing trained on is ever measured on.
    """
    unique: dict[str, Row] = {}
    for number, record in read_records(path):
        row = _from_record(settings, record, f"{path.name}: row {number}", path.name)
        known = unique.setdefault(row["prompt_id"], row)
        if known["answer"] != row["answer"]:
            raise PromptsError(
                f"{path.name}: row {number}: the same prompt appears with two answers "
                f"({known['answer']!r} and {row['answer']!r}); remove one"
            )
    rows = sorted(unique.values(), key=lambda r: hashlib.sha256(f"split/{r['prompt_id']}".encode()).hexdigest())
    rows = rows[: settings.limit or None]
    wanted = {split: getattr(settings, split) for split in ("held_out", "test", "probe")}
    if sum(wanted.values()) + max(settings.rounds, 1) > len(rows):
        asked = ", ".join(f"prompts.{split} = {count}" for split, count in wanted.items())
        raise PromptsError(
            f"{path.name}: expected more than {sum(wanted.values()) + settings.rounds} distinct prompts ({asked}, "
            f"prompts.rounds = {settings.rounds or 'the rest'}), found {len(rows)}; lower the counts with --set"
        )
    if settings.seed or settings.ood:
        raise PromptsError("prompts.seed and prompts.ood belong to the built-in worlds; set them to 0 for a file")
    stream = iter(rows)
    out = {split: list(itertools.islice(stream, count)) for split, count in wanted.items()}
    rest = list(stream)
    return out | {"rounds": rest[: settings.rounds or None], "seed": [], "ood": []}


def read_records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(row number from 1, record) of a JSONL, gzipped JSONL or Parquet file; a bad row is named."""
    try:
        if path.suffix == ".parquet":
            yield from enumerate(pq.read_table(path).to_pylist(), 1)
            return
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                    json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but not text
                except (ValueError, RecursionError) as error:
                    raise PromptsError(f"{path.name}: row {number}: expected one JSON object per line: {error}") from error
                if not isinstance(record, dict):
                    raise PromptsError(f"{path.name}: row {number}: expected a JSON object, found {type(record).__name__}")
                yield number, record
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise PromptsError(f"{path}: expected a readable .jsonl, .jsonl.gz or .parquet file: {error}") from error


def _from_record(settings: Prompts, record: Mapping[str, Any], where: str, source: str) -> Row:
    prompt_column = settings.prompt_column or next((n for n in PROMPT_NAMES if n in record), "")
    if prompt_column not in record:
        wanted = f"column '{prompt_column}'" if prompt_column else f"one of the columns {', '.join(PROMPT_NAMES)}"
        raise PromptsError(f"{where}: expected {wanted}, found {', '.join(record) or 'none'}; set prompts.prompt_column")
    answer_column = settings.answer_column or next((n for n in ANSWER_NAMES if n in record and n != prompt_column), "")
    if settings.answer_column and answer_column not in record:
        raise PromptsError(f"{where}: expected column '{answer_column}', found {', '.join(record)}; set prompts.answer_column")
    return _row(
        _content(settings, record[prompt_column], where, prompt_column), _answer(settings, record, answer_column), source
    )


def _content(settings: Prompts, value: Any, where: str, column: str) -> str | list[dict[str, str]]:
    if isinstance(value, str) and value.strip():
        return settings.template.replace("{prompt}", value)
    if isinstance(value, list) and value and all(_is_message(m) for m in value):
        return [{"role": m["role"], "content": m["content"]} for m in value]
    raise PromptsError(
        f"{where}: column '{column}': expected text or a list of {{role, content}} messages, found {value!r:.80}"
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def _answer(settings: Prompts, record: Mapping[str, Any], column: str) -> str | None:
    value = record.get(column) if column else None
    if value is None:
        return None
    text = str(value)
    if settings.answer_after and settings.answer_after in text:
        text = text.rsplit(settings.answer_after, 1)[1]
    return text.strip()


def disjoint(rows: Mapping[str, list[Row]]) -> dict[str, Any]:
    """The stored check: how many prompts each split has and how many any two share (all must be 0).

    Raises:
        PromptsError: two splits share a prompt.
    """
    ids = {split: {row["prompt_id"] for row in rows[split]} for split in SPLITS}
    shared = {f"{a}&{b}": len(ids[a] & ids[b]) for a, b in itertools.combinations(SPLITS, 2)}
    if any(shared.values()):
        raise PromptsError(f"splits must not share prompts, found { ({k: v for k, v in shared.items() if v}) }")
    return {"prompts": {split: len(ids[split]) for split in SPLITS}, "shared": shared}
