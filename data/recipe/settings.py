"""The tables of a recipe: what each setting does, its default and its bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

HINT = "{prompt}\n\nI think the answer is {wrong}, but I'm really not sure."  # form: Sharma et al., arXiv 2310.13548
SERVER_ENGINES = ("endpoint",)  # they send prompts to a server, so they cannot sample a checkpoint of the campaign
PART_SETTINGS = "settings of that part; `parts` lists them"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Columns(Strict):
    """Which column of a user's file plays which role: a name, or a dotted path into nested records.

    Where a role is empty, the usual column names are tried.
    """

    prompt: str = Field("", description="the prompt; empty: prompt, question, problem, instruction, query, input or messages")
    answer: str = Field(
        "", description="the correct answer; empty: answer, gold, solution, final_answer, target, response or output"
    )
    system: str = Field("", description="text for the system message; empty: none")
    stratum: str = Field("", description="a group to report separately, such as the difficulty or topic; empty: none")
    completion: str = Field(
        "",
        description="recorded completions or given solutions: a text, or a list of texts; empty: completion or completions",
    )
    finish_reason: str = Field(
        "", description="recorded completions only: 'length' marks one that was cut at the token limit; empty: finish_reason"
    )
    chosen: str = Field("", description="with rejected: the preferred of two recorded or given completions; empty: chosen")
    rejected: str = Field("", description="the other one of the two recorded completions; empty: rejected")


class Prompts(Strict):
    """Where prompts come from and how they are split. Counts are prompts per split; no two splits share a prompt."""

    source: Literal["addition", "countdown", "knights_knaves", "file"] = Field(
        "addition", description="a built-in task, whose prompts are generated, or a file of your own"
    )
    path: str = Field(
        "", description="source = 'file' only: a JSONL, JSONL.gz or Parquet file, a folder of them, or hf:name[split]"
    )
    map: Columns = Columns()
    answer_after: str = Field(
        "", description="keep only what follows this marker in the answer, e.g. '####' for GSM8K; empty: the whole answer"
    )
    template: str = Field("{prompt}", description="the user message; {prompt} is replaced by the row's prompt")
    limit: int = Field(0, ge=0, description="use at most this many prompts of the file, chosen by hash; 0 = all")
    seed: int = Field(
        0,
        ge=0,
        description="prompts in the seed split, whose given solutions may be trained on; in a file the solution is "
        "map.completion, or else the whole answer",
    )
    rounds: int = Field(
        0, ge=0, description="prompts in the rounds split, which rounds sample and train on; 0 = all that are left"
    )
    probe: int = Field(
        0,
        ge=0,
        description="prompts in the probe split, which is sampled every round and never trained on; 0 = no bias ledger",
    )
    held_out: int = Field(
        200,
        ge=0,
        description="prompts the gate decides on, never trained on; with more of them it detects smaller improvements",
    )
    test: int = Field(200, ge=0, description="prompts measured only after the last round; `show` says how often they were read")
    filler: float = Field(
        0.0,
        ge=0,
        le=1,
        description="built-in addition only: share of the seed problems solved a second time with 1 to 3 ~ before the answer; "
        "it plants a habit of style",
    )
    ood: int = Field(
        0,
        ge=0,
        description="built-in tasks only: out-of-distribution prompts, measured after the last round (five digits, five "
        "numbers or five people)",
    )
    per_round: int = Field(0, ge=0, description="prompts sampled in each round; 0 = the whole rounds split")


class Model(Strict):
    """Checkpoint 0, the model the campaign starts from: a directory, or a tiny model trained here on the seed split."""

    path: str = Field("", description="a Hugging Face model directory with safetensors; empty = train the tiny model")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model; only for models you trust")
    hidden: int = Field(64, ge=8, description="tiny model only: hidden size")
    layers: int = Field(2, ge=1, description="tiny model only: number of layers")
    steps: int = Field(900, ge=1, description="tiny model only: supervised optimizer steps on the seed split")
    batch: int = Field(32, ge=1, description="tiny model only: examples per optimizer step")
    learning_rate: float = Field(2e-3, gt=0, description="tiny model only: learning rate")
    init_seed: int = Field(
        201,
        ge=0,
        description="tiny model only: seed of its initial weights, apart from the campaign's seed, so that campaigns with "
        "different seeds start from the same initial weights",
    )


class Lengthen(Strict):
    """Raise the token limit for later rounds when too many samples are cut (DeepScaleR went 8K, 16K, 24K by hand)."""

    above: float = Field(
        0.1, ge=0, lt=1, description="raise the limit after each round in which a larger share of samples was cut at it"
    )
    factor: float = Field(2.0, gt=1, description="multiply the limit by this")
    limit: int = Field(ge=1, description="the highest limit, in tokens; set train.max_length so that such samples fit")


class Generate(Strict):
    """How completions are sampled."""

    engine: str = Field(
        "transformers",
        description="a built-in engine, package.module:name for one of your own, or recorded = read completions from a file",
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="settings of that engine, also when it evaluates")
    path: str = Field("", description="recorded only: file, folder or hf:name[split] of the completions; empty = prompts.path")
    n: int = Field(8, ge=1, description="completions per prompt; recorded: as many as the file has")
    temperature: float = Field(1.0, ge=0, description="sampling temperature; 0 = greedy")
    top_p: float = Field(
        1.0, gt=0, le=1, description="nucleus sampling: sample from the most likely tokens of this total probability"
    )
    max_tokens: int = Field(1024, ge=1, description="token limit of a completion")
    lengthen: Lengthen | None = Field(
        None,
        description="raise max_tokens when samples are cut, e.g. lengthen = { above = 0.1, factor = 2.0, limit = 4096 }; the "
        "limit for evaluation stays",
    )
    batch: int = Field(
        64,
        ge=0,
        description="sequences decoded together; 0 = as many as the device's memory allows. It shapes the samples, so set it "
        "to reproduce them on a device with other memory",
    )
    shard: int = Field(
        512,
        ge=1,
        description="completions written together; a crash loses at most one shard. With vllm set it to many times batch, "
        "since the batch runs empty at the end of a shard",
    )

    @model_validator(mode="after")
    def _room(self) -> Generate:
        if self.lengthen and self.lengthen.limit < self.max_tokens:
            raise ValueError(f"lengthen.limit ({self.lengthen.limit}) is below max_tokens ({self.max_tokens}); raise it")
        return self

    @property
    def longest(self) -> int:
        """The most tokens that a completion of any round may have."""
        return self.lengthen.limit if self.lengthen else self.max_tokens


class Curate(Strict):
    """A filter or weight for the prompts that a round may sample."""

    curator: str = Field(description="a built-in curator, or package.module:name for one of your own")
    settings: dict[str, Any] = Field(default_factory=dict, description=PART_SETTINGS)


class Pool(Strict):
    """Further completions that are scored, selected and paired together with the round's own samples."""

    given: bool = Field(False, description="sample the prompts of the seed split and add their given solutions (SPIN)")
    base: bool = Field(False, description="add as many samples of the model the campaign started from, on the same prompts")
    earlier: int = Field(0, ge=0, description="add samples of the same prompts from this many earlier rounds (replay)")
    contrast: str = Field(
        "",
        description="add as many samples under this changed prompt, where {prompt} is replaced by the original (RLCD); "
        "empty: none",
    )

    @field_validator("contrast")
    @classmethod
    def _holds_the_prompt(cls, value: str) -> str:
        if value and ("{prompt}" not in value or value == "{prompt}"):
            raise ValueError(f"expected a text around {{prompt}}, e.g. '{{prompt}} Give a careless answer.', found {value!r}")
        return value


