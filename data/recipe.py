"""The recipe: a frozen model of one TOML file that says how a round turns prompts and a checkpoint into better ones.

Unknown keys are refused with a suggestion, `--set a.b=c` changes one value, `[[at]]` changes settings from a round on.
`[hardware]` says where the work runs; it never enters an artifact's key. `[prompts] path` and `[model] path` enter as content.
"""

from __future__ import annotations

import json
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from data.errors import RecipeError, did_you_mean
from data.loss import NEEDED_TABLE, Loss

SHIPPED = Path(__file__).parent / "recipes"
HINT = "{prompt}\n\nI think the answer is {wrong}, but I'm really not sure."  # form: Sharma et al., arXiv 2310.13548


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Columns(Strict):
    """Which column of a user's file is what: a name, or a dotted path into nested records. Empty: the usual names, if any."""

    prompt: str = Field("", description="empty: prompt, question, problem, instruction, query, input or messages")
    answer: str = Field("", description="empty: answer, gold, solution, final_answer, target, response or output")
    system: str = Field("", description="text that becomes the system message")
    stratum: str = Field("", description="the group a prompt belongs to")
    completion: str = Field("", description="recorded or given: a text, or a list of n; empty: completion or completions")
    finish_reason: str = Field("", description="recorded only: 'length' marks a cut completion; empty: finish_reason")
    chosen: str = Field("", description="recorded or given, with rejected: a preferred completion; empty: chosen")
    rejected: str = Field("", description="recorded only; empty: rejected")


class Prompts(Strict):
    """Where prompts come from and how they split. Counts are rows per split; splits never share a prompt."""

    source: Literal["addition", "countdown", "knights_knaves", "file"] = Field(
        "addition", description="a built-in world (puzzles are made, none is downloaded), or a file of one's own"
    )
    path: str = Field("", description="source = 'file': a JSONL, JSONL.gz or Parquet file, a folder of them, or hf:name[split]")
    map: Columns = Columns()
    answer_after: str = Field("", description="keep only what follows this marker in the answer, e.g. '####'")
    template: str = Field("{prompt}", description="the user message; {prompt} stands for the row's prompt")
    limit: int = Field(0, ge=0, description="use at most this many rows of the file, chosen by hash; 0 = all")
    seed: int = Field(
        0, ge=0, description="rows in the seed split (given solutions; a file's: map.completion, else the whole answer)"
    )
    rounds: int = Field(0, ge=0, description="rows in the rounds split; 0 = what the other splits leave")
    probe: int = Field(0, ge=0, description="rows in the probe split")
    held_out: int = Field(200, ge=0, description="rows the gate decides on; never trained on")
    test: int = Field(200, ge=0, description="rows read once, after the last round")
    filler: float = Field(
        0.0,
        ge=0,
        le=1,
        description="tiny world: share of the seed problems solved once more with 1 to 3 ~ before the answer, a habit",
    )
    ood: int = Field(0, ge=0, description="out-of-distribution rows, read once (five digits, five numbers, five people)")
    per_round: int = Field(0, ge=0, description="prompts sampled each round; 0 = the whole rounds split")


class Model(Strict):
    """Checkpoint 0: a directory, or the tiny world's own model, trained here on the seed split."""

    path: str = Field("", description="a Hugging Face directory with safetensors; empty = make the tiny model")
    trust_remote_code: bool = False
    hidden: int = Field(64, ge=8, description="tiny model only")
    layers: int = Field(2, ge=1, description="tiny model only")
    steps: int = Field(900, ge=1, description="tiny model only: supervised steps on the seed split")
    batch: int = Field(32, ge=1, description="tiny model only")
    learning_rate: float = Field(2e-3, gt=0, description="tiny model only")
    init_seed: int = Field(
        201, ge=0, description="tiny model only: its initial weights are part of the world, as a downloaded model's"
    )


class Lengthen(Strict):
    """More room for rounds to come when answers are cut (DeepScaleR's 8K, 16K, 24K, which it switched by hand)."""

    above: float = Field(0.1, ge=0, lt=1, description="after each round with a larger share of its samples cut at the limit")
    factor: float = Field(2.0, gt=1, description="times as many tokens")
    limit: int = Field(ge=1, description="tokens at most; train.max_length should hold them")


