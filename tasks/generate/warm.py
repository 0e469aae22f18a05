"""Warm engines: kept in this process between stages, reloaded with the next checkpoint, and checked before they sample.

Loading an engine can take longer than sampling a small round. A reload can fail without an error: half of the weights may be
old, or a cache may be. So after each reload the engine's log-probabilities on a few texts are compared with those of the
checkpoint, loaded from disk as in the logprobs stage. If they differ, the engine is loaded again, and the artifact's log.json
records it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from data.errors import StageFailed
from data.rows import tables
from data.store.store import canonical, sha256_file
from tasks.generate.engines import Engine, WarmEngine
from tasks.models import models
from tasks.run import parts as all_parts
from tasks.run.stage import own_process
from tasks.run.work import Work, device_of, give_back_memory

CHECK_ROWS, CHECK_TOKENS = 16, 128
# Mean absolute difference in nats per token. In float32 kernels differ by 1e-5; in half precision logits near 16 are rounded.
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}

Sequences = list[tuple[list[int], list[int]]]
_kept: dict[str, WarmEngine] = {}  # at most one, by all that it was loaded with except the checkpoint


@contextmanager
def engine(work: Work) -> Iterator[Engine]:
    """The engine for a generate call, with the call's checkpoint loaded. It is kept for the next call if it can be."""
    s, checkpoint = work.settings, work.inputs["checkpoint"]
    keep = work.hardware.warm and not own_process(work.hardware)
    loading = {"device": device_of(work.hardware), "dtype": s.dtype, "trust_remote_code": s.trust_remote_code, "warm": keep}
    shape = sha256_file(checkpoint / "config.json")  # another model's weights do not fit
    name = canonical({"engine": s.engine, "settings": s.settings, "shape": shape, **loading})
    surroundings = {"requests": work.hardware.requests, "scratch": work.scratch, "record": work.record}
    load: Callable[[Path], Engine] = all_parts.configure("engines", s.engine, s.settings, **loading, **surroundings)
    kept = _kept.pop(name, None)
    close()  # an engine with other settings would keep memory that this one needs
    ready = load(checkpoint) if kept is None else _reloaded(work, kept, load, checkpoint)
    try:
        yield ready
    except BaseException:
        ready.close()
        raise
    if keep and isinstance(ready, WarmEngine):
        ready.sleep()
        _kept[name] = ready
    else:
        ready.close()


def close() -> None:
    """Close the kept engine, if there is one: at the end of a flow, and before another engine is loaded."""
    while _kept:
        _kept.popitem()[1].close()


@contextmanager
def closing() -> Iterator[None]:
    """Close the kept engine at the end of the block."""
    try:
        yield
    finally:
        close()


def _reloaded(work: Work, kept: WarmEngine, load: Callable[[Path], Engine], checkpoint: Path) -> Engine:
    """The kept engine with another checkpoint, checked. If the check fails, an engine that is loaded again."""
    if kept.loaded_checkpoint() == checkpoint:  # a stored checkpoint never changes
        return kept
    texts, expected = _expected(work, checkpoint)  # before the reload: two models at once may not fit
    kept.reload(checkpoint)
    gap, limit = _gap(kept, texts, expected), TOLERANCE[work.settings.dtype]
    if gap <= limit:
        return kept
    work.record(
        f"after a reload the engine differed from the checkpoint by {gap:.3g} nats per token (limit {limit}); loaded it again"
    )
    kept.close()
    fresh = load(checkpoint)
    assert isinstance(fresh, WarmEngine)
    gap = _gap(fresh, texts, expected)
    if gap > limit:
        fresh.close()
        raise StageFailed(
            f"engine '{work.settings.engine}': expected log-probabilities within {limit} nats per token of the checkpoint's, "
            f"found a difference of {gap:.3g}, also after loading it again; use another engine, or set train.precision = "
            "'float32'"
        )
    return fresh


def _expected(work: Work, checkpoint: Path) -> tuple[Sequences, list[list[float]]]:
    """The texts of the check, and the checkpoint's log-probabilities of them.

    The texts are the first prompts with their answers, scored from the second token on.
    """
    s = work.settings
    tokenizer = models.load_tokenizer(checkpoint, s.trust_remote_code)
    rows = tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS).slice(0, CHECK_ROWS).to_pylist()
    token_ids = [
        models.render(tokenizer, row["messages"]) + tokenizer(row["answer"] or "", add_special_tokens=False)["input_ids"]
        for row in rows
    ]
    texts = [(ids[:1], ids[1:CHECK_TOKENS]) for ids in token_ids]
    model = models.load_model(checkpoint, device_of(work.hardware), s.dtype, s.trust_remote_code)
    expected = models.completion_logprobs(model, texts, tokenizer.pad_token_id)
    del model
    give_back_memory()
    return texts, expected


def _gap(engine: WarmEngine, texts: Sequences, expected: list[list[float]]) -> float:
    """The mean absolute difference between the engine's log-probabilities and the expected ones, in nats per token."""
    pairs = zip(chain(*engine.logprobs(texts)), chain(*expected), strict=True)
    differences = [abs(of_engine - of_checkpoint) for of_engine, of_checkpoint in pairs]
    return sum(differences) / max(1, len(differences))