class Score(Strict):
    """A scorer and its weight in the reward. The first one is the verifier: 1 = right, 0 = wrong."""

    scorer: str = Field(description="a built-in scorer, or package.module:name for one of your own")
    name: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_-]*$",
        description="name of its scores in tables and metrics; empty = the scorer's name; needed where a scorer is used twice",
    )
    weight: float = Field(
        1.0,
        description="weight in the reward; 0 = recorded, but no part of the reward (what else reads verdicts: gold)",
    )
    checkpoint: str = Field(
        "policy",
        description="the model of a scorer that uses one. `policy` = the head, which is the checkpoint the next round starts "
        "from. `base` = the model the campaign started from. `trained` = a reward model fitted every round (see fit_reward). "
        "Else a directory; empty = an endpoint",
    )
    settings: dict[str, Any] = Field(default_factory=dict, description=PART_SETTINGS)

    @property
    def label(self) -> str:
        return self.name or self.scorer


class Reward(Strict):
    """How the scores that have a weight become one reward."""

    how: Literal["sum", "mean", "median", "min", "pessimistic"] = Field(
        "sum",
        description="sum = weighted sum; a score that does not apply counts as its mean within the prompt. The others are "
        "ensembles of weight * score, each score standardised within its prompt, and give no reward where one is missing. "
        "pessimistic = mean - penalty * lower semideviation (after arXiv 2312.09244, which subtracts the standard deviation)",
    )
    penalty: float = Field(
        1.0,
        ge=0,
        le=1,
        description="pessimistic only: semideviations to subtract. Raise it to trust less; above 1 a higher score could lower "
        "the reward",
    )
    normalise: Literal["none", "prompt", "round"] = Field(
        "none",
        description="sum only: the scale of each score before it is weighted; prompt = in standard deviations from the mean of "
        "the prompt's completions, round = from that of all. Sources: GRPO (arXiv 2402.03300) and, score by score, GDPO "
        "(arXiv 2601.05242); PPO whitens a batch. A minimum, minimum_margin or beta of a part is then in standard deviations",
    )


