"""Engines that outlive a stage: kept in this process, reloaded for the next checkpoint, and proved before they draw.

Loading an engine can cost more than drawing a small round. A reload can go wrong without an error (weights half old, half new,
or a cache of the old ones), so after each one the engine's log-probabilities on a probe are compared with those of the
checkpoint read from disk, the way the logprobs stage reads it. Where they differ the engine is built anew, and the artifact's
log says so.
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

PROBE_ROWS, PROBE_TOKENS = 16, 128
# Mean |difference| in nats a token. Kernels differ by 1e-5 in float32, in half precision by their rounding of logits near 16.
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}

Sequences = list[tuple[list[int], list[int]]]
_kept: dict[str, WarmEngine] = {}  # at most one, by everything it was made with but the checkpoint


@contextmanager
def engine(work: Work) -> Iterator[Engine]:
    """The engine of a generate call with the call's checkpoint in it; kept for the next call where it can be."""
    s, checkpoint = work.settings, work.inputs["checkpoint"]
    keep = work.hardware.warm and not own_process(work.hardware)
    given = {"device": device_of(work.hardware), "dtype": s.dtype, "trust_remote_code": s.trust_remote_code, "warm": keep}
    shape = sha256_file(checkpoint / "config.json")  # another model's weights do not fit
    name = canonical({"engine": s.engine, "settings": s.settings, "shape": shape, **given})
    surroundings = {"requests": work.hardware.requests, "scratch": work.scratch, "record": work.record}
    load: Callable[[Path], Engine] = all_parts.configure("engines", s.engine, s.settings, **given, **surroundings)
    kept = _kept.pop(name, None)
    close()  # one of other settings would hold memory that this one needs
    ready = load(checkpoint) if kept is None else _with(work, kept, load, checkpoint)
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
    """Close the kept engine, if any: at the end of a flow, and before another takes its place."""
    while _kept:
        _kept.popitem()[1].close()


@contextmanager
def closing() -> Iterator[None]:
    """Whatever is kept inside is closed at the end."""
    try:
        yield
    finally:
        close()


def _with(work: Work, kept: WarmEngine, load: Callable[[Path], Engine], checkpoint: Path) -> Engine:
    """A kept engine with another checkpoint in it, proved; or one built anew where the proof fails."""
    if kept.holds() == checkpoint:  # a stored checkpoint never changes
        return kept
    probe, expected = _reference(work, checkpoint)  # first: two models at once may not fit
    kept.reload(checkpoint)
    gap, limit = _gap(kept, probe, expected), TOLERANCE[work.settings.dtype]
    if gap <= limit:
        return kept
    work.record(f"after a reload the engine differed from the checkpoint by {gap:.3g} nats a token (limit {limit}); built anew")
    kept.close()
    fresh = load(checkpoint)
    assert isinstance(fresh, WarmEngine)
    gap = _gap(fresh, probe, expected)
    if gap > limit:
        fresh.close()
        raise StageFailed(
            f"engine '{work.settings.engine}', built anew, still differs from the checkpoint by {gap:.3g} nats a token (limit "
            f"{limit}): it computes another model; use another engine, or set train.precision = 'float32'"
        )
    return fresh


def _reference(work: Work, checkpoint: Path) -> tuple[Sequences, list[list[float]]]:
    """The probe (the first prompts with their answers, scored from the second token on) and what the checkpoint makes of it."""
    s = work.settings
    tokenizer = models.load_tokenizer(checkpoint, s.trust_remote_code)
    rows = tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS).slice(0, PROBE_ROWS).to_pylist()
    texts = [
        models.render(tokenizer, row["messages"]) + tokenizer(row["answer"] or "", add_special_tokens=False)["input_ids"]
        for row in rows
    ]
    probe = [(ids[:1], ids[1:PROBE_TOKENS]) for ids in texts]
    model = models.load_model(checkpoint, device_of(work.hardware), s.dtype, s.trust_remote_code)
    expected = models.completion_logprobs(model, probe, tokenizer.pad_token_id)
    del model
    give_back_memory()
    return probe, expected


def _gap(engine: WarmEngine, probe: Sequences, expected: list[list[float]]) -> float:
    pairs = zip(chain(*engine.logprobs(probe)), chain(*expected), strict=True)
    differences = [abs(found - right) for found, right in pairs]
    return sum(differences) / max(1, len(differences))
