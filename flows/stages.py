"""The stages of one round, bound to the recipe's settings, inputs and seeds. `flows/rounds.py` puts them in order."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from data import tables
from data.campaign import Campaign, Metric, Ref
from data.errors import PromptsError
from data.recipe import Loss, Recipe, Score, Train
from data.store import Artifact, External, Store, derive_seed, digest_of, sha256_file
from tasks.models import inspect_checkpoint
from tasks.parts import wants
from tasks.stage import Input
from tasks.work import device_of, module_of

Call = Callable[[str, str, BaseModel, Mapping[str, Input], int], Artifact]
REFERENCE_ROWS = 64  # completions on which the reference is proved


class Stages:
    """One method per stage. `call(label, stage, settings, inputs, seed)` runs it, under Prefect or without."""

    def __init__(self, campaign: Campaign, number: int, call: Call) -> None:
        self.number, self.call = number, call
        self.recipe: Recipe = campaign.recipe.at_round(number)
        self.at_first: Recipe = campaign.recipe.at_round(0)
        self.made: dict[str, Artifact] = {}

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
        settings = {"round": self.number, "count": self.recipe.prompts.per_round}
        return self._do("draw", "draw", settings, {"prompts": prompts}, self._seed("draw", 0))

    def generate(self, prompts: Artifact, checkpoint: Artifact) -> Artifact:
        g = self.recipe.generate
        settings = {**g.model_dump(), "split": "rounds", **self._loading()}
        return self._do(
            "generate", "generate", settings, {"prompts": prompts, "checkpoint": checkpoint}, self._seed("generate")
        )

    def scores(self, prompts: Artifact, completions: Artifact, standing: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """SCORES of every scorer. One that takes `verdicts` stands on the first one's, one with a model on the checkpoint that
        its `checkpoint` names: `standing` holds policy and base."""
        made: dict[str, Artifact] = {}
        for score in self.recipe.score:
            verdicts = {"verdicts": next(iter(made.values()))} if made else {}
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
        if "checkpoint" in wants("scorers", score.scorer):
            settings["loading"] = self._loading()
            available = {**available, **self._judge(score, standing)}
        inputs = {"prompts": prompts, "completions": completions, **supply("scorers", score.scorer, available)}
        return self._do(label, "score", settings, inputs)

    def _judge(self, score: Score, standing: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """The model a scorer asks: one of the campaign's, a directory's copy, or none (an endpoint holds it)."""
        if not score.checkpoint:
            return {}
        if score.checkpoint in standing:
            return {"checkpoint": standing[score.checkpoint]}
        model = external_model(Path(score.checkpoint))
        return {"checkpoint": self._do(f"judge/{score.label}", "import_model", {}, {"model": model})}

    def anchors(self, prompts: Artifact, base: Artifact) -> Artifact:
        """Texts of checkpoint 0 on the probe split, as they are and edited: the same in every round, whatever `[[at]]` says."""
        drawing, health = self.at_first.generate, self.at_first.health
        settings = {**drawing.model_dump(), "n": health.samples, "split": "probe", **self._loading()}
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
        scorers = [s.label for s in self.recipe.score]
        if self.recipe.pair:
            return {"pairs": self._do("pair", "pair", {**self.recipe.pair.model_dump(), "scorers": scorers}, inputs)}
        assert self.recipe.select is not None
        return {"selected": self._do("select", "select", {**self.recipe.select.model_dump(), "scorers": scorers}, inputs)}

    def train(self, start: Artifact, reference: Artifact | None, data: Mapping[str, Artifact]) -> Artifact:
        """Train from `start`; for pairs against `reference`, whose log-probabilities are stored first as its proof."""
        inputs = {"checkpoint": start, **data}
        if reference is not None:
            proof = {"checkpoint": reference, **{k: data[k] for k in ("prompts", "completions", "pairs")}}
            settings = {"split": "rounds", "limit": REFERENCE_ROWS, "trust_remote_code": self.recipe.model.trust_remote_code}
            logprobs = self._do("logprobs/reference", "logprobs", settings, proof)
            inputs |= {"reference": reference, "reference_logprobs": logprobs}
        settings = self._train_settings(self.recipe.train, self.recipe.loss)
        return self._do("train", "train", settings, inputs, self._seed("train"))

    # -- measuring --------------------------------------------------------------------------------------------------
    def evaluate(
        self,
        prompts: Artifact,
        checkpoint: Artifact,
        against: Mapping[str, Artifact],
        split: str = "held_out",
        again: bool = False,
    ) -> Artifact:
        """METRICS of a checkpoint on a split. `against` names greedy score artifacts of other checkpoints.

        Seeds do not depend on the round: the same checkpoint is measured once, different ones with common random numbers.
        """
        e, g = self.recipe.evaluate, self.recipe.generate
        place = "evaluate" if split == "held_out" else f"evaluate/{split}"
        common = {
            "engine": g.engine,
            "settings": g.settings,
            "split": split,
            "top_p": 1.0,
            "max_tokens": e.max_tokens or g.max_tokens,
            "batch": e.batch,
            "shard": max(e.batch, 2000),
            **self._loading(),
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
            scored = self._verify(f"{place}/{kind}_score", split, prompts, drawn)
            inputs |= {"again": scored} if kind == "again" else {kind: drawn, f"{kind}_score": scored}
        return self._do(f"{place}/metrics", "measure", {"split": split, "against": sorted(against)}, inputs)

    def _verify(self, label: str, split: str, prompts: Artifact, completions: Artifact) -> Artifact:
        """Score with the verifier: the recipe's first scorer."""
        verifier = self.recipe.score[0]
        settings = {"scorer": verifier.scorer, "settings": verifier.settings, "split": split}
        return self._do(label, "score", settings, {"prompts": prompts, "completions": completions})

    # -- how --------------------------------------------------------------------------------------------------------
    def _do(self, label: str, stage: str, settings: Mapping[str, Any], inputs: Mapping[str, Input], seed: int = 0) -> Artifact:
        artifact = self.call(label, stage, module_of(stage).Settings.model_validate(settings), inputs, seed)
        self.made[label] = artifact
        return artifact

    def _seed(self, stage: str, number: int | None = None) -> int:
        return derive_seed(self.recipe.seed, stage, self.number if number is None else number)

    def _loading(self) -> dict[str, Any]:
        return {"dtype": precision(self.recipe), "trust_remote_code": self.recipe.model.trust_remote_code}

    def _train_settings(self, t: Train, loss: Loss) -> dict[str, Any]:
        on_pairs = loss.name != "nll"
        return {
            **t.model_dump(exclude={"start_from", "minimum", "precision"}),
            "loss": loss.name,
            "beta": loss.beta if on_pairs else 0.0,  # SFT has none: what it does not read must not enter its key
            "nll": loss.nll if on_pairs else 0.0,
            "precision": precision(self.recipe),
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


def external_file(path: Path) -> External:
    if not path.is_file():
        raise PromptsError(f"expected a prompts file, found nothing at '{path}'")
    return External(sha256_file(path), path)


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
