"""The training data of a round: its prompts, completions of the head or of a file, their scores, and the chosen ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data import labels
from data.recipe.settings import Generate
from data.rows import tables
from data.store.campaign import Metric
from data.store.store import Artifact
from flows.round import gold
from flows.round.artifacts import facts_of, read_facts
from flows.round.history import History
from flows.round.scoring import RoundScores, scores_of_round
from flows.round.stages import Stages


@dataclass(frozen=True)
class RoundSamples:
    """The completions of a round with their scores, and what was chosen of them."""

    prompts: Artifact
    own: Artifact  # sampled in this round, or recorded
    completions: Artifact  # these, and what [pool] adds
    scores: RoundScores
    reward: Artifact
    chosen: dict[str, Artifact]  # by "pairs" or "selected"


@dataclass(frozen=True)
class TrainingData:
    """What a round trains on. A control has no prompts of its own; an online loss has prompts, but samples by itself."""

    prompts: Artifact | None = None
    samples: RoundSamples | None = None

    @property
    def inputs(self) -> dict[str, Artifact]:
        """The inputs of the training stage."""
        prompts = {"prompts": self.prompts} if self.prompts else {}
        return prompts | ({"completions": self.samples.completions, **self.samples.chosen} if self.samples else {})

    @property
    def facts(self) -> dict[str, Any]:
        """Facts about what was chosen, and about the reward it was chosen by; empty if nothing is chosen."""
        return read_facts(self.samples.chosen) | facts_of(self.samples.reward) if self.samples else {}


def training_data(stages: Stages, history: History, prompts: Artifact) -> TrainingData:
    """The round's prompts, its completions with their scores, and what is chosen of them."""
    if not stages.recipe.samples:
        return TrainingData(prompts_of_round(stages, history, prompts)) if stages.recipe.online else TrainingData()
    round_prompts = prompts_of_round(stages, history, prompts)
    own, completions = completions_of_round(stages, history, prompts, round_prompts)
    scores = scores_of_round(stages, round_prompts, completions, history.judge_models)
    reward = stages.reward(scores.by_label)
    counted = {"prompts": round_prompts, "tokenizer": history.load(history.first.checkpoint)}
    chosen = stages.choose(completions, reward, scores.by_label, counted)
    return TrainingData(round_prompts, RoundSamples(round_prompts, own, completions, scores, reward, chosen))


def prompts_of_round(stages: Stages, history: History, prompts: Artifact) -> Artifact:
    return stages.draw(stages.curate(prompts, sampled_before(stages, history)), drawn_before(history))


def completions_of_round(
    stages: Stages, history: History, prompts: Artifact, round_prompts: Artifact
) -> tuple[Artifact, Artifact]:
    """The head's samples, or recorded completions; and these with the completions that [pool] adds."""
    max_tokens = token_limit(stages.recipe.generate, history)
    if stages.recipe.recorded:
        own = stages.recorded(round_prompts, imported_completions(stages, history))
    else:
        own = stages.generate(round_prompts, history.load(history.last.head), max_tokens)
    return own, stages.pool(round_prompts, own, added_by_pool(stages, history, prompts, round_prompts, max_tokens))


def token_limit(generate: Generate, history: History) -> int:
    """The token limit of a completion. It rises after each round in which too many were truncated."""
    if not generate.lengthen:
        return generate.max_tokens
    rates = [r.metrics["truncated"].value or 0.0 for r in history.rounds if "truncated" in r.metrics]
    longer = generate.lengthen.factor ** sum(rate > generate.lengthen.above for rate in rates)
    return min(generate.lengthen.limit, int(generate.max_tokens * longer))


def truncated(completions: Artifact) -> Metric:
    """Share of a round's own samples that were truncated at the token limit; null if no finish reason is known."""
    table = tables.read(completions.file("completions.parquet"), tables.COMPLETIONS)
    cut = [reason == "length" for reason in table["finish_reason"].to_pylist() if reason is not None]
    return Metric(value=sum(cut) / len(cut) if cut else None, n=len(cut), split="rounds")


def too_long(samples: RoundSamples, count: int) -> Metric:
    """Share of a round's completions, with those of [pool], that do not fit train.max_length together with their prompt."""
    offered = tables.read(samples.completions.file("completions.parquet"), tables.COMPLETIONS).num_rows
    return Metric(value=count / offered if offered else None, n=offered, split="rounds")


def imported_completions(stages: Stages, history: History) -> Artifact:
    """The completions of the file, as they were copied when the campaign began."""
    if labels.IMPORT_COMPLETIONS.text in history.first.artifacts:
        return history.of_first(labels.IMPORT_COMPLETIONS)
    return stages.import_completions()


def sampled_before(stages: Stages, history: History) -> dict[str, Artifact]:
    """Samples of earlier rounds and their verdicts, which curators read. None if gold may not choose prompts."""
    if gold.permission(stages.recipe) != "train":
        return {}
    verdicts = labels.score(stages.recipe.score[0].label)
    earlier = {}
    for finished in history.with_labels(labels.GENERATE, verdicts):
        earlier[f"completions/{finished.round}"] = history.artifact(finished, labels.GENERATE)
        earlier[f"scores/{finished.round}"] = history.artifact(finished, verdicts)
    return earlier


def drawn_before(history: History) -> dict[str, Artifact]:
    """The prompts that earlier rounds drew, and those that their curators offered."""
    drawn = {f"drawn/{r.round}": history.artifact(r, labels.DRAW) for r in history.with_labels(labels.DRAW)}
    curated = history.with_labels(labels.DRAW, labels.CURATE)
    return drawn | {f"offered/{r.round}": history.artifact(r, labels.CURATE) for r in curated}


def added_by_pool(
    stages: Stages, history: History, prompts: Artifact, round_prompts: Artifact, max_tokens: int
) -> dict[str, Artifact]:
    """The completions that the recipe's [pool] adds to the round's own samples."""
    pool, others = stages.recipe.pool, {}
    if pool.given:
        others["given"] = prompts
    if pool.base:
        base, label = history.load(history.first.checkpoint), labels.generate_for_pool("base")
        others["base"] = stages.generate_for_pool(label, round_prompts, base, max_tokens)
    if pool.contrast:
        head, label = history.load(history.last.head), labels.generate_for_pool("contrast")
        others["contrast"] = stages.generate_for_pool(label, stages.contrast(round_prompts), head, max_tokens)
    sampled = [history.artifact(finished, labels.GENERATE) for finished in history.with_labels(labels.GENERATE)]
    earlier = sampled[-pool.earlier :] if pool.earlier else []
    return others | {f"earlier/{number}": completions for number, completions in enumerate(earlier)}


def skip_reason(stages: Stages, data: TrainingData) -> str | None:
    """Why the round cannot train, as a sentence; None if it can."""
    if data.samples is None:
        return None  # a control trains on the seed split, an online loss samples by itself
    facts, minimum = data.facts, stages.recipe.train.minimum
    count, unit = ("pairs", "pairs") if "pairs" in data.samples.chosen else ("rows", "selected completions")
    if facts[count] >= minimum:
        return None
    without = ", ".join(f"{prompts} {why}" for why, prompts in facts.get("prompts_without", {}).items() if prompts)
    reasons = f" (prompts without: {without})" if without else ""
    return f"{facts[count]} {unit} from {facts['prompts']} prompts, {minimum} needed{reasons}"
