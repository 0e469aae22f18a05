"""The stages of one round, bound to the recipe's settings, inputs and seeds. `flows/round/one_round.py` puts them in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from data.recipe.loss import Loss
from data.recipe.recipe import Recipe
from data.recipe.settings import Pool, Score, Train
from data.rows import tables
from data.store.campaign import Campaign
from data.store.store import Artifact, derive_seed
from flows.round.artifacts import external_file, external_model
from flows.round.resolve import accumulation, checkpointing, decoded_together, precision
from tasks.run.parts import supply
from tasks.run.stage import Around, Input
from tasks.run.work import module_of
from tasks.score.score import Settings as Scoring
from tasks.score.score_while_generating import Ahead

Call = Callable[[str, str, BaseModel, Mapping[str, Input], int, Around], Artifact]
REFERENCE_ROWS = 64  # completions on which the reference is proved


class Stages:
    """One method per stage. `call(label, stage, settings, inputs, seed, around)` runs it, under Prefect or without."""

    def __init__(self, campaign: Campaign, number: int, call: Call) -> None:
        self.number, self.call = number, call
        self.recipe: Recipe = campaign.recipe.at_round(number)
        self.first: Recipe = campaign.recipe.at_round(0)  # the probe is decoded in every round as in round 0
        self.made: dict[str, Artifact] = {}
        scoring = [Scoring(scorer=s.scorer, settings=s.settings, split="rounds") for s in self.recipe.score]
        self.ahead = Ahead(scoring, self.recipe.hardware.workers)

    # -- what every round stands on ---------------------------------------------------------------------------------
    def prepare(self) -> Artifact:
        prompts = self.recipe.prompts
        source = {"file": external_file(Path(prompts.path))} if prompts.source == "file" else {}
        settings = prompts.model_copy(update={"path": ""})  # its content is an input, its place does not matter
        return self.do("prepare", "prepare", settings.model_dump(), source, seed=self.seed("world", 0))

    def base(self, prompts: Artifact) -> Artifact:
        """Checkpoint 0: a copy of the user's model, or the tiny one trained on the seed split."""
        model = self.recipe.model
        if model.path:
            return self.do("base", "import_model", {}, {"model": external_model(Path(model.path))})
        shape = {"hidden": model.hidden, "layers": model.layers}
        fresh = self.do("tiny_model", "tiny_model", shape, {}, model.init_seed)
        schooling = Train(
            steps=model.steps,
            batch=model.batch,
            learning_rate=model.learning_rate,
            weight_decay=0.1,
            warmup=1 / 9,
            max_length=256,
            replay=True,
            save_every=300,
        )  # of its own, so that every recipe of a world shares one base
        settings = self.train_settings(schooling, Loss())
        return self.do("base", "train", settings, {"checkpoint": fresh, "seed_data": prompts}, self.seed("base", 0))

    # -- a round ----------------------------------------------------------------------------------------------------
    def draw(self, prompts: Artifact) -> Artifact:
        split = "seed" if self.recipe.pool.given else "rounds"
        settings = {"round": self.number, "count": self.recipe.prompts.per_round, "split": split}
        return self.do("draw", "draw", settings, {"prompts": prompts}, self.seed("draw", 0))

    def import_completions(self) -> Artifact:
        """A copy of the file of recorded completions."""
        prompts, path = self.recipe.prompts, self.recipe.generate.path or self.recipe.prompts.path
        settings = {"map": prompts.map.model_dump(), "template": prompts.template}
        return self.do("import_completions", "import_completions", settings, {"file": external_file(Path(path))})

    def curate(self, prompts: Artifact, history: Mapping[str, Artifact]) -> Artifact:
        """The prompts a round may draw from; all of them where the recipe curates nothing."""
        if not self.recipe.curate:
            return prompts
        settings = {"curate": [entry.model_dump() for entry in self.recipe.curate]}
        return self.do("curate", "curate", settings, {"prompts": prompts, **history})

    def generate(self, prompts: Artifact, source: Artifact, max_tokens: int = 0, beside: str = "") -> Artifact:
        """COMPLETIONS drawn from a checkpoint, or those of imported completions that answer the prompts.

        `beside` names those that only stand beside the round's own; 0 tokens are as many as [generate] says."""
        if self.recipe.recorded:
            return self.do("generate", "recorded", {"split": "rounds"}, {"prompts": prompts, "imported": source})
        label = f"generate/{beside}" if beside else "generate"
        limit = max_tokens or self.recipe.generate.max_tokens
        settings = {**self.decoding(self.recipe, self.recipe.generate.engine), "max_tokens": limit, "split": "rounds"}
        inputs = {"prompts": prompts, "checkpoint": source}
        around = nullcontext if beside or self.recipe.pool != Pool() else self.ahead.drawing
        return self.do(label, "generate", settings, inputs, self.seed(label), around)

    def pool(self, prompts: Artifact, completions: Artifact, others: Mapping[str, Artifact]) -> Artifact:
        """The round's completions with those of `others` on the same prompts; themselves where there are none."""
        if not others:
            return completions
        inputs = {"prompts": prompts, "completions": completions, **others}
        return self.do("pool", "pool", {"contrast": self.recipe.pool.contrast}, inputs)

    def contrast(self, prompts: Artifact) -> Artifact:
        return self.do("contrast", "contrast", {"template": self.recipe.pool.contrast}, {"prompts": prompts})

    def reward(self, scores: Mapping[str, Artifact]) -> Artifact:
        """One value of the weighted scores; what has no weight is only watched, and does not even enter the key."""
        weights = {s.label: s.weight for s in self.recipe.score if s.weight}
        settings = {"weights": weights, **self.recipe.reward.model_dump()}
        return self.do("reward", "reward", settings, {f"score/{name}": scores[f"score/{name}"] for name in weights})

    def choose(self, completions: Artifact, reward: Artifact, scores: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """Select or pair, as the recipe says."""
        inputs = {"completions": completions, "reward": reward, **scores}
        mitigations = [entry.model_dump() for entry in self.recipe.mitigate]
        common = {"scorers": [s.label for s in self.recipe.score], "mitigations": mitigations}
        if self.recipe.pair:
            inputs |= supply("pairers", self.recipe.pair.pairer, {"origins": completions})
            return {"pairs": self.do("pair", "pair", {**self.recipe.pair.model_dump(), **common}, inputs)}
        assert self.recipe.select is not None
        inputs |= supply("selectors", self.recipe.select.selector, {"origins": completions})
        return {"selected": self.do("select", "select", {**self.recipe.select.model_dump(), **common}, inputs)}

    def train(self, start: Artifact, reference: Artifact | None, data: Mapping[str, Artifact]) -> Artifact:
        """Train from `start`; where there is a `reference`, its log-probabilities are stored first, as its proof."""
        inputs = {"checkpoint": start, **data}
        if reference is not None:
            proof = {"checkpoint": reference, **{k: data[k] for k in ("prompts", "completions", "pairs") if k in data}}
            settings = {"split": "rounds", "limit": REFERENCE_ROWS, "trust_remote_code": self.recipe.model.trust_remote_code}
            logprobs = self.do("logprobs/reference", "logprobs", settings, proof)
            inputs |= {"reference": reference, "reference_logprobs": logprobs}
        settings = self.train_settings(self.recipe.train, self.recipe.loss)
        return self.do("train", "train", settings, inputs, self.seed("train"))

    def measure_pool(self, completions: Artifact, reward: Artifact, scores: Mapping[str, Artifact]) -> Artifact:
        settings = {"split": "rounds", "scorers": [s.label for s in self.recipe.score]}
        inputs = {"completions": completions, "reward": reward, **scores}
        return self.do("measure_pool", "measure_pool", settings, inputs)

    def online(self, start: Artifact, reference: Artifact | None, data: Mapping[str, Artifact]) -> Artifact:
        """Train from `start` on prompts, the recipe's scorers as rewards; the trainer proves the reference by its weights."""
        g = self.recipe.generate
        settings = {
            **self.train_settings(self.recipe.train, self.recipe.loss),
            "rewards": [
                {"name": s.label, "scorer": s.scorer, "settings": s.settings, "weight": s.weight} for s in self.recipe.score
            ],
            **{name: getattr(g, name) for name in ("n", "temperature", "top_p", "max_tokens")},
            "together": decoded_together(self.recipe),
        }
        inputs = {"checkpoint": start, **data} | ({"reference": reference} if reference else {})
        return self.do("train", "online", settings, inputs, self.seed("train"))

    def training_log(self, checkpoint: Artifact) -> list[dict[str, Any]]:
        """Rows of TRAINING: every metric of every step."""
        log = self.do("training_log", "training_log", {}, {"checkpoint": checkpoint})
        rows: list[dict[str, Any]] = tables.read(log.file("training.parquet"), tables.TRAINING).to_pylist()
        return rows

    def average(self, label: str, average: Artifact, head: Artifact) -> Artifact:
        """One step of the moving average of the heads."""
        return self.do(label, "average", {"decay": self.recipe.loss.ema_decay}, {"average": average, "head": head})

    # -- measuring --------------------------------------------------------------------------------------------------
    def evaluate(
        self,
        prompts: Artifact,
        checkpoint: Artifact,
        against: Mapping[str, Artifact],
        split: str = "held_out",
        again: bool = False,
        place: str = "",
        verifier: Score | None = None,
    ) -> Artifact:
        """METRICS of a checkpoint on a split. `against` names greedy score artifacts of other checkpoints.

        Seeds do not depend on the round: the same checkpoint is measured once, different ones with common random numbers. Nor
        does how they are measured: a longer window alone would make a later checkpoint look better.
        """
        e = self.first.evaluate
        place = place or ("evaluate" if split == "held_out" else f"evaluate/{split}")
        common = {
            **self.decoding(self.first),
            "split": split,
            "top_p": 1.0,
            "max_tokens": e.max_tokens or self.first.generate.max_tokens,
            "batch": e.batch,
            "shard": max(e.batch, 2000),
        }
        wanted = {"greedy": (1, 0.0, "evaluate")}
        if e.samples and split == "held_out":
            wanted["sampled"] = (e.samples, e.temperature, "evaluate")
            if again:
                wanted["again"] = (e.samples, e.temperature, "evaluate again")
        inputs: dict[str, Artifact] = {f"greedy_score/{name}": score for name, score in against.items()}
        for kind, (n, temperature, seed) in wanted.items():
            settings = {**common, "n": n, "temperature": temperature}
            sources = {"prompts": prompts, "checkpoint": checkpoint}
            drawn = self.do(f"{place}/{kind}", "generate", settings, sources, self.seed(seed, 0))
            scored = self.verify(f"{place}/{kind}_score", split, prompts, drawn, verifier)
            inputs |= {"again": scored} if kind == "again" else {kind: drawn, f"{kind}_score": scored}
        return self.do(f"{place}/metrics", "measure", {"split": split, "against": sorted(against)}, inputs)

    def verify(
        self, label: str, split: str, prompts: Artifact, completions: Artifact, verifier: Score | None = None
    ) -> Artifact:
        """Score with the verifier: the recipe's first scorer where none is named."""
        verifier = verifier or self.recipe.score[0]
        settings = {"scorer": verifier.scorer, "settings": verifier.settings, "split": split}
        return self.do(label, "score", settings, {"prompts": prompts, "completions": completions})

    # -- the bias ledger --------------------------------------------------------------------------------------------

    # -- how --------------------------------------------------------------------------------------------------------
    def do(
        self,
        label: str,
        stage: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Input],
        seed: int = 0,
        around: Around = nullcontext,
    ) -> Artifact:
        artifact = self.call(label, stage, module_of(stage).Settings.model_validate(settings), inputs, seed, around)
        self.made[label] = artifact
        return artifact

    def seed(self, stage: str, number: int | None = None) -> int:
        return derive_seed(self.recipe.seed, stage, self.number if number is None else number)

    def decoding(self, recipe: Recipe, engine: str = "") -> dict[str, Any]:
        """How completions are drawn: by the engine given, or by the one that measures checkpoints."""
        engine = engine or recipe.evaluation_engine
        how = recipe.generate.model_dump(exclude={"path"})
        how["batch"] = decoded_together(recipe)
        return {**how, "engine": engine, "settings": recipe.engine_settings(engine), **self.loading()}

    def loading(self) -> dict[str, Any]:
        return {"dtype": precision(self.recipe), "trust_remote_code": self.recipe.model.trust_remote_code}

    def train_settings(self, t: Train, loss: Loss) -> dict[str, Any]:
        return {
            **t.model_dump(exclude={"start_from", "minimum", "precision"}),
            "loss": loss.used(),
            "precision": precision(self.recipe),
            "checkpointing": checkpointing(self.recipe),
            "accumulate": accumulation(self.recipe, t, loss),
            "split": "rounds",
            "trust_remote_code": self.recipe.model.trust_remote_code,
        }
