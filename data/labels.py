"""Labels: the names under which a Round lists its artifacts.

Every label is made by a constructor below and read back by `read`. No other code parses a label. A label also has facts about
its artifact: whether it is training or evaluation data, whether a later round reads it, and whether it was copied from a file
outside the store.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from data.errors import CampaignError

Use = Literal["training", "evaluation"]


@dataclass(frozen=True)
class Label:
    """The name of an artifact in a Round. Two labels are equal if their texts are."""

    text: str
    use: Use = field(default="training", compare=False)  # MLflow's context of a data set
    looked_back: bool = field(default=False, compare=False)  # a later round reads it
    copied: bool = field(default=False, compare=False)  # made from a user's file, so no manifest can make it again

    def __str__(self) -> str:
        return self.text

    @property
    def mlflow(self) -> str:
        """The label as MLflow accepts it in the name of a tag, a folder or a data set."""
        return re.sub(r"[^/\w.\- :]", "_", self.text.replace("@", "_at_"))


def _evaluation(text: str, looked_back: bool = False, copied: bool = False) -> Label:
    return Label(text, "evaluation", looked_back, copied)


# -- prompts and the model the campaign starts from ----------------------------------------------------------------------
PREPARE = Label("prepare", copied=True, looked_back=True)
IMPORT_COMPLETIONS = Label("import_completions", copied=True, looked_back=True)
TINY_MODEL = Label("tiny_model")
BASE = Label("base", looked_back=True)
CURATE = Label("curate", looked_back=True)  # what a round offered, and what it drew of that: later rounds draw by both
DRAW = Label("draw", looked_back=True)

# -- the round's completions and what is chosen of them ------------------------------------------------------------------
GENERATE = Label("generate", looked_back=True)  # replayed by pool.earlier, and read by curators
CONTRAST = Label("contrast")
POOL = Label("pool")
REWARD = Label("reward")
SELECT = Label("select")
PAIR = Label("pair")
FIT_REWARD = Label("fit_reward")
FIT_REWARD_PAIRS = Label("fit_reward/pairs")
MEASURE_POOL = Label("measure_pool")


def generate_for_pool(which: Literal["base", "contrast"]) -> Label:
    """Completions that [pool] adds to the round's own."""
    return Label(f"generate/{which}")


def fit_reward_fold(fold: int) -> Label:
    """A reward model that was not fitted on the prompts of this fold."""
    return _evaluation(f"fit_reward/fold/{fold}")


def score(scorer: str) -> Label:
    """SCORES of the round's completions; those of the verifier are read by curators of later rounds."""
    return Label(f"score/{scorer}", looked_back=True)


def judge_model(scorer: str) -> Label:
    """The copy of a model's directory that a scorer uses."""
    return Label(f"judge/{scorer}")


def rollouts(scorer: str, what: Literal["prefixes", "drawn", "continued", "verdicts"]) -> Label:
    """The artifacts of a process scorer, which samples continuations from the steps of a solution."""
    return Label(f"rollouts/{scorer}/{what}")


# -- training ------------------------------------------------------------------------------------------------------------
TRAIN = Label("train")
TRAINING_LOG = Label("training_log")
REFERENCE_LOGPROBS = Label("logprobs/reference")


def moving_average(round: int) -> Label:
    """The moving average of the heads up to a round."""
    return Label(f"ema/{round}")


# -- measuring -----------------------------------------------------------------------------------------------------------
Sampling = Literal["greedy", "sampled", "again"]


@dataclass(frozen=True)
class Evaluation:
    """The labels of one evaluation of a checkpoint: on a split of the campaign, or on a suite."""

    prefix: str

    def completions(self, sampling: Sampling) -> Label:
        return _evaluation(f"{self.prefix}/{sampling}")

    def scores(self, sampling: Sampling) -> Label:
        """Greedy and sampled scores are compared with those of later checkpoints."""
        return _evaluation(f"{self.prefix}/{sampling}_score", looked_back=sampling in ("greedy", "sampled"))

    @property
    def metrics(self) -> Label:
        return _evaluation(f"{self.prefix}/metrics")


def evaluation(split: str = "held_out") -> Evaluation:
    return Evaluation("evaluate" if split == "held_out" else f"evaluate/{split}")


HELD_OUT = evaluation()


@dataclass(frozen=True)
class SuiteLabels(Evaluation):
    """An evaluation suite: the copy of its file, and a checkpoint's results on it."""

    @property
    def prompts(self) -> Label:
        return _evaluation(f"{self.prefix}/prompts", copied=True, looked_back=True)

    @property
    def given(self) -> Label:
        """The completions of its file."""
        return _evaluation(f"{self.prefix}/completions", copied=True, looked_back=True)

    @property
    def logprobs(self) -> Label:
        return _evaluation(f"{self.prefix}/logprobs", looked_back=True)