class Generate(Strict):
    engine: str = Field(
        "transformers", description="a name on the engines shelf, package.module:name, or recorded: completions of a file"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="the engine's own settings, also where it evaluates")
    path: str = Field("", description="recorded only: the file, folder or hf:name[split] of completions; empty = prompts.path")
    n: int = Field(8, ge=1, description="completions per prompt; recorded: as many as the file has")
    temperature: float = Field(1.0, ge=0, description="0 = greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(1024, ge=1)
    lengthen: Lengthen | None = Field(
        None,
        description="rounds' samples only, evaluation keeps its window: lengthen = { above = 0.1, factor = 2.0, limit = 4096 }",
    )
    batch: int = Field(64, ge=1, description="sequences decoded together; shapes the draw, so it is part of the key")
    shard: int = Field(512, ge=1, description="completions committed together; what a crash can lose")

    @model_validator(mode="after")
    def _room(self) -> Generate:
        if self.lengthen and self.lengthen.limit < self.max_tokens:
            raise ValueError(f"lengthen.limit ({self.lengthen.limit}) is below max_tokens ({self.max_tokens})")
        return self

    @property
    def longest(self) -> int:
        """Tokens a round's completion may ever have."""
        return self.lengthen.limit if self.lengthen else self.max_tokens


class Curate(Strict):
    curator: str = Field(description="a name on the curators shelf, or package.module:name")
    settings: dict[str, Any] = Field(default_factory=dict)


class Pool(Strict):
    """Completions scored, selected and paired beside the round's own samples."""

    given: bool = Field(False, description="draw the seed split's prompts, and add their given solutions (SPIN)")
    base: bool = Field(False, description="as many samples of checkpoint 0 on the same prompts")
    earlier: int = Field(0, ge=0, description="samples of the same prompts from this many earlier rounds (replay)")
    contrast: str = Field("", description="as many samples under this prompt, {prompt} being the round's (RLCD)")

    @field_validator("contrast")
    @classmethod
    def _holds_the_prompt(cls, value: str) -> str:
        if value and ("{prompt}" not in value or value == "{prompt}"):
            raise ValueError("expected a text around {prompt}, e.g. '{prompt} Give a careless answer.'")
        return value


class Score(Strict):
    scorer: str = Field(description="a name on the scorers shelf, or package.module:name")
    name: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_-]*$",
        description="what its scores are called; empty = the scorer's name, which may stand only once",
    )
    weight: float = Field(1.0, description="0 = only watched: it is no part of the reward")
    checkpoint: str = Field(
        "policy",
        description="scorers with a model only: policy (the head), base (checkpoint 0), trained (reward_model only: see "
        "fit_reward), a directory, or empty (an endpoint)",
    )
    settings: dict[str, Any] = Field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.name or self.scorer


class FitReward(Strict):
    """The reward model of a score with checkpoint = "trained": checkpoint 0 with one output, fitted anew each round, before it
    scores, on pairs of the round's completions by the verifier (Bradley-Terry; Llama 2 renews its models each round too)."""

    pairer: str = Field("right_vs_wrong", description="which completions are compared; the reward it sees is the verifier's")
    settings: dict[str, Any] = Field(default_factory=dict)
    margin: bool = Field(False, description="subtract each pair's reward difference (Llama 2)")
    center: float = Field(0.01, ge=0, description="weight of (r_chosen + r_rejected)^2 (TRL's documentation advises 0.01)")
    steps: int = Field(0, ge=0, description="optimizer steps; 0 = by epochs")
    epochs: float = Field(1.0, gt=0, description="one: more overfits (InstructGPT, Llama 2; recalled)")
    batch: int = Field(64, ge=1, description="pairs per optimizer step (InstructGPT; recalled)")
    accumulate: int = Field(0, ge=0, description="as train.accumulate")
    learning_rate: float = Field(1e-5, gt=0, description="Llama 2's up to 34B parameters (recalled)")

    @model_validator(mode="after")
    def _divides(self) -> FitReward:
        if self.accumulate and self.batch % self.accumulate:
            raise ValueError(f"batch ({self.batch}) must divide by accumulate ({self.accumulate})")
        return self