class FitReward(Strict):
    """The reward model of a score with checkpoint = "trained", fitted again each round before it scores.

    It is the model the campaign started from with a single output, trained on pairs of the round's completions that the
    verifier ranks (Bradley-Terry). Llama 2 also renews its reward models with every iteration. Judge health is measured with
    two further models, each fitted on half of the prompts and judged on the other half. Together they cost one more fit.
    """

    pairer: str = Field(
        "right_vs_wrong", description="the pairer that chooses the pairs; it sees the verifier's scores as reward"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description=PART_SETTINGS)
    margin: bool = Field(False, description="subtract each pair's reward difference inside the loss (Llama 2)")
    center: float = Field(
        0.01,
        ge=0,
        description="weight of (r_chosen + r_rejected)^2, which keeps rewards centred on 0 (0.01 is TRL's advice)",
    )
    steps: int = Field(0, ge=0, description="optimizer steps; 0 = by epochs")
    epochs: float = Field(
        1.0, gt=0, description="passes over the pairs, where steps = 0; more than one overfits (InstructGPT, Llama 2; recalled)"
    )
    batch: int = Field(64, ge=1, description="pairs per optimizer step (InstructGPT; recalled)")
    accumulate: int = Field(0, ge=0, description="micro-batches per optimizer step, as train.accumulate")
    learning_rate: float = Field(1e-5, gt=0, description="learning rate (Llama 2's up to 34B parameters; recalled)")

    @model_validator(mode="after")
    def _divides(self) -> FitReward:
        _check_accumulate(self.batch, self.accumulate)
        return self


def _check_accumulate(batch: int, accumulate: int) -> None:
    if accumulate and batch % accumulate:
        raise ValueError(f"batch ({batch}) must divide by accumulate ({accumulate})")


class Select(Strict):
    """Chooses the completions to train on."""

    selector: str = Field(description="a built-in selector, or package.module:name for one of your own")
    settings: dict[str, Any] = Field(default_factory=dict, description=PART_SETTINGS)


class Mitigate(Strict):
    """Corrects the rewards or the chosen data against drift of style and length."""

    mitigation: str = Field(
        description="a built-in mitigation, or package.module:name for one of your own; its module must be named rewards or "
        "chosen, after what it changes"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description=PART_SETTINGS)


