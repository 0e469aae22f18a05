"""Scoring beside generation changes when a verdict is made, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.errors import EndpointError, ScorerFailed
from data.recipe.settings import Hardware
from data.rows import tables
from data.store.store import Artifact, External, Store, digest_of, hash_folder
from tasks.generate import generate
from tasks.generate.engines import Batch, Decoding, Row
from tasks.run import parts
from tasks.run.stage import perform
from tasks.run.work import stage_module
from tasks.score import score
from tasks.score.score_while_generating import ScoreWhileGenerating
from tests.tiny_llama import PLACES

PROMPTS, N = 24, 4
HARDWARE = Hardware(device="cpu", isolation="inline", workers=1)
VOTES = score.Settings(scorer="votes", settings={}, split="rounds")
EXACT = score.Settings(scorer="exact_match", settings={}, split="rounds")


def canned(checkpoint: Path, *, breaks: bool = False) -> Any:
    """An engine without a model: texts from the seeds alone."""

    def sample(batches: Sequence[Batch], decoding: Decoding) -> Iterator[tuple[int, list[Row]]]:
        for index, batch in enumerate(batches):
            if breaks and batch.seeds[0] > 40:
                raise EndpointError("the server is gone")
            seeds = [seed + j for seed in batch.seeds for j in range(decoding.n)]
            yield (
                index,
                [
                    {"text": PLACES[s * 7 % 5], "token_ids": [s], "logprobs": None, "finish_reason": "stop", "seed": s}
                    for s in seeds
                ],
            )

    return SimpleNamespace(sample=sample, length=lambda prompt: 1, close=lambda: None)


@pytest.fixture
def world(tmp_path: Path) -> dict[str, External]:
    (tmp_path / "prompts").mkdir()
    messages = [[{"role": "user", "content": f"Where is number {i}?"}] for i in range(PROMPTS)]
    rows = [
        {"prompt_id": tables.prompt_id(m), "messages": m, "answer": PLACES[i % 5], "source": ""} for i, m in enumerate(messages)
    ]
    tables.write(tables.from_rows(rows, tables.PROMPTS), tables.PROMPTS, tmp_path / "prompts" / "rounds.parquet")
    (tmp_path / "config.json").write_text("{}")
    prompts = External(digest_of(hash_folder(tmp_path / "prompts")), tmp_path / "prompts")
    return {"prompts": prompts, "checkpoint": External("none", tmp_path)}


def draw(store: Store, world: dict[str, External], around: Callable[..., Any], **settings: Any) -> Artifact:
    how: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 8, "batch": 8, "shard": 16}
    how |= {"dtype": "float32", "trust_remote_code": False}
    asked = generate.Settings(engine="tests.test_score_while_generating:canned", settings=settings, split="rounds", n=N, **how)
    return perform(store, stage_module("generate").generate, asked, world, seed=3, hardware=HARDWARE, around=around)


def scored(
    store: Store, world: dict[str, External], drawn: Artifact | External, how: score.Settings, around: Callable[..., Any]
) -> Artifact:
    inputs = {"prompts": world["prompts"], "completions": drawn}
    return perform(store, stage_module("score").score, how, inputs, hardware=HARDWARE, around=around)


def test_scores_are_the_same_made_ahead_or_in_sequence(
    tmp_path: Path, world: dict[str, External], monkeypatch: pytest.MonkeyPatch
) -> None:
    # every scorer is run on each shard as it lands; the stage finds all of it, calls no scorer, and gives the same bytes
    plain, other = Store(tmp_path / "plain"), Store(tmp_path / "other")
    in_sequence = draw(plain, world, nullcontext)
    expected = [scored(plain, world, in_sequence, how, nullcontext).digest for how in (EXACT, VOTES)]
    ahead = ScoreWhileGenerating([EXACT, VOTES], workers=1)
    drawn = draw(other, world, ahead.generating)
    assert drawn.digest == in_sequence.digest
    assert [len(futures) for futures in ahead.early.values()] == [PROMPTS * N // 16] * 2
    monkeypatch.setattr(score, "configured", lambda *_: pytest.fail("it was scored ahead"))
    assert [scored(other, world, drawn, how, ahead.scoring).digest for how in (EXACT, VOTES)] == expected


def test_a_prompt_with_more_completions_is_scored_whole(tmp_path: Path, world: dict[str, External]) -> None:
    # votes among four samples are not votes among five: such a prompt is scored anew, the others are taken
    ahead, store = ScoreWhileGenerating([VOTES], workers=1), Store(tmp_path / "store")
    table = tables.read(draw(store, world, ahead.generating).file("completions.parquet"), tables.COMPLETIONS).to_pylist()
    table.insert(N, {**table[0], "completion_id": "one more", "sample": N})
    (tmp_path / "pool").mkdir()
    tables.write(tables.from_rows(table, tables.COMPLETIONS), tables.COMPLETIONS, tmp_path / "pool" / "completions.parquet")
    pool = External(digest_of(hash_folder(tmp_path / "pool")), tmp_path / "pool")
    made = scored(store, world, pool, VOTES, ahead.scoring)
    assert made.digest == scored(Store(tmp_path / "plain"), world, pool, VOTES, nullcontext).digest


def test_only_what_stands_alone_is_run_ahead() -> None:
    # not a user's own scorer, whose batches are its own affair; not one with a model; not one that stands on verdicts
    others: list[tuple[str, dict[str, Any]]] = [
        ("tests.micro:ends_even", {}),
        ("judge", {"template": "additive5"}),
        ("kimi_length", {}),
    ]
    others += [("ensemble", {"members": [{"scorer": "exact_match"}, {"scorer": "tests.micro:ends_even"}]})]
    refused = [score.Settings(scorer=name, settings=settings, split="rounds") for name, settings in others]
    assert ScoreWhileGenerating([*refused, EXACT], workers=1).scorers == [EXACT]


def test_a_scorer_that_fails_ahead_fails_in_its_stage(
    tmp_path: Path, world: dict[str, External], monkeypatch: pytest.MonkeyPatch
) -> None:
    # generation is not disturbed, and the error names the row as it would have anyway
    def exact_match(prompts: Sequence[Row], completions: Sequence[Row], *, after: str = "") -> list[Any]:
        raise ValueError("no")

    ahead, store = ScoreWhileGenerating([EXACT], workers=1), Store(tmp_path / "store")
    monkeypatch.setattr(
        parts, "configure", lambda family, name, settings, **more: exact_match if family == "scorers" else canned
    )
    drawn = draw(store, world, ahead.generating)
    with pytest.raises(ScorerFailed, match="scorer 'exact_match' failed on completion"):
        scored(store, world, drawn, EXACT, ahead.scoring)


def test_a_draw_that_ends_early_leaves_nothing_behind(tmp_path: Path, world: dict[str, External]) -> None:
    # the next attempt scores the shards that were there and those that were missing, and all is as in sequence
    store, plain = Store(tmp_path / "store"), Store(tmp_path / "plain")
    with pytest.raises(EndpointError):
        draw(store, world, ScoreWhileGenerating([EXACT], workers=1).generating, breaks=True)
    ahead = ScoreWhileGenerating([EXACT], workers=1)
    made = scored(store, world, draw(store, world, ahead.generating), EXACT, ahead.scoring)
    assert made.digest == scored(plain, world, draw(plain, world, nullcontext), EXACT, nullcontext).digest