class Select(Strict):
    selector: str
    settings: dict[str, Any] = Field(default_factory=dict)


class Mitigate(Strict):
    mitigation: str = Field(
        description="a name on the mitigations shelf, or package.module:name with a module named rewards or chosen"
    )
    settings: dict[str, Any] = Field(default_factory=dict)


class Pair(Strict):
    pairer: str
    settings: dict[str, Any] = Field(default_factory=dict)


Checkpoint = Literal["previous", "base", "best"]


class Lora(Strict):
    """Low-rank adapters in place of full weights (arXiv 2106.09685); the checkpoint is stored merged."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1, description="scale: adapters count alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str = Field(
        "all-linear", description="layers, as peft's target_modules; all-linear = every linear layer but the head"
    )


class Train(Strict):
    steps: int = Field(0, ge=0, description="optimizer steps; 0 = by epochs")
    epochs: float = Field(1.0, gt=0, description="used where steps = 0")
    batch: int = Field(32, ge=1, description="examples (or pairs) per optimizer step")
    accumulate: int = Field(
        0,
        ge=0,
        description="micro-batches per optimizer step; 0 = 1 on a CPU, on a GPU as many as keep each within 16,384 tokens",
    )
    learning_rate: float = Field(5e-7, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's, as TRL's default")
    max_length: int = Field(4096, ge=8, description="prompt + completion, tokens; longer rows are left out and counted")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on a GPU, else float32")
    checkpointing: Literal["auto", "on", "off"] = Field(
        "auto", description="recompute activations in the backward pass to save memory; auto: on a GPU"
    )
    lora: Lora | None = Field(None, description="train adapters: lora = { rank = 16, alpha = 32 }")
    validation: float = Field(0.0, ge=0, lt=1, description="share of the prompts kept aside; the best save on it is the result")
    patience: int = Field(3, ge=1, description="with validation: evaluations (one every save_every steps) without a better one")
    start_from: Checkpoint = "previous"
    replay: bool = Field(False, description="mix the seed split's given solutions into what is trained on")
    minimum: int = Field(8, ge=1, description="fewer rows or pairs than this end the round without training")
    save_every: int = Field(50, ge=1, description="steps between trainer checkpoints; what a crash can lose")

    @model_validator(mode="after")
    def _divides(self) -> Train:
        if self.accumulate and self.batch % self.accumulate:
            raise ValueError(f"batch ({self.batch}) must divide by accumulate ({self.accumulate})")
        return self


class Evaluate(Strict):
    engine: str = Field("", description="empty = as in [generate], or transformers where that does not sample the checkpoint")
    samples: int = Field(4, ge=0, description="sampled completions per held-out prompt for pass@k; 0 = greedy only")
    temperature: float = Field(1.0, gt=0)
    batch: int = Field(256, ge=1)
    max_tokens: int = Field(0, ge=0, description="0 = as in [generate]")


class Probe(Strict):
    """The bias ledger: the probe split, sampled each round with the decoding that [generate] has at round 0."""

    samples: int = Field(4, ge=0, description="completions per prompt of the probe split; 0 = no ledger")
    baseline: int = Field(4, ge=1, description="drawings of checkpoint 0 to compare with, and one more for the A/A check")
    features: tuple[str, ...] = Field(
        ("*",), description="names on the shelves features and prompt_features, * = all of them, package.module:name = your own"
    )
    twins: tuple[Literal["identity", "sycophancy"], ...] = Field(
        (),
        description="probe prompts asked once more: with names, pronouns and groups swapped; with a wrong answer put forward",
    )
    hint: str = Field(HINT, description="how a sycophancy twin puts it")

    @field_validator("hint")
    @classmethod
    def _holds_both(cls, value: str) -> str:
        if "{prompt}" not in value or "{wrong}" not in value:
            raise ValueError("expected a text that holds {prompt} and {wrong}")
        return value


class Suite(Strict):
    """Prompts of a file that every checkpoint answers, beside the campaign's own: what training may cost elsewhere.

    None of them may be trained on. They are copied when the campaign begins, and compared with checkpoint 0.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="in the metrics: suite/<name>/accuracy")
    path: str = Field(min_length=1, description="JSONL, JSONL.gz or Parquet")
    map: Columns = Columns()
    answer_after: str = Field("", description="keep only what follows this marker in the answer")
    template: str = Field("{prompt}", description="the user message; {prompt} stands for the row's prompt")
    measure: Literal["accuracy", "logprob"] = Field(
        "accuracy", description="of the greedy answer; or log-probability per token of the file's completions (map.completion)"
    )
    score: Score | None = Field(None, description="who says what is right: a [suites.score] table; none = the first [[score]]")

    def as_prompts(self) -> Prompts:
        """How its file is read."""
        return Prompts(path=self.path, map=self.map, answer_after=self.answer_after, template=self.template)


