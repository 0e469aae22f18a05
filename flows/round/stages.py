"""The stages of one round, with the recipe's settings, inputs and seeds filled in. `one_round.py` puts them in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from data import labels
from data.labels import Evaluation, Label
from data.recipe.loss import Loss
from data.recipe.recipe import Recipe
from data.recipe.settings import Pool, Reward, Score, Train
from data.store.campaign import Campaign
from data.store.store import Artifact, derive_seed
from flows.round import gold
from flows.round.artifacts import external_file, external_model
from flows.round.resolve import accumulation, checkpointing, decoded_together, precision
from tasks.choose import pair, select
from tasks.evaluate import measure, measure_pool
from tasks.generate import contrast, generate, import_completions, pool, recorded
from tasks.generate.generate import Settings as SamplingSettings
from tasks.models import average, import_model, logprobs, tiny_model
from tasks.prompts import curate, draw, prepare
from tasks.run.parts import inputs_for
from tasks.run.stage import Around, Input
from tasks.run.work import Stage
from tasks.score import reward, score
from tasks.score.score import Settings as ScoreSettings
from tasks.score.score_while_generating import ScoreWhileGenerating
from tasks.train import online, train, training_log
from tasks.train.train import Settings as TrainSettings

Call = Callable[[Label, Stage, BaseModel, Mapping[str, Input], int, Around], Artifact]
REFERENCE_ROWS = 64  # completions on which the reference in memory is compared with its checkpoint


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation of a checkpoint leaves: METRICS, and the greedy SCORES that later checkpoints are compared with."""

    metrics: Artifact
    greedy_scores: Artifact


