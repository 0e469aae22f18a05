"""The stages of one round, bound to the recipe's settings, inputs and seeds. `flows/rounds.py` puts them in order."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from data import sources, tables
from data.campaign import Campaign, Metric, Ref
from data.errors import RecipeError
from data.loss import Loss
from data.recipe import Recipe
from data.settings import Pool, Score, Suite, Train
from data.store import Artifact, External, Store, derive_seed, digest_of, sha256_file
from tasks import observe
from tasks.ahead import Ahead
from tasks.models import inspect_checkpoint
from tasks.parts import check_settings, wants
from tasks.read_prompts import SPLIT as ALL
from tasks.score import Settings as Scoring
from tasks.stage import Around, Input
from tasks.twin_features import COLUMNS
from tasks.work import device_of, module_of

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
        return self._do("prepare", "prepare", settings.model_dump(), source, seed=self._seed("world", 0))

    def base(self, prompts: Artifact) -> Artifact:
        """Checkpoint 0: a copy of the user's model, or the tiny one trained on the seed split."""
        model = self.recipe.model
        if model.path:
            return self._do("base", "import_model", {}, {"model": external_model(Path(model.path))})
        shape = {"hidden": model.hidden, "layers": model.layers}
        fresh = self._do("tiny_model", "tiny_model", shape, {}, model.init_seed)
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
        settings = self._train_settings(schooling, Loss())
        return self._do("base", "train", settings, {"checkpoint": fresh, "seed_data": prompts}, self._seed("base", 0))

    # -- a round ----------------------------------------------------------------------------------------------------
    def draw(self, prompts: Artifact) -> Artifact:
        split = "seed" if self.recipe.pool.given else "rounds"
        settings = {"round": self.number, "count": self.recipe.prompts.per_round, "split": split}
        return self._do("draw", "draw", settings, {"prompts": prompts}, self._seed("draw", 0))

    def import_completions(self) -> Artifact:
        """A copy of the file of recorded completions."""
        prompts, path = self.recipe.prompts, self.recipe.generate.path or self.recipe.prompts.path
        settings = {"map": prompts.map.model_dump(), "template": prompts.template}
        return self._do("import_completions", "import_completions", settings, {"file": external_file(Path(path))})

    def curate(self, prompts: Artifact, history: Mapping[str, Artifact]) -> Artifact:
        """The prompts a round may draw from; all of them where the recipe curates nothing."""
        if not self.recipe.curate:
            return prompts
        settings = {"curate": [entry.model_dump() for entry in self.recipe.curate]}
        return self._do("curate", "curate", settings, {"prompts": prompts, **history})

    def generate(self, prompts: Artifact, source: Artifact, max_tokens: int = 0, beside: str = "") -> Artifact:
        """COMPLETIONS drawn from a checkpoint, or those of imported completions that answer the prompts.

        `beside` names those that only stand beside the round's own; 0 tokens are as many as [generate] says."""
        if self.recipe.recorded:
            return self._do("generate", "recorded", {"split": "rounds"}, {"prompts": prompts, "imported": source})
        label = f"generate/{beside}" if beside else "generate"
        limit = max_tokens or self.recipe.generate.max_tokens
        settings = {**self._decoding(self.recipe, self.recipe.generate.engine), "max_tokens": limit, "split": "rounds"}
        inputs = {"prompts": prompts, "checkpoint": source}
        around = nullcontext if beside or self.recipe.pool != Pool() else self.ahead.drawing
        return self._do(label, "generate", settings, inputs, self._seed(label), around)

    def pool(self, prompts: Artifact, completions: Artifact, others: Mapping[str, Artifact]) -> Artifact:
        """The round's completions with those of `others` on the same prompts; themselves where there are none."""
        if not others:
            return completions
        inputs = {"prompts": prompts, "completions": completions, **others}
        return self._do("pool", "pool", {"contrast": self.recipe.pool.contrast}, inputs)

    def contrast(self, prompts: Artifact) -> Artifact:
        return self._do("contrast", "contrast", {"template": self.recipe.pool.contrast}, {"prompts": prompts})

    def scores(self, prompts: Artifact, completions: Artifact, standing: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """SCORES of every scorer. One that takes `verdicts` stands on the first one's, one with a model on the checkpoint that
        its `checkpoint` names: `standing` holds policy and base."""
        made: dict[str, Artifact] = {}
        for score in self.recipe.score:
            verdicts = {"verdicts": next(iter(made.values()))} if made else {}
            if score.checkpoint == "trained" and standing:
                self.fit_reward(prompts, completions, verdicts["verdicts"], standing)
            made[f"score/{score.label}"] = self.score(
                f"score/{score.label}", score, "rounds", prompts, completions, standing, verdicts
            )
        return made

    def score(
        self,
        label: str,
        score: Score,
        split: str,
        prompts: Artifact,
        completions: Artifact,
        standing: Mapping[str, Artifact],
        available: Mapping[str, Artifact],
    ) -> Artifact:
        """SCORES of one scorer, with what else it asks for."""
        settings: dict[str, Any] = {"scorer": score.scorer, "settings": score.settings, "split": split}
        asked = wants("scorers", score.scorer)
        if "checkpoint" in asked:
            settings["loading"] = self._loading()
            available = {**available, **self._judge(score, standing)}
        if "rollouts" in asked:
            available = {**available, "rollouts": self.rollouts(score, split, prompts, completions, standing)}
        inputs = {"prompts": prompts, "completions": completions, **supply("scorers", score.scorer, available)}
        return self._do(label, "score", settings, inputs, around=self.ahead.scoring)

    def rollouts(
        self, score: Score, split: str, prompts: Artifact, completions: Artifact, standing: Mapping[str, Artifact]
    ) -> Artifact:
        """The verifier's SCORES of solutions sampled on from every step of the completions, by the start they go on from.

        Raises:
            RecipeError: no model is there to go on.
        """
        model = self._judge(score, standing).get("checkpoint")
        if model is None:
            raise RecipeError(
                f"score '{score.label}' samples on from solutions: set its checkpoint to policy, base or a directory"
            )
        how = check_settings("scorers", score.scorer, score.settings)
        place = f"rollouts/{score.label}"
        sources = {"prompts": prompts, "completions": completions}
        starts = self._do(
            f"{place}/prefixes", "prefixes", {"split": split, **{k: how[k] for k in ("separator", "steps")}}, sources
        )
        decoding = {
            **self._decoding(self.recipe),
            "n": how["samples"],
            "max_tokens": self.recipe.generate.longest,
            "split": split,
        }
        drawn = self._do(
            f"{place}/drawn", "generate", decoding, {"prompts": starts, "checkpoint": model}, self._seed(f"{place}/drawn")
        )
        whole = self._do(f"{place}/continued", "continued", {"split": split}, {"prefixes": starts, "drawn": drawn})
        return self._verify(f"{place}/verdicts", split, starts, whole)

    def fit_reward(
        self, prompts: Artifact, completions: Artifact, verdicts: Artifact, standing: Mapping[str, Artifact]
    ) -> None:
        """The round's reward model, where the verifier's word gives at least train.minimum pairs."""
        f, verifier = self.recipe.fit_reward, self.recipe.score[0].label
        how = {"pairer": f.pairer, "settings": f.settings, "scorers": [verifier]}
        judged = {"completions": completions, "reward": verdicts, f"score/{verifier}": verdicts}
        pairs = self._do("fit_reward/pairs", "pair", how, judged)
        if read_audit({"pairs": pairs})["pairs"] < self.recipe.train.minimum:
            return
        settings = {
            **self._train_settings(self.recipe.train, Loss()),
            **f.model_dump(exclude={"pairer", "settings"}),
            "accumulate": f.accumulate or micro_batches(self.recipe, f.batch, 2 * self.recipe.train.max_length),
            "schedule": "cosine",
            "warmup": 0.0,
        }
        inputs = {"checkpoint": standing["base"], "prompts": prompts, "completions": completions, "pairs": pairs}
        self._do("fit_reward", "fit_reward", settings, inputs, self._seed("fit_reward"))

    def _judge(self, score: Score, standing: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """The model a scorer asks: one of the campaign's, a directory's copy, or none (an endpoint holds it; none was fitted).

        Raises:
            RecipeError: it asks the policy or the base, and there is none (`ratchet data`).
        """
        if not score.checkpoint:
            return {}
        if score.checkpoint in ("policy", "base", "trained"):
            if not standing:
                raise RecipeError(
                    f"score '{score.label}' asks the {score.checkpoint}, and without rounds there is none; "
                    "set its checkpoint to a model's directory"
                )
            if score.checkpoint == "trained":
                return {"checkpoint": self.made["fit_reward"]} if "fit_reward" in self.made else {}
            return {"checkpoint": standing[score.checkpoint]}
        model = external_model(Path(score.checkpoint))
        return {"checkpoint": self._do(f"judge/{score.label}", "import_model", {}, {"model": model})}

    def anchors(self, prompts: Artifact, base: Artifact) -> Artifact:
        """Texts of checkpoint 0 on the probe split, as they are and edited: the same in every round, whatever `[[at]]` says."""
        health = self.first.health
        settings = {**self._decoding(self.first), "n": health.samples, "split": "probe"}
        drawn = self._do(
            "anchors/drawn", "generate", settings, {"prompts": prompts, "checkpoint": base}, self._seed("anchors", 0)
        )
        return self._do("anchors", "anchors", {"edits": health.edits}, {"completions": drawn})

    def judge_health(self, label: str, edits: list[str], inputs: Mapping[str, Artifact]) -> Artifact:
        return self._do(f"judge_health/{label}", "judge_health", {"split": "rounds", "edits": edits}, inputs)

    def reward(self, scores: Mapping[str, Artifact]) -> Artifact:
        """The weighted sum; what has no weight is only watched, and does not even enter the key."""
        weights = {s.label: s.weight for s in self.recipe.score if s.weight}
        return self._do(
            "reward", "reward", {"weights": weights}, {f"score/{name}": scores[f"score/{name}"] for name in weights}
        )

    def choose(self, completions: Artifact, reward: Artifact, scores: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """Select or pair, as the recipe says."""
        inputs = {"completions": completions, "reward": reward, **scores}
        mitigations = [entry.model_dump() for entry in self.recipe.mitigate]
        common = {"scorers": [s.label for s in self.recipe.score], "mitigations": mitigations}
        if self.recipe.pair:
            inputs |= supply("pairers", self.recipe.pair.pairer, {"origins": completions})
            return {"pairs": self._do("pair", "pair", {**self.recipe.pair.model_dump(), **common}, inputs)}
        assert self.recipe.select is not None
        inputs |= supply("selectors", self.recipe.select.selector, {"origins": completions})
        return {"selected": self._do("select", "select", {**self.recipe.select.model_dump(), **common}, inputs)}

    def train(self, start: Artifact, reference: Artifact | None, data: Mapping[str, Artifact]) -> Artifact:
        """Train from `start`; where there is a `reference`, its log-probabilities are stored first, as its proof."""
        inputs = {"checkpoint": start, **data}
        if reference is not None:
            proof = {"checkpoint": reference, **{k: data[k] for k in ("prompts", "completions", "pairs") if k in data}}
            settings = {"split": "rounds", "limit": REFERENCE_ROWS, "trust_remote_code": self.recipe.model.trust_remote_code}
            logprobs = self._do("logprobs/reference", "logprobs", settings, proof)
            inputs |= {"reference": reference, "reference_logprobs": logprobs}
        settings = self._train_settings(self.recipe.train, self.recipe.loss)
        return self._do("train", "train", settings, inputs, self._seed("train"))

    def measure_pool(self, completions: Artifact, reward: Artifact, scores: Mapping[str, Artifact]) -> Artifact:
        settings = {"split": "rounds", "scorers": [s.label for s in self.recipe.score]}
        inputs = {"completions": completions, "reward": reward, **scores}
        return self._do("measure_pool", "measure_pool", settings, inputs)

    def online(self, start: Artifact, reference: Artifact | None, data: Mapping[str, Artifact]) -> Artifact:
        """Train from `start` on prompts, the recipe's scorers as rewards; the trainer proves the reference by its weights."""
        g = self.recipe.generate
        settings = {
            **self._train_settings(self.recipe.train, self.recipe.loss),
            "rewards": [{"scorer": s.scorer, "settings": s.settings, "weight": s.weight} for s in self.recipe.score],
            **{name: getattr(g, name) for name in ("n", "temperature", "top_p", "max_tokens")},
        }
        inputs = {"checkpoint": start, **data} | ({"reference": reference} if reference else {})
        return self._do("train", "online", settings, inputs, self._seed("train"))

    def training_log(self, checkpoint: Artifact) -> list[dict[str, Any]]:
        """Rows of TRAINING: every metric of every step."""
        log = self._do("training_log", "training_log", {}, {"checkpoint": checkpoint})
        rows: list[dict[str, Any]] = tables.read(log.file("training.parquet"), tables.TRAINING).to_pylist()
        return rows

    def average(self, label: str, average: Artifact, head: Artifact) -> Artifact:
        """One step of the moving average of the heads."""
        return self._do(label, "average", {"decay": self.recipe.loss.ema_decay}, {"average": average, "head": head})

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

        Seeds do not depend on the round: the same checkpoint is measured once, different ones with common random numbers.
        """
        e = self.recipe.evaluate
        place = place or ("evaluate" if split == "held_out" else f"evaluate/{split}")
        common = {
            **self._decoding(self.recipe),
            "split": split,
            "top_p": 1.0,
            "max_tokens": e.max_tokens or self.recipe.generate.max_tokens,
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
            drawn = self._do(f"{place}/{kind}", "generate", settings, sources, self._seed(seed, 0))
            scored = self._verify(f"{place}/{kind}_score", split, prompts, drawn, verifier)
            inputs |= {"again": scored} if kind == "again" else {kind: drawn, f"{kind}_score": scored}
        return self._do(f"{place}/metrics", "measure", {"split": split, "against": sorted(against)}, inputs)

    def suite_file(self, suite: Suite, what: str, prompts: Artifact) -> Artifact:
        """The prompts of a suite's file, none of which rounds train on; or its completions."""
        settings, inputs = (
            {"map": suite.map.model_dump(), "template": suite.template},
            {"file": external_file(Path(suite.path))},
        )
        if what == "completions":
            return self._do(f"suite/{suite.name}/completions", "import_completions", settings, inputs)
        settings["answer_after"] = suite.answer_after
        return self._do(f"suite/{suite.name}/prompts", "read_prompts", settings, {**inputs, "prompts": prompts})

    def likelihood(
        self, place: str, given: Mapping[str, Artifact], checkpoint: Artifact, against: Mapping[str, Artifact]
    ) -> Artifact:
        """METRICS of how likely a checkpoint finds given completions. `against` names the logprobs of other checkpoints."""
        settings = {"split": ALL, "limit": 0, "trust_remote_code": self.recipe.model.trust_remote_code}
        found = self._do(f"{place}/logprobs", "logprobs", settings, {**given, "checkpoint": checkpoint})
        inputs = {"logprobs": found, **{f"logprobs/{name}": other for name, other in against.items()}}
        return self._do(f"{place}/metrics", "measure_logprob", {"split": ALL, "against": sorted(against)}, inputs)

    def _verify(
        self, label: str, split: str, prompts: Artifact, completions: Artifact, verifier: Score | None = None
    ) -> Artifact:
        """Score with the verifier: the recipe's first scorer where none is named."""
        verifier = verifier or self.recipe.score[0]
        settings = {"scorer": verifier.scorer, "settings": verifier.settings, "split": split}
        return self._do(label, "score", settings, {"prompts": prompts, "completions": completions})

    # -- the bias ledger --------------------------------------------------------------------------------------------
    def probe(
        self, prompts: Artifact, checkpoint: Artifact, number: int = 0, base: Artifact | None = None
    ) -> dict[str, Artifact]:
        """A drawing of the probe split: its features and verdicts. Drawing 0 has the same seed in every round.

        `base` is checkpoint 0, for the distance to it; round 0 has none.
        """
        place, split = f"probe/{number}" if number else "probe", {"split": "probe"}
        decoding = {**self._decoding(self.first), **split, "n": self.recipe.probe.samples}
        sources = {"prompts": prompts, "checkpoint": checkpoint}
        drawn = self._do(f"{place}/completions", "generate", decoding, sources, self._seed(f"probe/{number}", 0))
        verdicts = self._verify(f"{place}/verdicts", "probe", prompts, drawn)
        inputs = {"prompts": prompts, "completions": drawn, "verdicts": verdicts}
        if base is not None:
            settings = {**split, "limit": 0, "trust_remote_code": self.recipe.model.trust_remote_code}
            sources = {"checkpoint": base, "prompts": prompts, "completions": drawn}
            inputs["base_logprobs"] = self._do(f"{place}/base_logprobs", "logprobs", settings, sources)
        observed = self._do(f"{place}/observed", "observe", {**self._features(), **split}, inputs)
        twins = {"twins": self._twins(place, number, prompts, checkpoint, inputs)} if self.recipe.probe.twins else {}
        return {"observed": observed, "verdicts": verdicts, **twins}

    def _twins(
        self, place: str, number: int, prompts: Artifact, checkpoint: Artifact, answered: Mapping[str, Artifact]
    ) -> Artifact:
        """Draw the probe's twins as the probe is drawn, and compare how both were answered."""
        probe = self.recipe.probe
        twins = self._do("twins", "twins", {"split": "probe", "kinds": probe.twins, "hint": probe.hint}, {"prompts": prompts})
        decoding = {**self._decoding(self.first), "split": "twins", "n": probe.samples}
        seed = self._seed(f"probe/{number}", 0)
        drawn = self._do(f"{place}/twins/drawn", "generate", decoding, {"prompts": twins, "checkpoint": checkpoint}, seed)
        inputs = {name: answered[name] for name in ("completions", "verdicts")}
        inputs |= {"twins": twins, "twin_completions": drawn}
        inputs["twin_verdicts"] = self._verify(f"{place}/twins/judged", "twins", twins, drawn)
        return self._do(f"{place}/twins", "twin_features", {"kinds": probe.twins}, inputs)

    def trained_on(self, data: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """What the ledger asks about the training data: features of the completions, their reward, and what was taken."""
        settings = {**self._features(), "prompt_features": {}, "split": "rounds"}
        verdicts = self.made[f"score/{self.recipe.score[0].label}"]
        inputs = {"prompts": data["prompts"], "completions": data["completions"], "verdicts": verdicts}
        observed = self._do("pool/observed", "observe", settings, inputs)
        chosen = {name: data[name] for name in ("pairs", "selected") if name in data}
        return {"pool": observed, "pool_prompts": data["prompts"], "reward": self.made["reward"], **chosen}

    def bias(self, inputs: Mapping[str, Artifact]) -> Artifact:
        kinds = observe.kinds(observe.Settings.model_validate(self._features()))
        of_prompts = {observe.column(name) for name in self._features()["prompt_features"]}
        settings = {
            "round": self.number,
            "baseline": self.recipe.probe.baseline,
            "kinds": {name: kind for name, kind in kinds.items() if name not in of_prompts},
            "prompt_kinds": {name: kind for name, kind in kinds.items() if name in of_prompts},
            "twins": [column for kind in self.recipe.probe.twins for column in COLUMNS[kind]],
            "chosen": next((name for name in ("pairs", "selected") if name in inputs), ""),
        }
        return self._do("bias", "bias", settings, inputs)

    def _features(self) -> dict[str, dict[str, Any]]:
        """The features the recipe names, by shelf."""
        found: dict[str, dict[str, Any]] = {"features": {}, "prompt_features": {}}
        everything = observe.everything()
        for name in self.recipe.probe.features:
            if name == "*":
                found = {family: {**found[family], **everything[family]} for family in found}
            else:
                found["prompt_features" if name in everything["prompt_features"] else "features"][name] = {}
        return found

    # -- how --------------------------------------------------------------------------------------------------------
    def _do(
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

    def _seed(self, stage: str, number: int | None = None) -> int:
        return derive_seed(self.recipe.seed, stage, self.number if number is None else number)

    def _decoding(self, recipe: Recipe, engine: str = "") -> dict[str, Any]:
        """How completions are drawn: by the engine given, or by the one that measures checkpoints."""
        engine = engine or recipe.evaluation_engine
        how = recipe.generate.model_dump(exclude={"path"})
        return {**how, "engine": engine, "settings": recipe.engine_settings(engine), **self._loading()}

    def _loading(self) -> dict[str, Any]:
        return {"dtype": precision(self.recipe), "trust_remote_code": self.recipe.model.trust_remote_code}

    def _train_settings(self, t: Train, loss: Loss) -> dict[str, Any]:
        return {
            **t.model_dump(exclude={"start_from", "minimum", "precision"}),
            "loss": loss.used(),
            "precision": precision(self.recipe),
            "checkpointing": checkpointing(self.recipe),
            "accumulate": accumulation(self.recipe, t, loss),
            "split": "rounds",
            "trust_remote_code": self.recipe.model.trust_remote_code,
        }


def supply(family: str, name: str, available: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """The inputs that a part asks for by the name of a parameter: only then do they enter its stage's key."""
    return {parameter: available[parameter] for parameter in wants(family, name) if parameter in available}


def precision(recipe: Recipe) -> str:
    """The number format, resolved before it enters a key: bfloat16 on a GPU, float32 on a CPU, unless the recipe says."""
    if recipe.train.precision != "auto":
        return recipe.train.precision
    return "bfloat16" if device_of(recipe.hardware) == "cuda" else "float32"


def checkpointing(recipe: Recipe) -> bool:
    """Whether activations are recomputed to save memory, resolved like `precision`: on a GPU, unless the recipe says."""
    if recipe.train.checkpointing != "auto":
        return recipe.train.checkpointing == "on"
    return device_of(recipe.hardware) == "cuda"


MICRO_TOKENS = 16_384  # of a micro-batch on a GPU, chosen by us: 7B with activations recomputed; not measured


def accumulation(recipe: Recipe, t: Train, loss: Loss) -> int:
    """Micro-batches per optimizer step of a training, resolved like `precision`; KTO's KL estimate needs two rows in each."""
    sides = 2 if loss.kind.data == "pairs" else 1
    return t.accumulate or micro_batches(recipe, t.batch, sides * t.max_length, least=2 if loss.name == "kto" else 1)


def micro_batches(recipe: Recipe, batch: int, tokens: int, least: int = 1) -> int:
    """On a GPU the fewest that keep each within MICRO_TOKENS tokens, a row having `tokens` at most; on a CPU one."""
    if device_of(recipe.hardware) != "cuda":
        return 1
    most = max(least, MICRO_TOKENS // tokens)
    return next(parts for parts in range(1, batch + 1) if batch % parts == 0 and batch // parts <= most)


def external_file(path: Path) -> External:
    """A user's file, folder or data set by content."""
    return External(sources.digest(path), path)


def external_model(path: Path) -> External:
    """A user's model directory by content; only the files a checkpoint needs count."""
    files = {p.name: sha256_file(p) for p in inspect_checkpoint(path)}
    return External(digest_of(files), path)


def read_metrics(artifact: Artifact) -> dict[str, Metric]:
    rows = tables.read(artifact.file("metrics.parquet"), tables.METRICS).to_pylist()
    keep = ("value", "low", "high", "n", "split")
    return {row["metric"]: Metric(**{key: row[key] for key in keep}) for row in rows}


def read_audit(data: Mapping[str, Artifact]) -> dict[str, Any]:
    """The facts about what was chosen, from whichever stage chose."""
    for name in ("pairs", "selected"):
        if name in data:
            facts: dict[str, Any] = json.loads(data[name].file("audit.json").read_text())
            return facts
    return {}


def ref(artifact: Artifact) -> Ref:
    return Ref(key=artifact.key, digest=artifact.digest)


def held(store: Store, known: Ref) -> Artifact:
    """An artifact a Round names; where its payload is gone, the stage that needs it makes it again."""
    found = store.find(known.key)
    return found or Artifact(known.key, known.digest, "artifact", store.folder(known.key) / "payload", absent="gone")