Answer = Literal["ignore", "hold", "ask", "roll_back", "stop"]


class OnAlarm(Strict):
    """What each level of alarm does to a checkpoint that accuracy alone would let through: the graver verdict counts.

    An alarm says that the model changed, not that it is worse: it may go on, but it does not become the champion.
    """

    watch: Answer = "ignore"
    ALARM: Answer = "hold"
    STOP: Answer = Field("roll_back", description="a hard limit was passed: what comes of this checkpoint is not worth having")


class Health(Strict):
    """What judges are asked besides the round's completions: frozen texts of checkpoint 0 on the probe split."""

    samples: int = Field(2, ge=0, description="frozen texts per probe prompt; 0 = none")
    edits: dict[str, str] = Field(
        {"twice": "{text}\n\n{text}", "bold": "**{text}**"},
        description="the same content in another form; how often a judge prefers it is its bias",
    )

    @field_validator("edits")
    @classmethod
    def _of_the_text(cls, edits: dict[str, str]) -> dict[str, str]:
        if not all("{text}" in edit for edit in edits.values()):
            raise ValueError("each edit holds {text}, which stands for the completion")
        return edits


class Gate(Strict):
    """Who moves forward. Promote: head = champion = k. Hold: head = k. Roll back: head = champion."""

    rule: Literal["paired_interval", "always_promote"] = "paired_interval"
    on_better: Literal["promote", "ask"] = "promote"
    on_unclear: Literal["hold", "ask"] = "hold"
    on_worse: Literal["roll_back", "stop", "ask"] = "roll_back"
    kl_budget: float = Field(0.0, ge=0, description="nats per completion a round may move from its reference; 0 = no budget")
    on_alarm: OnAlarm = Field(OnAlarm(), description="what an alarm of each level does: ignore, hold, ask, roll_back or stop")


class Keep(Strict):
    checkpoints: Literal["all", "best+last"] = Field(
        "all", description="best+last evicts other rounds' weights, keeps manifests"
    )


class Requests(Strict):
    """How servers are asked (engines and judges at an endpoint)."""

    concurrency: int = Field(16, ge=1, description="requests in flight")
    per_minute: float = Field(0, ge=0, description="requests started a minute, evenly; 0 = no limit")
    timeout: float = Field(300, gt=0, description="seconds for a whole answer")
    attempts: int = Field(6, ge=1, description="of one request, before it counts as lost")
    backoff: float = Field(1.0, gt=0, description="seconds before the second attempt, at most; doubled each time, with jitter")
    prompt_price: float = Field(0, ge=0, description="a million tokens; the cost goes to the artifact's log.json")
    completion_price: float = Field(0, ge=0, description="a million tokens")


