"""Score completions with one scorer, shard by shard. Each scorer has its own artifact, so a new scorer re-runs no other."""

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
EARLY_SCORES = "early_scores.parquet"  # in scratch: SCORES from score_while_generating.py
SHARD = 2048  # completions per shard, at least: small enough to compute again, large enough for a process pool

Row = dict[str, Any]


class Settings(StageSettings):
    scorer: str
    settings: dict[str, Any]
    split: str
    loading: dict[str, Any] = Field(default_factory=dict)  # dtype and trust_remote_code, for a scorer that loads a model


def parts(settings: Settings) -> list[tuple[str, str]]:
    return all_parts.dependencies("scorers", settings.scorer, settings.settings)


def score(work: Work) -> None:
    """SCORES: one row per row of `inputs["completions"]`, in its order.

    Three parameters of a scorer are filled from inputs:

    - `verdicts`: the values of the verifier's SCORES in `inputs["verdicts"]`, one per row;
    - `checkpoint`: the folder `inputs["checkpoint"]`, which the scorer loads once;
    - `rollouts`: the folder `inputs["rollouts"]`, the SCORES of continuations.
    """
    s: Settings = work.settings
    prompts = tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS).to_pylist()
    by_id = {row["prompt_id"]: row for row in prompts}
    completions = read_completions(work.inputs["completions"])
    verdicts = _verdicts(work)
    early = _early_scores(work, completions)
    scorer = None
    scored_shards: list[pa.Table] = []
    with contextlib.ExitStack() as closing:
        for index, rows in enumerate(shards(completions["prompt_id"].to_pylist(), SHARD)):
            work.tick(rows.start, completions.num_rows)
            file = work.scratch / f"scores-{index:05d}.parquet"
            table = tables.read_shard(file, tables.SCORES)
            if table is None:
                batch = as_rows(completions.slice(rows.start, len(rows)))
                rest = [row for row in batch if row["completion_id"] not in early]
                if rest:
                    scorer = scorer or configured(work, closing)
                fresh = iter(scored(s.scorer, scorer, by_id, rest, verdicts))
                table = tables.from_rows([early.get(row["completion_id"]) or next(fresh) for row in batch], tables.SCORES)
                tables.write_shard(table, tables.SCORES, file)
            scored_shards.append(table)
    tables.write(pa.concat_tables(scored_shards or [tables.SCORES.empty_table()]), tables.SCORES, work.out / "scores.parquet")
    work.tick(completions.num_rows, completions.num_rows)


def _early_scores(work: Work, completions: pa.Table) -> dict[str, Row]:
    """The SCORES rows that were computed during generation, by completion id.

    A prompt counts only if all its completions have a score: a scorer may compare the samples of a prompt.
    """
    table = tables.read_shard(work.scratch / EARLY_SCORES, tables.SCORES)
    if table is None:
        return {}
    by_completion = {row["completion_id"]: row for row in table.to_pylist()}
    pairs = list(zip(completions["completion_id"].to_pylist(), completions["prompt_id"].to_pylist(), strict=True))
    incomplete = {prompt for completion, prompt in pairs if completion not in by_completion}
    return {completion: by_completion[completion] for completion, prompt in pairs if prompt not in incomplete}


def configured(work: Work, closing: contextlib.ExitStack) -> Any:
    """The configured scorer. If it has a method `close`, that is called at the end of the stage."""
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
    """Ranges of rows with whole prompts, so that a scorer sees all samples of a prompt at once.

    Each range has at least `least` rows, except the last one.

    Raises:
        TableError: the samples of a prompt are not consecutive.
    """
    sizes = [len(list(group)) for _, group in itertools.groupby(prompt_ids)]
    if len(sizes) != len(set(prompt_ids)):
        raise TableError(
            "completions: expected the samples of a prompt to be consecutive, found a prompt in two places; sort them"
        )
    start = stop = 0
    for size in sizes:
        stop += size
        if stop - start >= least:
            yield range(start, stop)
            start = stop
    if stop > start:
        yield range(start, stop)


def _verdicts(work: Work) -> dict[str, float | None] | None:
    """The verifier's values by completion_id, or None if the scorer does not need them."""
    if "verdicts" not in work.inputs:
        return None
    table = tables.read(work.inputs["verdicts"] / "scores.parquet", tables.SCORES)
    return dict(zip(table["completion_id"].to_pylist(), table["value"].to_pylist(), strict=True))


def scored(
    name: str, scorer: Any, prompts: dict[str, Row], rows: Sequence[Row], verdicts: dict[str, float | None] | None
) -> list[Row]:
    """SCORES rows. A completion whose request failed (finish reason "error") has no score, because it is no wrong answer."""
    batch = [row for row in rows if row["finish_reason"] != "error"]
    scores = iter(_scores(name, scorer, prompts, batch, verdicts) if batch else [])
    return [_row(row, Score(None, "no_completion") if row["finish_reason"] == "error" else next(scores)) for row in rows]


def _row(completion: Row, score: Score) -> Row:
    ids = {"completion_id": completion["completion_id"], "prompt_id": completion["prompt_id"]}
    return {**ids, "value": score.value, "status": score.status, "detail": score.detail}


def _scores(
    name: str, scorer: Any, prompts: dict[str, Row], batch: Sequence[Row], verdicts: dict[str, float | None] | None
) -> list[Score]:
    aligned = [prompts[row["prompt_id"]] for row in batch]

    def call(first: int, last: int) -> list[Score]:
        rows = batch[first:last]
        more = {} if verdicts is None else {"verdicts": [verdicts[row["completion_id"]] for row in rows]}
        scores: list[Score] = scorer(aligned[first:last], rows, **more)
        return scores

    try:
        scores = call(0, len(batch))
    except (EndpointError, StageFailed):
        raise  # caused by a server or a model, not by a row; looking for a row would send all requests again
    except Exception as error:
        raise ScorerFailed(f"scorer '{name}' failed on {_failing_row(call, batch)}: {error!r}") from error
    if len(scores) != len(batch) or not all(isinstance(score, Score) for score in scores):
        raise ScorerFailed(
            f"scorer '{name}': expected {len(batch)} Score values, found {len(scores)}; see tasks/score/scorers/__init__.py"
        )
    for row, score in zip(batch, scores, strict=True):
        if score.value is not None and not math.isfinite(score.value):
            raise ScorerFailed(
                f"scorer '{name}': expected a finite number or None for completion {row['completion_id']}, found {score.value}"
            )
    return scores


def _failing_row(call: Callable[[int, int], list[Score]], batch: Sequence[Row]) -> str:
    """The first row on which the scorer also fails when called with that row alone, as text for an error message."""
    for index, row in enumerate(batch):
        try:
            call(index, index + 1)
        except Exception:
            return f"completion {row['completion_id']} of prompt {row['prompt_id']}: {row['text'][:80]!r}"
    return f"a batch of {len(batch)} rows, but on none of them alone"