class Stages:
    """One method per stage. `call(label, stage, settings, inputs, seed, around)` runs it, under Prefect or without."""

    def __init__(self, campaign: Campaign, number: int, call: Call) -> None:
        self.number, self.call = number, call
        self.recipe: Recipe = campaign.recipe.at_round(number)
        self.first: Recipe = campaign.recipe.at_round(0)  # the probe is sampled in every round as in round 0
        self.made: dict[Label, Artifact] = {}
        scorers = [self.score_settings(entry, "rounds") for entry in self.recipe.score]
        self.scoring = ScoreWhileGenerating(scorers, self.recipe.hardware.workers)

    # -- inputs of all rounds ---------------------------------------------------------------------------------------
    def prepare(self) -> Artifact:
        prompts = self.recipe.prompts
        source = {"file": external_file(Path(prompts.path))} if prompts.source == "file" else {}
        settings = prepare.Settings(**prompts.model_dump() | {"path": ""})  # the file's content is an input; its path is not
        return self.do(labels.PREPARE, prepare.prepare, settings, source, seed=self.seed("world", 0))

    def base(self, prompts: Artifact) -> Artifact:
        """Checkpoint 0: a copy of the user's model, or the tiny model trained on the seed split."""
        model = self.recipe.model
        if model.path:
            return self.import_model(labels.BASE, Path(model.path))
        shape = tiny_model.Settings(hidden=model.hidden, layers=model.layers)
        fresh = self.do(labels.TINY_MODEL, tiny_model.tiny_model, shape, {}, model.init_seed)
        pretraining = Train(
            steps=model.steps,
            batch=model.batch,
            learning_rate=model.learning_rate,
            weight_decay=0.1,
            warmup=1 / 9,
            max_length=256,
            replay=True,
            save_every=300,
        )  # not the recipe's [train], so that every recipe of a world shares one checkpoint 0
        settings = self.train_settings(pretraining, Loss())
        return self.do(labels.BASE, train.train, settings, {"checkpoint": fresh, "seed_data": prompts}, self.seed("base", 0))

    def import_model(self, label: Label, path: Path) -> Artifact:
        """A copy of a model's directory."""
        return self.do(label, import_model.import_model, import_model.Settings(), {"model": external_model(path)})

    # -- a round ----------------------------------------------------------------------------------------------------
    def draw(self, prompts: Artifact, earlier: Mapping[str, Artifact]) -> Artifact:
        """The prompts of this round. `earlier` has what each earlier round drew, and what it could draw from."""
        split = "seed" if self.recipe.pool.given else "rounds"
        settings = draw.Settings(count=self.recipe.prompts.per_round, split=split)
        return self.do(labels.DRAW, draw.draw, settings, {"prompts": prompts, **earlier}, self.seed("draw", 0))

    def import_completions(self) -> Artifact:
        """A copy of the file of recorded completions."""
        prompts, path = self.recipe.prompts, self.recipe.generate.path or self.recipe.prompts.path
        settings = import_completions.Settings(map=prompts.map, template=prompts.template)
        file = {"file": external_file(Path(path))}
        return self.do(labels.IMPORT_COMPLETIONS, import_completions.import_completions, settings, file)

    def curate(self, prompts: Artifact, earlier: Mapping[str, Artifact]) -> Artifact:
        """The prompts a round may use; all of them if the recipe curates nothing."""
        if not self.recipe.curate:
            return prompts
        settings = curate.Settings(curate=[entry.model_dump() for entry in self.recipe.curate])
        return self.do(labels.CURATE, curate.curate, settings, {"prompts": prompts, **earlier})

    def generate(self, prompts: Artifact, checkpoint: Artifact, max_tokens: int) -> Artifact:
        """The round's completions, sampled from a checkpoint and scored meanwhile, unless [pool] adds completions later."""
        around = nullcontext if self.recipe.pool != Pool() else self.scoring.generating
        return self._generate(labels.GENERATE, prompts, checkpoint, max_tokens, around)

    def generate_for_pool(self, label: Label, prompts: Artifact, checkpoint: Artifact, max_tokens: int) -> Artifact:
        """Completions that [pool] adds to the round's own."""
        return self._generate(label, prompts, checkpoint, max_tokens, nullcontext)

    def _generate(self, label: Label, prompts: Artifact, checkpoint: Artifact, max_tokens: int, around: Around) -> Artifact:
        settings = self.sampling(self.recipe, self.recipe.generate.engine, split="rounds", max_tokens=max_tokens)
        inputs = {"prompts": prompts, "checkpoint": checkpoint}
        return self.do(label, generate.generate, settings, inputs, self.seed(label.text), around)

    def recorded(self, prompts: Artifact, imported: Artifact) -> Artifact:
        """The imported completions that answer the prompts."""
        settings = recorded.Settings(split="rounds")
        return self.do(labels.GENERATE, recorded.recorded, settings, {"prompts": prompts, "imported": imported})

    def pool(self, prompts: Artifact, completions: Artifact, others: Mapping[str, Artifact]) -> Artifact:
        """The round's completions with those of `others` on the same prompts; themselves if there are none."""
        if not others:
            return completions
        settings = pool.Settings(contrast=self.recipe.pool.contrast)
        return self.do(labels.POOL, pool.pool, settings, {"prompts": prompts, "completions": completions, **others})

    def contrast(self, prompts: Artifact) -> Artifact:
        settings = contrast.Settings(template=self.recipe.pool.contrast)
        return self.do(labels.CONTRAST, contrast.contrast, settings, {"prompts": prompts})

    def reward(self, scores: Mapping[str, Artifact]) -> Artifact:
        """The weighted scores combined into one value. A score without weight does not enter the key."""
        return self.combine(labels.REWARD, self.recipe, self.recipe.reward, scores)

    def combine(self, label: Label, recipe: Recipe, how: Reward, scores: Mapping[str, Artifact]) -> Artifact:
        """The reward of a recipe's scores from `scores`, by `score/<label>`."""
        weights = {entry.label: entry.weight for entry in recipe.score if entry.weight}
        settings = reward.Settings(weights=weights, **how.model_dump())
        return self.do(label, reward.reward, settings, {f"score/{name}": scores[f"score/{name}"] for name in weights})

    def choose(
        self, completions: Artifact, rewards: Artifact, scores: Mapping[str, Artifact], counted: Mapping[str, Artifact] = {}
    ) -> dict[str, Artifact]:
        """Select or pair, as the recipe says.

        Args:
            counted: `prompts` and `tokenizer` (a checkpoint), so that only completions are offered that fit train.max_length.
                Without them, as where no model will be trained, all are.
        """
        inputs: dict[str, Input] = {
            "completions": completions,
            **gold.inputs_of_choice(self.recipe, rewards, scores),
            **counted,
        }
        common: dict[str, Any] = {
            "scorers": [entry.label for entry in self.recipe.score],
            "mitigations": [entry.model_dump() for entry in self.recipe.mitigate],
            **(self.counting() if counted else {}),
        }
        if self.recipe.pair:
            inputs |= inputs_for("pairers", self.recipe.pair.pairer, {"origins": completions})
            pairing = pair.Settings(**self.recipe.pair.model_dump(), **common)
            return {"pairs": self.do(labels.PAIR, pair.pair, pairing, inputs)}
        assert self.recipe.select is not None
        inputs |= inputs_for("selectors", self.recipe.select.selector, {"origins": completions})
        selecting = select.Settings(**self.recipe.select.model_dump(), **common)
        return {"selected": self.do(labels.SELECT, select.select, selecting, inputs)}

    def train(self, start: Artifact, reference: Artifact | None, data: Mapping[str, Artifact]) -> Artifact:
        """Train from `start`. The `reference`'s log-probabilities are stored first; training checks its copy against them."""
        inputs = {"checkpoint": start, **data}
        if reference is not None:
            rows = {"checkpoint": reference, **{k: data[k] for k in ("prompts", "completions", "pairs") if k in data}}
            expected = self.logprobs(labels.REFERENCE_LOGPROBS, "rounds", rows, limit=REFERENCE_ROWS)
            inputs |= {"reference": reference, "reference_logprobs": expected}
        settings = self.train_settings(self.recipe.train, self.recipe.loss)
        return self.do(labels.TRAIN, train.train, settings, inputs, self.seed("train"))

    def measure_pool(self, completions: Artifact, rewards: Artifact, scores: Mapping[str, Artifact]) -> Artifact:
        settings = measure_pool.Settings(split="rounds", scorers=[entry.label for entry in self.recipe.score])
        inputs = {"completions": completions, "reward": rewards, **scores}
        return self.do(labels.MEASURE_POOL, measure_pool.measure_pool, settings, inputs)

    def online(self, start: Artifact, reference: Artifact | None, data: Mapping[str, Artifact]) -> Artifact:
        """Train from `start` on prompts, with the scorers as rewards. The trainer compares the reference's weights itself."""
        g = self.recipe.generate
        rewards = [
            online.Reward(name=entry.label, scorer=entry.scorer, settings=entry.settings, weight=entry.weight)
            for entry in self.recipe.score
        ]
        settings = online.Settings(
            **self.train_settings(self.recipe.train, self.recipe.loss).model_dump(),
            rewards=rewards,
            n=g.n,
            temperature=g.temperature,
            top_p=g.top_p,
            max_tokens=g.max_tokens,
            together=decoded_together(self.recipe),
        )
        inputs = {"checkpoint": start, **data} | ({"reference": reference} if reference else {})
        return self.do(labels.TRAIN, online.online, settings, inputs, self.seed("train"))

    def training_log(self, checkpoint: Artifact) -> Artifact:
        """TRAINING (every metric of every step), and `training.json`: how many rows the trainer read, and steps it made."""
        return self.do(labels.TRAINING_LOG, training_log.training_log, training_log.Settings(), {"checkpoint": checkpoint})

    def average(self, label: Label, so_far: Artifact, head: Artifact) -> Artifact:
        """One step of the moving average of the heads."""
        settings = average.Settings(decay=self.recipe.loss.ema_decay)
        return self.do(label, average.average, settings, {"average": so_far, "head": head})

    # -- measuring --------------------------------------------------------------------------------------------------
    def evaluate(
        self,
        prompts: Artifact,
        checkpoint: Artifact,
        against: Mapping[str, Artifact],
        split: str = "held_out",
        again: bool = False,
        names: Evaluation | None = None,
        verifier: Score | None = None,
        sampled: Mapping[str, Artifact] = {},
    ) -> Evaluated:
        """METRICS of a checkpoint on a split. `against` names greedy score artifacts of other checkpoints, `sampled` more.

        Seeds do not depend on the round. So a checkpoint is measured once, and different checkpoints share random numbers.
        Settings do not depend on it either: a higher token limit alone would make a later checkpoint look better.
        """
        e = self.first.evaluate
        names = names or labels.evaluation(split)
        common = self.sampling(
            self.first,
            split=split,
            top_p=1.0,
            max_tokens=e.max_tokens or self.first.generate.max_tokens,
            batch=e.batch,
            shard=max(e.batch, 2000),
        )
        samplings: dict[labels.Sampling, tuple[int, float, str]] = {"greedy": (1, 0.0, "evaluate")}
        if e.samples and split == "held_out":
            samplings["sampled"] = (e.samples, e.temperature, "evaluate")
            if again:
                samplings["again"] = (e.samples, e.temperature, "evaluate again")
        inputs: dict[str, Artifact] = {f"greedy_score/{name}": scores for name, scores in against.items()}
        inputs |= {f"sampled_score/{name}": scores for name, scores in sampled.items()}
        for sampling, (n, temperature, seed) in samplings.items():
            settings = common.model_copy(update={"n": n, "temperature": temperature})
            sources = {"prompts": prompts, "checkpoint": checkpoint}
            completions = self.do(names.completions(sampling), generate.generate, settings, sources, self.seed(seed, 0))
            scores = self.verify(names.scores(sampling), split, prompts, completions, verifier)
            inputs |= {"again": scores} if sampling == "again" else {sampling: completions, f"{sampling}_score": scores}
        metrics = self.do(names.metrics, measure.measure, measure.Settings(split=split, against=sorted(against)), inputs)
        return Evaluated(metrics, inputs["greedy_score"])

    def verify(
        self, label: Label, split: str, prompts: Artifact, completions: Artifact, verifier: Score | None = None
    ) -> Artifact:
        """Score with the verifier: the recipe's first scorer if none is named."""
        settings = self.score_settings(verifier or self.recipe.score[0], split)
        return self.do(label, score.score, settings, {"prompts": prompts, "completions": completions})

    def logprobs(self, label: Label, split: str, inputs: Mapping[str, Artifact], limit: int = 0) -> Artifact:
        """A checkpoint's log-probabilities of given completions: of the first `limit`, or of all if it is 0."""
        trusted = self.recipe.model.trust_remote_code
        settings = logprobs.Settings(split=split, limit=limit, trust_remote_code=trusted)
        return self.do(label, logprobs.logprobs, settings, inputs)

    # -- calls, seeds and settings ----------------------------------------------------------------------------------
    def do(
        self,
        label: Label,
        stage: Stage,
        settings: BaseModel,
        inputs: Mapping[str, Input],
        seed: int = 0,
        around: Around = nullcontext,
    ) -> Artifact:
        artifact = self.call(label, stage, settings, inputs, seed, around)
        return self.record(label, artifact)

    def record(self, label: Label, artifact: Artifact) -> Artifact:
        """List an artifact in the Round under a label, whether this round made it or an earlier one."""
        self.made[label] = artifact
        return artifact

    def seed(self, stage: str, number: int | None = None) -> int:
        return derive_seed(self.recipe.seed, stage, self.number if number is None else number)

    def sampling(self, recipe: Recipe, engine: str = "", *, split: str, **changes: Any) -> SamplingSettings:
        """How completions are sampled. The default engine is the one that measures checkpoints."""
        engine = engine or recipe.evaluation_engine
        values = recipe.generate.model_dump(include={"n", "temperature", "top_p", "max_tokens", "shard"})
        values |= {"batch": decoded_together(recipe), "engine": engine, "settings": recipe.engine_settings(engine)}
        return SamplingSettings(**{**values, "split": split, **self.loading(), **changes})

    def score_settings(self, entry: Score, split: str) -> ScoreSettings:
        return ScoreSettings(scorer=entry.scorer, settings=entry.settings, split=split)

    def counting(self) -> dict[str, Any]:
        """How the tokens of completions are counted where something is chosen."""
        return {"max_length": self.recipe.train.max_length, "trust_remote_code": self.recipe.model.trust_remote_code}

    def loading(self) -> dict[str, Any]:
        return {"dtype": precision(self.recipe), "trust_remote_code": self.recipe.model.trust_remote_code}

    def train_settings(self, t: Train, loss: Loss) -> TrainSettings:
        return TrainSettings(
            **t.model_dump(exclude={"start_from", "minimum", "precision", "checkpointing", "accumulate"}),
            loss=loss.used(),
            precision=precision(self.recipe),
            checkpointing=checkpointing(self.recipe),
            accumulate=accumulation(self.recipe, t, loss),
            split="rounds",
            trust_remote_code=self.recipe.model.trust_remote_code,
        )