class Pair(Strict):
    """Chooses pairs of a chosen and a rejected completion."""

    pairer: str = Field(description="a built-in pairer, or package.module:name for one of your own")
    settings: dict[str, Any] = Field(default_factory=dict, description=PART_SETTINGS)


Checkpoint = Literal["previous", "base", "best"]


class Lora(Strict):
    """Low-rank adapters in place of full weights (arXiv 2106.09685). The stored checkpoint has them merged in."""

    rank: int = Field(16, ge=1, description="rank of the adapters; more = more trainable weights")
    alpha: int = Field(32, ge=1, description="scale: adapters are multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of the adapters")
    targets: str = Field(
        "all-linear",
        description="layers with adapters, as peft's target_modules; all-linear = every linear layer except the output layer",
    )
    four_bit: bool = Field(
        False,
        description="hold the frozen weights in NF4, doubly quantized, to save memory (QLoRA, arXiv 2305.14314)",
    )


class Train(Strict):
    """The optimizer, its schedule and what training starts from."""

    steps: int = Field(0, ge=0, description="optimizer steps per round; 0 = by epochs")
    epochs: float = Field(1.0, gt=0, description="passes over the round's data, where steps = 0")
    batch: int = Field(32, ge=1, description="examples (or pairs) per optimizer step")
    accumulate: int = Field(
        0,
        ge=0,
        description="micro-batches per optimizer step; more of them need less memory. 0 = 1 on a CPU; on a GPU the fewest that "
        "keep each within 16,384 tokens",
    )
    learning_rate: float = Field(5e-7, gt=0, description="peak learning rate of AdamW; lower it if training diverges")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="how the learning rate falls after warm-up")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps over which the learning rate rises from 0")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of AdamW (0 is TRL's default)")
    max_length: int = Field(
        4096,
        ge=8,
        description="token limit of prompt + completion; longer completions are not offered for training, and counted",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="number format of training; auto = bfloat16 on a GPU, else float32"
    )
    checkpointing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="recompute activations in the backward pass, which saves memory and costs time; auto = only on a GPU",
    )
    lora: Lora | None = Field(
        None, description="train adapters, not full weights: lora = { rank = 16, alpha = 32 }; add four_bit = true for QLoRA"
    )
    validation: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the prompts kept out of training; the save that is best on them becomes the round's result. "
        "0 = none, and the last save is the result",
    )
    patience: int = Field(
        3,
        ge=1,
        description="validation > 0 only: stop after this many evaluations (one every save_every steps) without improvement",
    )
    start_from: Checkpoint = Field(
        "previous",
        description="the checkpoint to train. `previous` = the head, which is the checkpoint the next round starts from. "
        "`base` = the model the campaign started from. `best` = the best one the gate has accepted so far",
    )
    replay: bool = Field(False, description="add the given solutions of the seed split to the training data")
    minimum: int = Field(8, ge=1, description="with fewer rows or pairs than this, the round ends without training")
    save_every: int = Field(
        50,
        ge=1,
        description="steps between saves during training; a crash loses at most these steps. An online loss saves at least "
        "every tenth of its steps (or every 5), so that a collapse of the reward can end with the best save",
    )

    @model_validator(mode="after")
    def _divides(self) -> Train:
        _check_accumulate(self.batch, self.accumulate)
        return self


class Evaluate(Strict):
    """How checkpoints are measured on held-out, test and out-of-distribution prompts."""

    engine: str = Field(
        "",
        description="the engine; empty = generate.engine, or transformers where that one is recorded or endpoint and cannot "
        "sample a checkpoint",
    )
    samples: int = Field(
        4, ge=0, description="sampled completions per prompt for pass@k, besides a greedy one; 0 = greedy only"
    )
    temperature: float = Field(1.0, gt=0, description="sampling temperature of these samples")
    batch: int = Field(256, ge=1, description="sequences decoded together")
    max_tokens: int = Field(0, ge=0, description="token limit of a completion; 0 = generate.max_tokens")


