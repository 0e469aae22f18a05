"""Prompt sources: rows of PROMPTS per split, from a built-in world or a user's file, and the proof that splits are disjoint."""

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
    """Rows of PROMPTS for each split, and the given solutions ({prompt_id, text}) of the seed split."""
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
    for split in ("held_out", "test", "probe", "rounds"):  # fixed order: a larger rounds split moves no other
        rows[split] = [_problem(p) for p in world.mixed(getattr(settings, split))]
    rows["ood"] = [_problem(p) for p in addition.World(seed).problems([5] * settings.ood)]
    given = [{"prompt_id": row["prompt_id"], "text": p.solution} for row, p in zip(rows["seed"], solved, strict=True)]
    padded = round(settings.filler * len(given))  # spread over the lengths, and solved both ways: a habit of no problem's own
    again = [given[i * len(given) // padded] for i in range(padded)]
    given += [{**row, "text": row["text"].replace("#", "~" * (1 + i % 3) + "#")} for i, row in enumerate(again)]
    return rows, given


def _puzzles(settings: Prompts, seed: int) -> tuple[dict[str, list[Row]], list[Row]]:
    world: Any = PUZZLES[settings.source].World(seed)
    made = {split: world.puzzles(getattr(settings, split)) for split in ("seed", "held_out", "test", "probe", "rounds")}
    made["ood"] = world.hard(settings.ood)
    rows = {
        split: [_row(_user(p.prompt), p.answer, settings.source, p.stratum) for p in puzzles] for split, puzzles in made.items()
    }
    given = [{"prompt_id": r["prompt_id"], "text": p.solution} for r, p in zip(rows["seed"], made["seed"], strict=True)]
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
    """Split a user's file by rank of a hash of each prompt, what is trained on last.

    When the file grows a row may move towards the rounds, never away from them: nothing trained on is ever measured on.
    """
    rows = sorted(distinct(settings, path), key=lambda r: hashlib.sha256(f"split/{r['prompt_id']}".encode()).hexdigest())
    rows = rows[: settings.limit or None]
    wanted = {split: getattr(settings, split) for split in ("held_out", "test", "probe")}
    wanted |= {"seed": settings.seed} if settings.seed else {}
    if sum(wanted.values()) + max(settings.rounds, 0 if settings.seed else 1) > len(rows):
        asked = ", ".join(f"prompts.{split} = {count}" for split, count in wanted.items())
        raise PromptsError(
            f"{path.name}: expected more than {sum(wanted.values()) + settings.rounds} distinct prompts ({asked}, "
            f"prompts.rounds = {settings.rounds or 'the rest'}), found {len(rows)}; lower the counts with --set"
        )
    if settings.ood:
        raise PromptsError("prompts.ood belongs to the built-in worlds; set it to 0 for a file")
    stream = iter(rows)
    out = {split: list(itertools.islice(stream, count)) for split, count in wanted.items()}
    rest = list(stream)
    return {"seed": [], "ood": []} | out | {"rounds": rest[: settings.rounds or None]}


def _given(settings: Prompts, path: Path, seed: list[Row]) -> list[Row]:
    """The solutions that a user's file gives for the prompts of the seed split, the first where it gives several."""
    wanted: dict[str, str] = {}
    ids = {row["prompt_id"] for row in seed}
    for place, record in sources.read(path) if seed else ():
        name = tables.prompt_id(records.messages_of(settings, record, place))
        if name in ids and name not in wanted:
            wanted[name] = records.given_of(settings, record, place)
    return [{"prompt_id": row["prompt_id"], "text": wanted[row["prompt_id"]]} for row in seed]


def distinct(settings: Prompts, path: Path) -> list[Row]:
    """Rows of PROMPTS of a user's file in its order, each prompt once.

    Raises:
        PromptsError: a bad row, or a prompt with two answers; the row is named.
    """
    unique: dict[str, Row] = {}
    for place, record in sources.read(path):
        messages, answer = records.messages_of(settings, record, place), records.answer_of(settings, record, place)
        row = _row(messages, answer, path.name, records.stratum_of(settings, record, place))
        known = unique.setdefault(row["prompt_id"], row)
        if known["answer"] != row["answer"]:
            raise PromptsError(
                f"{place}: the same prompt appears with two answers ({known['answer']!r} and {row['answer']!r}); remove one"
            )
    return list(unique.values())


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
