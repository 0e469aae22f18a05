"""Score completions with one scorer, shard by shard. One artifact per scorer, so a new scorer never re-runs an old one."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field

from data.errors import EndpointError, ScorerFailed, StageFailed, TableError
from data.rows import tables
from data.rows.completions import as_rows, read_completions
from tasks.run import parts as all_parts
from tasks.run.work import StageSettings, Work, device_of
from tasks.score.scorers import Score

VERSION = 2
LIBRARIES = ("math-verify", "latex2sympy2_extended", "sympy", "regex")
AHEAD = "ahead.parquet"  # in scratch: SCORES made by score_while_generating.py
SHARD = 2048  # completions at least; small enough to lose, large enough to keep a process pool busy

Row = dict[str, Any]


class Settings(StageSettings):
    scorer: str
    settings: dict[str, Any]
    split: str
    loading: dict[str, Any] = Field(default_factory=dict)  # dtype and trust_remote_code, for a scorer with a model


def parts(settings: Settings) -> list[tuple[str, str]]:
    return all_parts.dependencies("scorers", settings.scorer, settings.settings)


def score(work: Work) -> None:
    """SCORES: one row per row of `inputs["completions"]`, in its order.

    A scorer with a parameter `verdicts` gets, row for row, the values in `inputs["verdicts"]`: the verifier's SCORES. One with
    a parameter `checkpoint` gets the folder `inputs["checkpoint"]`, and loads it once; `rollouts`: SCORES of continuations.
    """
    s: Settings = work.settings
    prompts = tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS).to_pylist()
    by_id = {row["prompt_id"]: row for row in prompts}
    completions = read_completions(work.inputs["completions"])
    verdicts = _verdicts(work)
    known = _ahead(work, completions)
    scorer = None
    made: list[pa.Table] = []
    with contextlib.ExitStack() as closing:
        for index, rows in enumerate(shards(completions["prompt_id"].to_pylist(), SHARD)):
            work.tick(rows.start, completions.num_rows)
            file = work.scratch / f"scores-{index:05d}.parquet"
            table = tables.read_shard(file, tables.SCORES)
            if table is None:
                batch = as_rows(completions.slice(rows.start, len(rows)))
                rest = [row for row in batch if row["completion_id"] not in known]
                if rest:
                    scorer = scorer or _bind(work, closing)
                fresh = iter(scored(s.scorer, scorer, by_id, rest, verdicts))
                table = tables.from_rows([known.get(row["completion_id"]) or next(fresh) for row in batch], tables.SCORES)
                tables.write_shard(table, tables.SCORES, file)
            made.append(table)
    tables.write(pa.concat_tables(made or [tables.SCORES.empty_table()]), tables.SCORES, work.out / "scores.parquet")
    work.tick(completions.num_rows, completions.num_rows)


def _ahead(work: Work, completions: pa.Table) -> dict[str, Row]:
    """SCORES rows made ahead, by completion; only of prompts all of whose completions here have one."""
    table = tables.read_shard(work.scratch / AHEAD, tables.SCORES)
    if table is None:
        return {}
    made = {row["completion_id"]: row for row in table.to_pylist()}
    pairs = list(zip(completions["completion_id"].to_pylist(), completions["prompt_id"].to_pylist(), strict=True))
    open_prompts = {prompt for completion, prompt in pairs if completion not in made}
    return {completion: made[completion] for completion, prompt in pairs if prompt not in open_prompts}


def _bind(work: Work, closing: contextlib.ExitStack) -> Any:
    """The scorer, closed at the end where it has a `close`."""
    s: Settings = work.settings
    surroundings = {"requests": work.hardware.requests, "scratch": work.scratch, "record": work.record}
    supplied = {"workers": work.hardware.workers, **surroundings, **s.loading}
    if "checkpoint" in work.inputs:
        supplied |= {"checkpoint": work.inputs["checkpoint"], "device": device_of(work.hardware)}
    if "rollouts" in work.inputs:
        supplied["rollouts"] = work.inputs["rollouts"]
    scorer = all_parts.configure("scorers", s.scorer, s.settings, **supplied)
    closing.callback(getattr(scorer, "close", lambda: None))
    return scorer


def shards(prompt_ids: Sequence[str], least: int) -> Iterator[range]:
    """Runs of whole prompts, each at least `least` rows but the last: a scorer sees all samples of a prompt at once.

    Raises:
        TableError: the samples of a prompt do not stand together.
    """
    sizes = [len(list(group)) for _, group in itertools.groupby(prompt_ids)]
    if len(sizes) != len(set(prompt_ids)):
        raise TableError("completions: expected the samples of a prompt to stand together, found a prompt in two places")
    start = stop = 0
    for size in sizes:
        stop += size
        if stop - start >= least:
            yield range(start, stop)
            start = stop
    if stop > start:
        yield range(start, stop)


def _verdicts(work: Work) -> dict[str, float | None] | None:
    """The verifier's values by completion_id, where the scorer wants them."""
    if "verdicts" not in work.inputs:
        return None
    table = tables.read(work.inputs["verdicts"] / "scores.parquet", tables.SCORES)
    return dict(zip(table["completion_id"].to_pylist(), table["value"].to_pylist(), strict=True))


def scored(
    name: str, scorer: Any, prompts: dict[str, Row], rows: Sequence[Row], verdicts: dict[str, float | None] | None
) -> list[Row]:
    """SCORES rows. A completion that never came (an engine's request failed) has no score: it is not a wrong answer."""
    batch = [row for row in rows if row["finish_reason"] != "error"]
    found = iter(_called(name, scorer, prompts, batch, verdicts) if batch else [])
    return [_plain(row, Score(None, "no_completion") if row["finish_reason"] == "error" else next(found)) for row in rows]


def _plain(row: Row, score: Score) -> Row:
    known = {"value": score.value, "status": score.status, "detail": score.detail}
    return {"completion_id": row["completion_id"], "prompt_id": row["prompt_id"], **known}


def _called(
    name: str, scorer: Any, prompts: dict[str, Row], batch: Sequence[Row], verdicts: dict[str, float | None] | None
) -> list[Score]:
    aligned = [prompts[row["prompt_id"]] for row in batch]

    def call(first: int, last: int) -> list[Score]:
        rows = batch[first:last]
        more = {} if verdicts is None else {"verdicts": [verdicts[row["completion_id"]] for row in rows]}
        said: list[Score] = scorer(aligned[first:last], rows, **more)
        return said

    try:
        scores = call(0, len(batch))
    except (EndpointError, StageFailed):
        raise  # a server's doing: no row is to blame, and looking for one would ask it all over again
    except Exception as error:
        raise ScorerFailed(f"scorer '{name}' failed on {_blame(call, batch)}: {error!r}") from error
    if len(scores) != len(batch) or not all(isinstance(score, Score) for score in scores):
        raise ScorerFailed(f"scorer '{name}': expected {len(batch)} Score values, found {len(scores)}; see tasks/scorers")
    for row, score in zip(batch, scores, strict=True):
        if score.value is not None and not math.isfinite(score.value):
            raise ScorerFailed(
                f"scorer '{name}' gave {score.value} to completion {row['completion_id']}: expected a number or None"
            )
    return scores


def _blame(call: Callable[[int, int], list[Score]], batch: Sequence[Row]) -> str:
    """Find the row: the first one the scorer refuses on its own."""
    for place, row in enumerate(batch):
        try:
            call(place, place + 1)
        except Exception:
            return f"completion {row['completion_id']} of prompt {row['prompt_id']}: {row['text'][:80]!r}"
    return f"a batch of {len(batch)} rows, though on none of them alone"
