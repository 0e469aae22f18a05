"""Rows of PROMPTS per split, from a built-in task or a user's file, and the check that splits share no prompt."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import PromptsError
from data.recipe.settings import Prompts
from data.rows import records, sources, tables
from data.worlds import addition, countdown, knights_knaves

SPLITS = ("seed", "rounds", "probe", "held_out", "test", "ood")

PUZZLES = {"countdown": countdown, "knights_knaves": knights_knaves}

Row = dict[str, Any]


def splits(settings: Prompts, path: Path | None, seed: int) -> tuple[dict[str, list[Row]], list[Row]]:
    """Rows of PROMPTS of each split, and the given solutions of the seed split, as rows {prompt_id, text}.

    Raises:
        PromptsError: the file cannot be read, has a bad row, or has too few prompts.
    """
    if settings.source == "addition":
        return _addition(settings, seed)
    if settings.source in PUZZLES:
        return _puzzles(settings, seed)
    assert path is not None
    rows = _file(settings, path)
    return rows, _given(settings, path, rows["seed"])


def _addition(settings: Prompts, seed: int) -> tuple[dict[str, list[Row]], list[Row]]:
    world, rows = addition.World(seed), {}
    solved = world.seed_set(settings.seed)
    rows["seed"] = [_problem(p) for p in solved]
    for split in ("held_out", "test", "probe", "rounds"):  # rounds come last, so that more of them change no other split
        rows[split] = [_problem(p) for p in world.mixed(getattr(settings, split))]
    rows["ood"] = [_problem(p) for p in addition.World(seed).problems([5] * settings.ood)]
    given = [{"prompt_id": row["prompt_id"], "text": p.solution} for row, p in zip(rows["seed"], solved, strict=True)]
    return rows, given + _with_filler(given, settings.filler)


def _with_filler(given: list[Row], share: float) -> list[Row]:
    """A share of the solutions once more with ~ before the answer.

    They are spread evenly over the problems, which keep their plain solution too, so that ~ goes with no kind of problem.
    """
    count = round(share * len(given))
    repeated = [given[i * len(given) // count] for i in range(count)]
    return [{**row, "text": row["text"].replace("#", "~" * (1 + i % 3) + "#")} for i, row in enumerate(repeated)]


def _puzzles(settings: Prompts, seed: int) -> tuple[dict[str, list[Row]], list[Row]]:
    world: Any = PUZZLES[settings.source].World(seed)
    puzzles = {split: world.puzzles(getattr(settings, split)) for split in ("seed", "held_out", "test", "probe", "rounds")}
    puzzles["ood"] = world.hard(settings.ood)
    rows = {
        split: [_row(_user(p.prompt), p.answer, settings.source, p.stratum) for p in in_split]
        for split, in_split in puzzles.items()
    }
    given = [{"prompt_id": r["prompt_id"], "text": p.solution} for r, p in zip(rows["seed"], puzzles["seed"], strict=True)]
    return rows, given


def _problem(problem: addition.Problem) -> Row:
    return _row(_user(problem.prompt), problem.answer, "addition", f"{len(str(problem.a))} digits")


def _user(text: str) -> list[records.Message]:
    return [{"role": "user", "content": text}]


def _row(messages: list[records.Message], answer: str | None, source: str, stratum: str | None = None) -> Row:
    return {
        "prompt_id": tables.prompt_id(messages),
        "messages": messages,
        "answer": answer,
        "source": source,
        "stratum": stratum,
        "difficulty": None,
    }


def _file(settings: Prompts, path: Path) -> dict[str, list[Row]]:
    """Split a user's file by the rank of each prompt's hash. The seed and rounds splits come last.

    When the file grows, a prompt can only move towards the rounds split. So no prompt is trained on first and measured later.
    """
    rows = sorted(distinct(settings, path), key=lambda r: hashlib.sha256(f"split/{r['prompt_id']}".encode()).hexdigest())
    rows = rows[: settings.limit or None]
    counts = {split: getattr(settings, split) for split in ("held_out", "test", "probe")}
    counts |= {"seed": settings.seed} if settings.seed else {}
    if sum(counts.values()) + max(settings.rounds, 0 if settings.seed else 1) > len(rows):
        listed = ", ".join(f"prompts.{split} = {count}" for split, count in counts.items())
        raise PromptsError(
            f"{path.name}: expected more than {sum(counts.values()) + settings.rounds} distinct prompts ({listed}, "
            f"prompts.rounds = {settings.rounds or 'the rest'}), found {len(rows)}; lower the counts with --set"
        )
    if settings.ood:
        raise PromptsError("prompts.ood needs a built-in task, found a file; set it to 0")
    stream = iter(rows)
    before = {split: list(itertools.islice(stream, count)) for split, count in counts.items()}
    rest = list(stream)
    return {"seed": [], "ood": []} | before | {"rounds": rest[: settings.rounds or None]}


def _given(settings: Prompts, path: Path, seed: list[Row]) -> list[Row]:
    """The solutions that a user's file gives for the prompts of the seed split; the first one where it gives several."""
    solutions: dict[str, str] = {}
    ids = {row["prompt_id"] for row in seed}
    for location, record in sources.read(path) if seed else ():
        prompt_id = tables.prompt_id(records.messages_of(settings, record, location))
        if prompt_id in ids and prompt_id not in solutions:
            solutions[prompt_id] = records.given_of(settings, record, location)
    return [{"prompt_id": row["prompt_id"], "text": solutions[row["prompt_id"]]} for row in seed]


def distinct(settings: Prompts, path: Path) -> list[Row]:
    """Rows of PROMPTS of a user's file, in the order of the file, each prompt once.

    Raises:
        PromptsError: a bad row, or a prompt with two different answers; the row is named.
    """
    unique: dict[str, Row] = {}
    for location, record in sources.read(path):
        messages, answer = records.messages_of(settings, record, location), records.answer_of(settings, record, location)
        row = _row(messages, answer, path.name, records.stratum_of(settings, record, location))
        first = unique.setdefault(row["prompt_id"], row)
        if first["answer"] != row["answer"]:
            raise PromptsError(
                f"{location}: the same prompt appears with two answers ({first['answer']!r} and {row['answer']!r}); remove one"
            )
    return list(unique.values())


def disjoint(rows: Mapping[str, list[Row]]) -> dict[str, Any]:
    """The check that is stored with the splits: prompts per split, and how many any two splits share (always 0).

    Raises:
        PromptsError: two splits share a prompt.
    """
    ids = {split: {row["prompt_id"] for row in rows[split]} for split in SPLITS}
    shared = {f"{a}&{b}": len(ids[a] & ids[b]) for a, b in itertools.combinations(SPLITS, 2)}
    if any(shared.values()):
        counts = {pair: count for pair, count in shared.items() if count}
        raise PromptsError(f"splits must not share prompts, found {counts}; remove the prompts that repeat")
    return {"prompts": {split: len(ids[split]) for split in SPLITS}, "shared": shared}
