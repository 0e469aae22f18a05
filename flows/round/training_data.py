"""What a round trains on: prompts drawn, completions of the head or of a file, their scores, and what is chosen of them."""

from __future__ import annotations

from collections.abc import Mapping

from data.recipe.settings import Generate
from data.rows import tables
from data.store.campaign import Metric, Round
from data.store.store import Artifact, Store
from flows.round.artifacts import held, read_audit
from flows.round.scoring import scores
from flows.round.stages import Stages


def take(
    stages: Stages, store: Store, so_far: list[Round], prompts: Artifact, judges: Mapping[str, Artifact]
) -> dict[str, Artifact]:
    """By name; empty for a control, which trains on the seed split, and prompts alone for an online loss, which samples."""
    if stages.recipe.samples:
        return sample(stages, store, so_far, prompts, judges)
    return {"prompts": drawn(stages, store, so_far, prompts)} if stages.recipe.online else {}


def drawn(stages: Stages, store: Store, so_far: list[Round], prompts: Artifact) -> Artifact:
    """The round's prompts."""
    return stages.draw(stages.curate(prompts, sampled_before(stages, store, so_far)))


def sample(
    stages: Stages, store: Store, so_far: list[Round], prompts: Artifact, judges: Mapping[str, Artifact]
) -> dict[str, Artifact]:
    """Draw prompts, take completions of the source, score, and choose what to train on."""
    asked = drawn(stages, store, so_far, prompts)
    tokens = room(stages.recipe.generate, so_far)
    completions = stages.generate(asked, source(stages, store, so_far), tokens)
    completions = stages.pool(asked, completions, beside(stages, store, so_far, prompts, asked, tokens))
    judged = scores(stages, asked, completions, judges)
    reward = stages.reward(judged)
    return {"prompts": asked, "completions": completions, **stages.choose(completions, reward, judged)}


def room(generate: Generate, so_far: list[Round]) -> int:
    """Tokens a completion may have: more after each round that was cut too often."""
    if not generate.lengthen:
        return generate.max_tokens
    rates = [finished.metrics["truncated"].value or 0.0 for finished in so_far if "truncated" in finished.metrics]
    longer = generate.lengthen.factor ** sum(rate > generate.lengthen.above for rate in rates)
    return min(generate.lengthen.limit, int(generate.max_tokens * longer))


def truncated(completions: Artifact) -> Metric:
    """Share of a round's own samples that were cut at the token limit; null where no finish is known."""
    table = tables.read(completions.file("completions.parquet"), tables.COMPLETIONS)
    known = [reason == "length" for reason in table["finish_reason"].to_pylist() if reason is not None]
    return Metric(value=sum(known) / len(known) if known else None, n=len(known), split="rounds")


def source(stages: Stages, store: Store, so_far: list[Round]) -> Artifact:
    """Where the round's completions come from: the head, or the file as it was imported when the campaign began."""
    if not stages.recipe.recorded:
        return held(store, so_far[-1].head)
    known = so_far[0].artifacts.get("import_completions")
    return held(store, known) if known else stages.import_completions()


def sampled_before(stages: Stages, store: Store, so_far: list[Round]) -> dict[str, Artifact]:
    """Each finished round's own samples and their verdicts: what curating stands on."""
    verdict, found = f"score/{stages.recipe.score[0].label}", {}
    for known in so_far:
        if {"generate", verdict} <= known.artifacts.keys():
            found[f"completions/{known.round}"] = held(store, known.artifacts["generate"])
            found[f"scores/{known.round}"] = held(store, known.artifacts[verdict])
    return found


def beside(
    stages: Stages, store: Store, so_far: list[Round], prompts: Artifact, asked: Artifact, tokens: int
) -> dict[str, Artifact]:
    """What the recipe's [pool] puts beside the round's own samples."""
    pool, found = stages.recipe.pool, {}
    if pool.given:
        found["given"] = prompts
    if pool.base:
        found["base"] = stages.generate(asked, held(store, so_far[0].checkpoint), tokens, "base")
    if pool.contrast:
        found["contrast"] = stages.generate(stages.contrast(asked), held(store, so_far[-1].head), tokens, "contrast")
    sampled = [finished.artifacts["generate"] for finished in so_far if "generate" in finished.artifacts]
    earlier = sampled[-pool.earlier :] if pool.earlier else []
    return found | {f"earlier/{number}": held(store, known) for number, known in enumerate(earlier)}


def too_little(stages: Stages, data: dict[str, Artifact]) -> str | None:
    """Why the round has nothing to train on, in words; None where it has enough."""
    if not stages.recipe.samples:
        return None  # a control trains on the seed split, an online loss samples for itself
    facts, minimum = read_audit(data), stages.recipe.train.minimum
    kind, unit = ("pairs", "pairs") if "pairs" in data else ("rows", "selected completions")
    if facts[kind] >= minimum:
        return None
    without = ", ".join(f"{count} {why}" for why, count in facts.get("prompts_without", {}).items() if count)
    said = f" (prompts without: {without})" if without else ""
    return f"{facts[kind]} {unit} from {facts['prompts']} prompts, {minimum} needed{said}"