def suite(name: str) -> SuiteLabels:
    return SuiteLabels(f"suite/{name}")


# -- the bias ledger -----------------------------------------------------------------------------------------------------
BIAS = _evaluation("bias", looked_back=True)
POOL_OBSERVED = Label("pool/observed")
PROBE_REWARD = _evaluation("probe/reward", looked_back=True)


@dataclass(frozen=True)
class ProbeLabels:
    """One set of samples of the probe. Set 0 has the same seed in every round. Only round 0 has further sets."""

    prefix: str

    @property
    def completions(self) -> Label:
        return _evaluation(f"{self.prefix}/completions")

    @property
    def verdicts(self) -> Label:
        return _evaluation(f"{self.prefix}/verdicts", looked_back=True)

    @property
    def observed(self) -> Label:
        return _evaluation(f"{self.prefix}/observed", looked_back=True)

    def logprobs(self, checkpoint: Literal["own", "base", "previous"]) -> Label:
        return _evaluation(f"{self.prefix}/{checkpoint}_logprobs")

    @property
    def counterfactuals(self) -> Label:
        """Features of how the answers to counterfactual prompts differ."""
        return _evaluation(f"{self.prefix}/counterfactuals", looked_back=True)

    def of_counterfactuals(self, what: Literal["prompts", "completions", "verdicts"]) -> Label:
        return _evaluation(f"{self.prefix}/counterfactuals/{what}")


def probe(number: int = 0) -> ProbeLabels:
    return ProbeLabels(f"probe/{number}" if number else "probe")


def probe_score(scorer: str) -> Label:
    """SCORES of set 0 of the probe samples, for the reward."""
    return _evaluation(f"probe/score/{scorer}")


# -- judge health --------------------------------------------------------------------------------------------------------
ANCHORS = _evaluation("anchors")
ANCHOR_COMPLETIONS = _evaluation("anchors/completions")


def judge_health(scorer: str) -> Label:
    return _evaluation(f"judge_health/{scorer}")


def out_of_fold(scorer: str) -> Label:
    """SCORES of a fitted reward model's scorer, each prompt by a model that was not fitted on it."""
    return _evaluation(f"judge_health/{scorer}/out_of_fold")


def anchor_scores(scorer: str) -> Label:
    """A judge's SCORES of the anchors; later rounds measure its drift against them."""
    return _evaluation(f"anchors/scores/{scorer}", looked_back=True)


# -- reading back --------------------------------------------------------------------------------------------------------
def _all(name: str) -> list[Label]:
    """Every label that can be made, with `name` for each name or number that a constructor expects."""
    fixed = [value for value in globals().values() if isinstance(value, Label)]
    evaluations = [HELD_OUT, evaluation(name), suite(name)]
    samplings: tuple[Sampling, ...] = ("greedy", "sampled", "again")
    of_suite = suite(name)
    formatted = [label for e in evaluations for s in samplings for label in (e.completions(s), e.scores(s))]
    formatted += [*(e.metrics for e in evaluations), of_suite.prompts, of_suite.given, of_suite.logprobs]
    for samples in (probe(), ProbeLabels(f"probe/{name}")):
        formatted += [samples.completions, samples.verdicts, samples.observed, samples.counterfactuals]
        formatted += [samples.logprobs(checkpoint) for checkpoint in ("own", "base", "previous")]
        formatted += [samples.of_counterfactuals(what) for what in ("prompts", "completions", "verdicts")]
    formatted += [rollouts(name, what) for what in ("prefixes", "drawn", "continued", "verdicts")]
    formatted += [
        generate_for_pool("base"),
        generate_for_pool("contrast"),
        Label(f"ema/{name}"),
        _evaluation(f"fit_reward/fold/{name}"),
    ]
    return [
        *fixed,
        *formatted,
        *(of_scorer(name) for of_scorer in (score, judge_model, probe_score, judge_health, out_of_fold, anchor_scores)),
    ]


_NAME = "{}"  # any name or number in a pattern
_PATTERNS = {label.text: label for label in _all(_NAME)}


def read(text: str) -> Label:
    """The label of a text that a Round holds.

    Raises:
        CampaignError: no constructor makes such a label.
    """
    parts = text.split("/")
    candidates = [parts, *([*parts[:i], _NAME, *parts[i + 1 :]] for i in range(1, len(parts)))]
    for candidate in candidates:
        if pattern := _PATTERNS.get("/".join(candidate)):
            return Label(text, pattern.use, pattern.looked_back, pattern.copied)
    raise CampaignError(f"expected the label of an artifact, found '{text}'; it was recorded by another version of Ratchet")
