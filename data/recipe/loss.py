"""The losses that a recipe can name: what each trains on, whether it needs a reference, and which settings it reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.errors import Contradictions, did_you_mean

DPO = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sigmoid_norm",
)  # fmt: skip
SMOOTHED = ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired", "cpo", "simpo")  # losses that read `smoothing`
GRPO = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo")
Data = Literal["selected", "labelled", "ranked", "pairs", "online"]


@dataclass(frozen=True)
class Kind:
    """What a loss trains on, which of TRL's trainers runs it, and which settings of [loss] it reads besides its name."""

    data: Data
    trainer: str
    reads: tuple[str, ...] = ()
    reference: bool = False


DPO_SETTINGS = ("terms", "smoothing", "weighted", "offset", "length")
KINDS: dict[str, Kind] = {
    "nll": Kind("selected", "sft"),
    **dict.fromkeys(DPO, Kind("pairs", "dpo", ("beta", *DPO_SETTINGS), reference=True)),
    "orpo": Kind("pairs", "orpo", ("beta",)),
    "cpo": Kind("pairs", "cpo", ("beta", "terms", "smoothing")),
    "simpo": Kind("pairs", "cpo", ("beta", "terms", "smoothing", "gamma")),
    "kto": Kind("labelled", "kto", ("beta", "desirable_weight", "undesirable_weight"), reference=True),
    "apo_zero_unpaired": Kind("labelled", "kto", ("beta", "desirable_weight", "undesirable_weight"), reference=True),
    "rrhf": Kind("ranked", "listwise", ("terms",)),
    "pro": Kind("ranked", "listwise", ("terms",)),
    "lipo": Kind("ranked", "listwise", ("beta", "terms"), reference=True),
    **dict.fromkeys(GRPO, Kind("online", "grpo", ("beta",), reference=True)),
    "rloo": Kind("online", "rloo", ("beta",), reference=True),
}
NEEDED_TABLE = {"selected": "select", "labelled": "select", "ranked": "select", "pairs": "pair", "online": None}