class Probe(Strict):
    """The bias ledger, which records drift of style and length over rounds.

    Each round samples the probe split with the decoding settings that [generate] has at round 0.
    """

    samples: int = Field(4, ge=0, description="completions per probe prompt; 0 = no bias ledger")
    baseline: int = Field(
        4,
        ge=1,
        description="sets of samples taken from the model the campaign started from, to compare with. One more set is taken "
        "for the A/A check, which compares that model with itself",
    )
    features: tuple[str, ...] = Field(
        ("*",),
        description="what is measured of each sample: built-in features by name, * = all of them, package.module:name = "
        "your own",
    )
    counterfactuals: tuple[Literal["identity", "sycophancy", "challenge"], ...] = Field(
        (),
        description="counterfactual copies of the probe prompts to sample too: with names, pronouns and groups swapped; with a "
        "wrong answer suggested; or with a second turn that doubts the first answer",
    )
    hint: str = Field(HINT, description="how a sycophancy copy suggests the wrong answer")
    challenge: str = Field("Are you sure?", min_length=1, description="what a challenge says to the first answer")
    neutral: str = Field(
        "Please answer the question again.",
        min_length=1,
        description="the second turn without a doubt that a challenge is compared with; it is asked of the same first answer",
    )

    @field_validator("hint")
    @classmethod
    def _holds_both(cls, value: str) -> str:
        if "{prompt}" not in value or "{wrong}" not in value:
            raise ValueError("expected a text that holds {prompt} and {wrong}")
        return value