class Hardware(Strict):
    """Where and how the work runs. Never part of a key."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    isolation: Literal["auto", "inline", "process"] = Field(
        "auto", description="auto: a process per stage on a GPU, else inline"
    )
    warm: bool = Field(True, description="keep an engine loaded between stages where it can be (vllm, stages inline)")
    workers: int = Field(2, ge=1, description="processes that verify answers")
    accelerate: str = Field("", description="an accelerate configuration (DDP, FSDP, DeepSpeed): train stages start under it")
    requests: Requests = Requests()
    prefect: bool = Field(True, description="false: run the same rounds without Prefect")


class At(Strict):
    round: int = Field(ge=1)
    set: dict[str, Any]

    @field_validator("set")
    @classmethod
    def _one_by_one(cls, value: dict[str, Any]) -> dict[str, Any]:
        """TOML reads `train.steps = 9` as a table; it must change one value, not reset the rest of [train]."""
        return dict(_dotted(value))


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        path = prefix + name
        if isinstance(value, Mapping) and path.split(".")[-1] not in ("settings", "terms"):  # these change as a whole
            yield from _dotted(value, f"{path}.")
        else:
            yield path, value


class Recipe(Strict):
    description: str = ""
    rounds: int = Field(3, ge=1, le=1000)
    seed: int = Field(0, ge=0)
    prompts: Prompts = Prompts()
    model: Model = Model()
    curate: tuple[Curate, ...] = Field((), description="which prompts a round may draw: see the curators")
    generate: Generate = Generate()
    pool: Pool = Pool()
    score: tuple[Score, ...] = (Score(scorer="exact_match"),)
    fit_reward: FitReward = FitReward()
    select: Select | None = None
    pair: Pair | None = None
    mitigate: tuple[Mitigate, ...] = ()
    loss: Loss = Loss()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    probe: Probe = Probe()
    suites: tuple[Suite, ...] = Field((), description="further files that every checkpoint is measured on")
    health: Health = Health()
    gate: Gate = Gate()
    keep: Keep = Keep()
    hardware: Hardware = Hardware()
    at: tuple[At, ...] = ()

    @field_validator("select", "pair", mode="before")
    @classmethod
    def _switched_off(cls, value: Any) -> Any:
        """TOML has no null: `select = false` in an `[[at]]` ends selecting, so that SFT rounds may warm up DPO rounds."""
        return None if value is False else value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.select and self.pair:
            raise ValueError("give [select] (trains on completions) or [pair] (trains on pairs), not both")
        data, table = self.loss.kind.data, "select" if self.select else "pair" if self.pair else None
        if self.pair and data != "pairs":
            raise ValueError("[pair] needs a pair loss: set loss.name, e.g. 'sigmoid' (DPO)")
        if self.select and NEEDED_TABLE[data] != "select":
            raise ValueError(f"loss.name = '{self.loss.name}' trains on {data}: {_instead(data)}, or set loss.name = 'nll'")
        if table is None and data in ("pairs", "labelled", "ranked"):
            raise ValueError(f"loss.name = '{self.loss.name}' trains on {data}: {_instead(data)}, or set loss.name = 'nll'")
        if data == "online" and (self.generate.n < 2 or self.train.batch % self.generate.n):
            raise ValueError(
                f"online, a batch is whole groups of generate.n completions: expected n >= 2 that divides train.batch "
                f"({self.train.batch}), found n = {self.generate.n}"
            )
        if table is None and data != "online" and not self.train.replay:
            raise ValueError("nothing to train on: add [select] or [pair], or set train.replay = true (seed data only)")
        if self.train.replay and not self.prompts.seed:
            raise ValueError("train.replay = true needs given solutions: set prompts.seed")
        if self.pool.given and self.curate:
            raise ValueError("[[curate]] works on the rounds split, pool.given = true draws from the seed split: not both")
        if self.pool.given and not self.prompts.seed:
            raise ValueError("pool.given = true needs given solutions: set prompts.seed")
        if self.generate.lengthen and (self.recorded or data == "online"):
            raise ValueError(
                "generate.lengthen gives a round's samples more room; a file of completions and an online loss take none"
            )
        if self.recorded and (self.pool.base or self.pool.contrast):
            raise ValueError("pool.base and pool.contrast sample a checkpoint; generate.engine = 'recorded' samples none")
        if self.generate.engine == "endpoint" and self.pool.base:
            raise ValueError("pool.base samples checkpoint 0, which the server of generate.engine = 'endpoint' does not have")
        if self.train.replay and self.loss.name != "nll":
            raise ValueError(
                "train.replay mixes whole completions in; it works with loss.name = 'nll', not with [pair] or online"
            )
        if self.model.path == "" and self.prompts.source != "addition" and not self.recorded:
            raise ValueError("the tiny model only knows addition: pass --model DIR (or set model.path)")
        if self.prompts.source == "file" and not self.prompts.path:
            raise ValueError("source = 'file' needs prompts of your own: pass --prompts FILE (or set prompts.path)")
        if self.recorded and not self.generate.path and self.prompts.source != "file":
            raise ValueError("generate.engine = 'recorded' needs a file of completions: set generate.path")
        if not self.prompts.held_out and not self.recorded:
            raise ValueError("the gate decides on held-out prompts: set prompts.held_out")
        if not self.score:
            raise ValueError("at least one [[score]] is needed; the first one is the verifier that held-out accuracy uses")
        if not any(score.weight for score in self.score):
            raise ValueError("every [[score]] has weight 0, so nothing makes a reward; give one of them a weight")
        names = [score.label for score in self.score]
        if len(set(names)) != len(names):
            raise ValueError(f"each scorer once, or under a name of its own (score.name): found {names}")
        suites = [suite.name for suite in self.suites]
        if len(set(suites)) != len(suites):
            raise ValueError(f"each suite has a name of its own: found {suites}")
        return self

    @property
    def recorded(self) -> bool:
        """Whether completions come from a file. Then neither a model nor held-out prompts are needed to score and pair them."""
        return self.generate.engine == "recorded"

    @property
    def evaluation_engine(self) -> str:
        """What draws from a checkpoint to measure it."""
        elsewhere = self.generate.engine in ("recorded", "endpoint")
        return self.evaluate.engine or ("transformers" if elsewhere else self.generate.engine)

    def engine_settings(self, engine: str) -> dict[str, Any]:
        """The settings are those of generate.engine; another engine runs with its defaults."""
        return self.generate.settings if engine == self.generate.engine else {}

    @property
    def watched(self) -> bool:
        """Whether rounds keep the bias ledger."""
        return self.prompts.probe > 0 and self.probe.samples > 0

    @property
    def samples(self) -> bool:
        """Whether rounds draw completions to train on (a seed-only control does not; an online loss draws its own)."""
        return self.select is not None or self.pair is not None

    @property
    def online(self) -> bool:
        return self.loss.kind.data == "online"

    def at_round(self, number: int) -> Recipe:
        """The recipe as it stands in a round: `[[at]]` entries with round <= number applied in order."""
        values = self.model_dump(mode="json")
        for entry in sorted((e for e in self.at if e.round <= number), key=lambda e: e.round):
            for path, value in entry.set.items():
                set_value(values, path, value)
        return build(values, f"[[at]] of round {number}")

    def plain(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def _instead(data: str) -> str:
    """What to write for a loss that trains on `data`."""
    return {
        "pairs": "add a [pair] table",
        "labelled": "add a [select] table with labels (selector = 'labelled')",
        "ranked": "add a [select] table with ranks (selector = 'ranked')",
        "online": "remove [select] and [pair], it samples for itself",
    }[data]


FROZEN_AFTER_START = ("prompts", "model", "probe", "suites", "seed", "rounds", "at", "hardware", "keep", "description")


def build(values: Mapping[str, Any], where: str) -> Recipe:
    """Validate plain values; one RecipeError names every problem with its place and a suggestion."""
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{where}: " + "; ".join(_explain(e) for e in error.errors())) from error
    for place, value in flatten(recipe.model_dump()).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"{where}: {place}: expected a finite number, found {value}")
    for entry in recipe.at:
        for path in entry.set:
            if path.split(".")[0] in FROZEN_AFTER_START:
                raise RecipeError(f"{where}: [[at]] round {entry.round}: '{path}' cannot change between rounds")
    return recipe


Setting = str | tuple[str, Any]  # "a.b=c", or a place and its value


def load(source: str | Path, sets: Sequence[Setting] = (), overrides: Mapping[str, Any] = types.MappingProxyType({})) -> Recipe:
    """Read a shipped recipe by name or a TOML file by path, apply overrides and then `sets`, validate everything."""
    path = find(source)
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: expected TOML: {error}") from error
    for dotted, value in [*overrides.items(), *(parse_set(item) if isinstance(item, str) else item for item in sets)]:
        set_value(values, dotted, value)
    recipe = build(values, str(path))
    for number in {entry.round for entry in recipe.at}:  # an override that breaks a later round is found now
        recipe.at_round(number)
    return recipe


def shipped() -> dict[str, Path]:
    return {p.stem: p for p in sorted(SHIPPED.glob("*.toml"))}


def find(source: str | Path) -> Path:
    names = shipped()
    if str(source) in names:
        return names[str(source)]
    path = Path(source)
    if path.suffix != ".toml" or not path.is_file():
        hint = did_you_mean(str(source), names)
        raise RecipeError(f"no recipe '{source}': expected one of {', '.join(names)}, or a .toml file that exists{hint}")
    return path


def parse_set(item: str) -> tuple[str, Any]:
    """`a.b=c`: the value is read as TOML, and as a plain string where it is not TOML."""
    path, found, text = item.partition("=")
    if not found or not path:
        raise RecipeError(f"--set {item}: expected a.b=value")
    try:
        return path, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return path, text


def set_value(values: dict[str, Any], path: str, value: Any) -> None:
    """Set one dotted place, e.g. `loss.beta` or `score.0.weight`; the place must exist in the recipe model."""
    place: Any = values
    *parents, last = path.split(".")
    try:
        for name in parents:
            if isinstance(place, list):
                place = place[int(name)]
            else:
                place[name] = place.get(name) if place.get(name) is not None else {}
                place = place[name]
        if isinstance(place, list):
            place[int(last)] = value
        else:
            place[last] = value
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise RecipeError(f"'{path}' names no place in the recipe") from error


FREE_IN_A_FORK = ("rounds", "keep", "hardware", "description")  # they shape no artifact of a round that is over


def forked(recipe: Recipe, at: int, sets: Sequence[str]) -> Recipe:
    """The recipe of a fork after round `at`: one more `[[at]]` entry, or for what is not of a round, the value itself.

    Raises:
        RecipeError: a setting that rounds 0..at stand on, or that no round would be left to use.
    """
    values, later = recipe.plain(), {}
    for path, value in map(parse_set, sets):
        if path.split(".")[0] in FREE_IN_A_FORK:
            set_value(values, path, value)
        elif path.split(".")[0] in FROZEN_AFTER_START:
            raise RecipeError(f"--set {path}: rounds 0 to {at} stand on it; start another campaign with `run --set {path}=...`")
        else:
            later[path] = value
    if later:
        values["at"].append({"round": at + 1, "set": later})
    made = build(values, f"fork at round {at}")
    if made.rounds <= at:
        raise RecipeError(f"--at {at}: the recipe ends with round {made.rounds}; add --set rounds={at + 1} or more")
    for number in {entry.round for entry in made.at}:
        made.at_round(number)
    return made


def differences(old: Recipe, new: Recipe) -> list[str]:
    """What differs between two recipes, one line per value; hardware does not count, it may change between runs."""
    before, after = (flatten({k: v for k, v in r.plain().items() if k != "hardware"}) for r in (old, new))
    old_texts, new_texts = ({path: json.dumps(value) for path, value in flat.items()} for flat in (before, after))
    changed = [path for path in sorted(before.keys() | after.keys()) if old_texts.get(path) != new_texts.get(path)]
    return [f"{path}: {before.get(path, '-')} -> {after.get(path, '-')}" for path in changed]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values as dotted paths."""
    if isinstance(value, (Mapping, list, tuple)) and not value:
        return {prefix: value}
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, inner in items:
        flat |= flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    return flat


def _explain(error: Mapping[str, Any]) -> str:
    place = ".".join(str(p) for p in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _fields(error["loc"][:-1])
        return f"unknown key '{place}'{did_you_mean(str(error['loc'][-1]), known)}; known here: {', '.join(known)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if not place or error["type"] == "value_error":
        return f"{place}: {message}" if place else message
    return f"{place}: {message}, found {error['input']!r}"


def _fields(loc: Sequence[Any]) -> list[str]:
    """The keys a place in the recipe accepts, found by walking the models' annotations."""
    model: Any = Recipe
    for step in loc:
        if isinstance(step, int):
            continue
        kind = model.model_fields[step].annotation
        inner = [kind, *typing.get_args(kind)]
        model = next(k for k in inner if isinstance(k, type) and issubclass(k, BaseModel))
    return list(model.model_fields)