class Loss(BaseModel):
    """What training minimises. The name decides what is trained on: completions, pairs, or (online) prompts alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        "nll",
        description=f"on selected completions: nll (as in SFT and RAFT). On pairs: {', '.join(DPO)}, orpo, cpo or simpo. "
        f"On labelled completions: kto or apo_zero_unpaired. On ranked completions: rrhf, pro or lipo. Online: "
        f"{', '.join(GRPO)} or rloo",
    )
    terms: dict[str, float] = Field(
        default_factory=dict,
        description="further terms added to the loss, name = weight. Any of TRL's pair losses; or 'sft', TRL's NLL of the "
        "chosen completion averaged over tokens; or 'nll', the NLL per completion (alpha in IRPO and ScPO). The loss "
        "itself has weight 1 unless it is named here",
    )
    beta: float = Field(
        0.1,
        ge=0,
        description="how strongly the policy is tied to the reference; raise it when training drifts too far. In ORPO it is "
        "lambda, in an online loss the KL coefficient",
    )
    reference: Literal["previous", "base", "best", "ema"] = Field(
        "previous",
        description="the reference checkpoint. `previous` = the head, which is the checkpoint the next round starts from. "
        "`base` = the model the campaign started from. `best` = the best checkpoint the gate has accepted so far. `ema` = a "
        "moving average of the heads so far",
    )
    ema_decay: float = Field(
        0.9,
        ge=0,
        lt=1,
        description="reference = 'ema' only: each round sets ema <- decay * ema + (1 - decay) * head; nearer 1 = slower",
    )
    smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="share of pairs assumed to be mislabelled, for a noisy reward; with sigmoid this is conservative DPO. Also "
        f"read by {', '.join(SMOOTHED[1:])}",
    )
    weighted: bool = Field(False, description="sigmoid only: multiply the loss of each pair by its weight (ScPO's vote margin)")
    offset: float = Field(
        0.0, ge=0, description="sigmoid only: ODPO's alpha, which multiplies the log of a pair's reward difference (1 in ODPO)"
    )
    length: float = Field(
        0.0,
        ge=0,
        description="sigmoid only: R-DPO's alpha per token of length difference; raise it when completions get longer",
    )
    gamma: float = Field(0.5, ge=0, description="simpo only: the target margin (0.5 is TRL's default)")
    desirable_weight: float = Field(
        1.0,
        ge=0,
        description="kto and apo_zero_unpaired: weight of a right completion; 0 = balance right and wrong ones, however many "
        "there are of each",
    )
    undesirable_weight: float = Field(1.0, gt=0, description="kto and apo_zero_unpaired: weight of a wrong completion")

    @model_validator(mode="after")
    def _consistent(self) -> Loss:
        if self.name not in KINDS:
            raise ValueError(f"unknown loss '{self.name}'{did_you_mean(self.name, KINDS)}; expected one of {', '.join(KINDS)}")
        if messages := list(self._contradictions()):
            raise Contradictions(messages)
        return self

    def _contradictions(self) -> Iterator[str]:
        if self.kind.data != "online" and "beta" in self.kind.reads and self.beta == 0:
            yield f"beta = 0 leaves '{self.name}' without a signal; expected beta > 0"
        unread = self._unread()
        if unread:
            yield f"'{self.name}' does not read {', '.join(unread)}; remove what it does not read"
        if "exo_pair" in self.weights and not self.smoothing:
            yield "'exo_pair' takes the log of smoothing; expected smoothing > 0, e.g. 0.001 (arXiv 2402.00856), found 0"
        allowed = self._terms_allowed()
        for term in self.terms if "terms" not in unread else ():
            if term not in allowed:
                yield f"'{self.name}' does not combine with the term '{term}'; expected one of {', '.join(allowed) or '(none)'}"
        if self.own and (self.name != "sigmoid" or set(self.terms) & set(allowed) - {"sigmoid", "nll"}):
            yield (
                "weighted, offset, length, smoothing of sigmoid and the term 'nll' belong to the sigmoid loss: set name = "
                "'sigmoid', and use in terms only sigmoid and nll"
            )

    def _unread(self) -> list[str]:
        """Changed settings that this loss ignores; they are refused rather than dropped without a word."""
        fields = ("terms", "smoothing", "weighted", "offset", "length")
        defaults = Loss.model_fields
        changed = [name for name in fields if getattr(self, name) != defaults[name].get_default(call_default_factory=True)]
        ignored = [name for name in changed if name not in self.kind.reads]
        return ignored + ["smoothing"] * (self.smoothing > 0 and "smoothing" not in ignored and self.name not in SMOOTHED)

    def _terms_allowed(self) -> tuple[str, ...]:
        by_trainer = {"dpo": (*DPO, "sft", "nll"), "cpo": ("sft",), "listwise": ("nll",)}
        return by_trainer.get(self.kind.trainer, ())

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @property
    def own(self) -> bool:
        """Whether the settings go beyond TRL's losses, so that our subclass of its trainer computes the loss."""
        extended = self.weighted or self.offset > 0 or self.length > 0
        smoothed = self.name == "sigmoid" and self.smoothing > 0
        return self.kind.trainer == "dpo" and (extended or smoothed or "nll" in self.terms)

    @property
    def needs_reference(self) -> bool:
        return self.kind.reference and (self.kind.data != "online" or self.beta > 0)

    @property
    def measures_kl(self) -> bool:
        """Whether the training log shows how far the policy moves from the reference."""
        return self.needs_reference and self.kind.trainer != "listwise"

    @property
    def weights(self) -> dict[str, float]:
        """Every term with its weight, the loss itself first (1 unless `terms` names it)."""
        return {self.name: 1.0} | self.terms

    def used(self) -> dict[str, Any]:
        """The settings that shape training, all others at their defaults: a setting that is not read must not change a key."""
        read = {"name", *self.kind.reads}
        return Loss.model_construct(**{k: v for k, v in self.model_dump().items() if k in read}).model_dump(
            exclude={"reference", "ema_decay"}
        )