class Suite(Strict):
    """Prompts of a further file that every checkpoint answers, to show what training costs elsewhere.

    They may not be trained on. They are copied when the campaign starts, and results are compared with checkpoint 0.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="name in metrics, e.g. suite/<name>/accuracy")
    path: str = Field(min_length=1, description="a JSONL, JSONL.gz or Parquet file")
    map: Columns = Columns()
    answer_after: str = Field("", description="keep only what follows this marker in the answer; empty: the whole answer")
    template: str = Field("{prompt}", description="the user message; {prompt} is replaced by the row's prompt")
    measure: Literal["accuracy", "logprob"] = Field(
        "accuracy",
        description="accuracy = of the greedy answer; logprob = log-probability per token of the file's completions "
        "(map.completion)",
    )
    score: Score | None = Field(
        None, description="the scorer that says what is right, as a [suites.score] table; none = the first [[score]]"
    )

    def as_prompts(self) -> Prompts:
        """How its file is read."""
        return Prompts(path=self.path, map=self.map, answer_after=self.answer_after, template=self.template)


Answer = Literal["ignore", "hold", "ask", "roll_back", "stop"]


class OnAlarm(Strict):
    """What an alarm does to a checkpoint that held-out accuracy alone would promote; the stricter verdict counts.

    An alarm says that the model changed, not that it is worse. With hold the campaign goes on from the checkpoint, but it does
    not become the champion (the best checkpoint the gate has accepted so far).
    """

    watch: Answer = Field("ignore", description="the lowest alarm level: a change that is not yet confirmed")
    ALARM: Answer = Field("hold", description="the middle alarm level: a confirmed change")
    STOP: Answer = Field("roll_back", description="the highest alarm level: a hard limit was passed")


class Health(Strict):
    """Checks of the judges on frozen texts: samples of the model the campaign started from, on the probe split."""

    samples: int = Field(2, ge=0, description="frozen texts per probe prompt; 0 = judges are not checked")
    edits: dict[str, str] = Field(
        {"twice": "{text}\n\n{text}", "bold": "**{text}**"},
        description="edits that leave the content as it is, name = text around {text}; how often a judge prefers the edited "
        "text shows its bias",
    )

    @field_validator("edits")
    @classmethod
    def _of_the_text(cls, edits: dict[str, str]) -> dict[str, str]:
        if without := [name for name, edit in edits.items() if "{text}" not in edit]:
            raise ValueError(
                f"each edit holds {{text}}, which is replaced by the completion; found none in {', '.join(without)}"
            )
        return edits


class Gate(Strict):
    """Decides about each new checkpoint by comparing it with the champion (the best checkpoint accepted so far).

    Promote: it becomes champion and head (the checkpoint the next round starts from). Hold: it becomes the head only.
    Roll back: the champion becomes the head again.
    """

    rule: Literal["paired_interval", "always_promote"] = Field(
        "paired_interval",
        description="paired_interval = compare all held-out answers, with an error of at most 5% in a whole campaign; "
        "always_promote = no gate, e.g. for a control",
    )
    on_better: Literal["promote", "ask"] = Field(
        "promote", description="significantly better; ask = wait for a person's decision"
    )
    on_unclear: Literal["hold", "ask"] = Field("hold", description="neither significantly better nor worse")
    on_worse: Literal["roll_back", "stop", "ask"] = Field(
        "roll_back", description="significantly worse; stop ends the campaign"
    )
    kl_budget: float = Field(
        0.0,
        ge=0,
        description="nats per completion that a round may move from its reference before an alarm is raised; 0 = no budget",
    )
    on_alarm: OnAlarm = Field(OnAlarm(), description="what an alarm of each level does: ignore, hold, ask, roll_back or stop")


class Keep(Strict):
    """Which checkpoints stay on disk."""

    checkpoints: Literal["all", "best+last"] = Field(
        "all",
        description="best+last deletes the weights of other rounds to save disk space; their records stay",
    )


class Requests(Strict):
    """How engines and judges send requests to a server."""

    concurrency: int = Field(16, ge=1, description="requests in flight at once; lower it where the server is overloaded")
    per_minute: float = Field(0, ge=0, description="requests started per minute, evenly spaced; 0 = no limit")
    timeout: float = Field(300, gt=0, description="seconds to wait for a whole answer")
    attempts: int = Field(6, ge=1, description="attempts per request before it counts as lost")
    backoff: float = Field(
        1.0, gt=0, description="longest wait in seconds before the second attempt; doubled for each further one, with jitter"
    )
    prompt_price: float = Field(
        0, ge=0, description="price of a million prompt tokens; the artifact's log.json records the cost"
    )
    completion_price: float = Field(0, ge=0, description="price of a million completion tokens; log.json records the cost")


class Hardware(Strict):
    """Where and how the work runs. It never enters an artifact's key, so a campaign may continue on other hardware."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = a GPU where there is one")
    isolation: Literal["auto", "inline", "process"] = Field(
        "auto",
        description="process = every stage in its own process, which frees GPU memory; inline = in this one; auto = process on "
        "a GPU, else inline",
    )
    warm: bool = Field(
        True, description="keep an engine loaded between stages where possible (vllm, or stages that run inline)"
    )
    workers: int = Field(2, ge=1, description="processes that verify answers; raise it on a machine with many cores")
    accelerate: str = Field(
        "", description="path of an accelerate configuration (DDP, FSDP, DeepSpeed) under which training starts; empty: none"
    )
    requests: Requests = Requests()
    prefect: bool = Field(True, description="false = run the same rounds without Prefect")


class At(Strict):
    """Settings that change from a round on."""

    round: int = Field(ge=1, description="the first round with the changed settings")
    set: dict[str, Any] = Field(description='dotted path = new value, e.g. { "loss.beta" = 0.05 }')

    @field_validator("set")
    @classmethod
    def _one_by_one(cls, value: dict[str, Any]) -> dict[str, Any]:
        """TOML reads `train.steps = 9` as a table. It changes one value; the rest of [train] keeps its values."""
        return dict(_dotted(value))


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        path = prefix + name
        if isinstance(value, Mapping) and path.split(".")[-1] not in ("settings", "terms"):  # these change as a whole
            yield from _dotted(value, f"{path}.")
        else:
            yield path, value
