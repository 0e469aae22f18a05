"""The losses a recipe can name: what each trains on, whether it needs a reference, and which settings it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.errors import did_you_mean

DPO = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sigmoid_norm",
)  # fmt: skip
SMOOTHED = ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired", "cpo", "simpo")  # losses that read `smoothing`
GRPO = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo")
Data = Literal["selected", "labelled", "ranked", "pairs", "online"]


@dataclass(frozen=True)
class Kind:
    """What a loss trains on, through which of TRL's trainers, and what it reads from [loss] besides its name."""

    data: Data
    trainer: str
    reads: tuple[str, ...] = ()
    reference: bool = False


OWN_TERMS = ("terms", "smoothing", "weighted", "offset", "length")
KINDS: dict[str, Kind] = {
    "nll": Kind("selected", "sft"),
    **dict.fromkeys(DPO, Kind("pairs", "dpo", ("beta", *OWN_TERMS), reference=True)),
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
    """The name decides what is trained on: selected completions (also with labels or ranks), pairs, or prompts (online)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        "nll",
        description=f"nll (SFT, RAFT); on pairs TRL's {', '.join(DPO)}, or orpo, cpo, simpo; on labelled completions kto, "
        f"apo_zero_unpaired; on ranked ones rrhf, pro, lipo; online {', '.join(GRPO)}, rloo",
    )
    terms: dict[str, float] = Field(
        default_factory=dict,
        description="weights of further terms, added to the loss: any of TRL's pair losses, 'sft' (TRL's NLL of the chosen, "
        "averaged over tokens), 'nll' (per completion: the alpha of IRPO and ScPO); naming the loss itself weights it (else 1)",
    )
    beta: float = Field(
        0.1, ge=0, description="strength of the tie to the reference; ORPO: its lambda; online: the KL coefficient"
    )
    reference: Literal["previous", "base", "best", "ema"] = Field(
        "previous", description="which checkpoint is the reference; ema = moving average of the heads so far"
    )
    ema_decay: float = Field(0.9, ge=0, lt=1, description="reference = 'ema': ema <- decay * ema + (1 - decay) * head")
    smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description=f"share of pairs assumed mislabelled (conservative DPO on sigmoid; {', '.join(SMOOTHED[1:])})",
    )
    weighted: bool = Field(False, description="sigmoid: weight each pair by its weight (ScPO's vote margin)")
    offset: float = Field(0.0, ge=0, description="sigmoid: ODPO's alpha, times log of the pair's reward difference (1 there)")
    length: float = Field(0.0, ge=0, description="sigmoid: R-DPO's alpha, per token of length difference")
    gamma: float = Field(0.5, ge=0, description="simpo: the target margin (TRL's default)")
    desirable_weight: float = Field(
        1.0, ge=0, description="kto: weight of right completions; 0 = so that both sides weigh the same, however many there are"
    )
    undesirable_weight: float = Field(1.0, gt=0, description="kto: weight of wrong completions")

    @model_validator(mode="after")
    def _consistent(self) -> Loss:
        if self.name not in KINDS:
            raise ValueError(f"unknown loss '{self.name}'{did_you_mean(self.name, KINDS)}")
        if self.kind.data != "online" and "beta" in self.kind.reads and self.beta == 0:
            raise ValueError(f"beta = 0 leaves '{self.name}' without a signal; expected beta > 0")
        if unread := self._unread():
            raise ValueError(f"'{self.name}' does not read {', '.join(unread)}")
        allowed = self._terms_allowed()
        if unknown := [term for term in self.terms if term not in allowed]:
            raise ValueError(f"'{self.name}' takes no term '{unknown[0]}'; expected one of {', '.join(allowed) or '(none)'}")
        if self.own and (self.name != "sigmoid" or set(self.terms) - {"sigmoid", "nll"}):
            raise ValueError(
                "weighted, offset, length, the term 'nll' and smoothing of sigmoid belong to the sigmoid loss: "
                "use name = 'sigmoid', and in terms only sigmoid and nll"
            )
        return self

    def _unread(self) -> list[str]:
        """Settings that were changed and that this loss would ignore: saying so beats a silent no-op."""
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
        """Whether the settings ask for more than TRL's own losses."""
        asked = self.weighted or self.offset > 0 or self.length > 0
        return self.kind.trainer == "dpo" and (asked or "nll" in self.terms or (self.name == "sigmoid" and self.smoothing > 0))

    @property
    def needs_reference(self) -> bool:
        return self.kind.reference and (self.kind.data != "online" or self.beta > 0)

    @property
    def measures_kl(self) -> bool:
        """Whether its training log tells how far the policy moves from the reference."""
        return self.needs_reference and self.kind.trainer != "listwise"

    @property
    def weights(self) -> dict[str, float]:
        """Every term with its weight, the loss itself first (1 unless `terms` says otherwise)."""
        return {self.name: 1.0} | self.terms

    def used(self) -> dict[str, Any]:
        """The settings that shape training, the rest at their defaults: what a loss does not read must not enter a key."""
        read = {"name", *self.kind.reads}
        return Loss.model_construct(**{k: v for k, v in self.model_dump().items() if k in read}).model_dump(
            exclude={"reference", "ema_decay"}
        )
