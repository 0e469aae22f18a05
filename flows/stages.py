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
from data.loss import Loss
from data.recipe import Recipe, Train
from data.store import Artifact, External, derive_seed, digest_of, sha256_file
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

    def scores(self, prompts: Artifact, completions: Artifact) -> dict[str, Artifact]:
        """SCORES of every scorer. One that takes `verdicts` stands on the first one's."""
        made: dict[str, Artifact] = {}
        for score in self.recipe.score:
            inputs = {"prompts": prompts, "completions": completions}
            if made:
                inputs |= supply("scorers", score.scorer, {"verdicts": next(iter(made.values()))})
            label = f"score/{score.label}"
            settings = {"scorer": score.scorer, "settings": score.settings, "split": "rounds"}
            made[label] = self._do(label, "score", settings, inputs)
        return made

    def reward(self, scores: Mapping[str, Artifact]) -> Artifact:
        return self._do("reward", "reward", {"weights": {s.label: s.weight for s in self.recipe.score}}, scores)

    def choose(self, completions: Artifact, reward: Artifact, scores: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """Select or pair, as the recipe says."""
        inputs = {"completions": completions, "reward": reward, **scores}
        scorers = [s.label for s in self.recipe.score]
        if self.recipe.pair:
            return {"pairs": self._do("pair", "pair", {**self.recipe.pair.model_dump(), "scorers": scorers}, inputs)}
        assert self.recipe.select is not None
        return {"selected": self._do("select", "select", {**self.recipe.select.model_dump(), "scorers": scorers}, inputs)}

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
        return {
            **t.model_dump(exclude={"start_from", "minimum", "precision"}),
            "loss": loss.used(),
            "precision": precision(self.recipe),
            "checkpointing": checkpointing(self.recipe),
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


def read_training(checkpoint: Artifact) -> list[dict[str, Any]]:
    """The log of every step of a training."""
    rows: list[dict[str, Any]] = tables.read(checkpoint.file("training.parquet"), tables.TRAINING).to_pylist()
    return rows


def read_audit(data: Mapping[str, Artifact]) -> dict[str, Any]:
    """The facts about what was chosen, from whichever stage chose."""
    for name in ("pairs", "selected"):
        if name in data:
            facts: dict[str, Any] = json.loads(data[name].file("audit.json").read_text())
            return facts
    return {}


def ref(artifact: Artifact) -> Ref:
    return Ref(key=artifact.key, digest=artifact.digest)
