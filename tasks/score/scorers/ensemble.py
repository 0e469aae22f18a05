"""Several scorers as one, by a conservative aggregate. The members may be ensembles too."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MinLen

from data.errors import PartError
from tasks.run import parts as all_parts
from tasks.score.scales import standardised
from tasks.score.scorers import Row, Score

VERSIONS = {"ensemble": 2}  # 2: members are standardised within the prompt; pessimistic subtracts the lower semideviation


class ensemble:
    """One value from several scorers: their mean, median, min (worst case), or pessimistic (the mean less their disagreement).

    Each member is standardised within the prompt first, so that neither its unit nor its offset decides. So the values compare
    the samples of one prompt only, and an ensemble is no verifier.

    `members` = [{ scorer = "...", settings = {...} }, ...]. If one member gives no value, the ensemble gives none: an aggregate
    over fewer members would be on another scale. Reward-model ensembles: https://arxiv.org/abs/2312.09244 and
    https://arxiv.org/abs/2310.02743. `aggregate` says what pessimistic subtracts. An error that all members share stays.
    """

    def __init__(
        self,
        *,
        members: Annotated[list[dict[str, Any]], MinLen(2)],
        how: Literal["mean", "median", "min", "pessimistic"] = "mean",
        penalty: Annotated[float, Ge(0), Le(1)] = 1.0,
        workers: int = 1,
    ) -> None:
        self.how, self.penalty = how, penalty
        self.scorers = [
            all_parts.configure("scorers", name, settings, workers=workers) for name, settings in map(_member, members)
        ]

    @staticmethod
    def parts(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The members and their own dependencies: their versions enter the key."""
        dependencies = []
        for name, inner in map(_member, settings["members"]):
            part = all_parts.find("scorers", name)
            dependencies += [("scorers", name), *(part.parts(inner) if hasattr(part, "parts") else [])]
        return dependencies

    def __call__(self, prompts: Sequence[Row], completions: Sequence[Row]) -> list[Score]:
        columns = [scorer(prompts, completions) for scorer in self.scorers]
        prompt_ids = [row["prompt_id"] for row in completions]
        scaled = [standardised([score.value for score in column], prompt_ids) for column in columns]
        by_completion = zip(zip(*columns, strict=True), zip(*scaled, strict=True), strict=True)
        return [self._combined(scores, values) for scores, values in by_completion]

    def _combined(self, scores: Sequence[Score], scaled: Sequence[float | None]) -> Score:
        """The aggregate of one completion. `detail` has the values of the members as they gave them."""
        values = [value for value in scaled if value is not None]
        detail = " ".join("-" if score.value is None else f"{score.value:.4g}" for score in scores)
        if len(values) < len(scores):
            return Score(None, next(score.status for score in scores if score.value is None), detail)
        return Score(aggregate(values, self.how, self.penalty), detail=detail)


NOT_PARTS = ("aggregate",)


def aggregate(values: Sequence[float], how: str, penalty: float = 1.0) -> float:
    """Mean, median, min, or mean - penalty * lower semideviation of one completion's values.

    The lower semideviation is the root mean square of what values lack to the mean. The papers on ensembles subtract the sd or
    the variance instead. Then a higher value can lower the result: with two values, mean - sd is 1.2 min - 0.2 max. With the
    semideviation it cannot, for a penalty of at most 1 (Ogryczak and Ruszczynski, From stochastic dominance to mean-risk
    models, European Journal of Operational Research 116, 1999).
    """
    match how:
        case "mean":
            return statistics.fmean(values)
        case "median":
            return statistics.median(values)
        case "min":
            return min(values)
        case _:
            mean = statistics.fmean(values)
            return mean - penalty * math.sqrt(statistics.fmean(max(0.0, mean - value) ** 2 for value in values))


def _member(member: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    name, settings = member.get("scorer"), member.get("settings", {})
    if not isinstance(name, str) or not isinstance(settings, dict) or set(member) - {"scorer", "settings"}:
        raise PartError(f"ensemble: expected members as {{ scorer = 'NAME', settings = {{...}} }}, found {dict(member)}")
    if inputs := sorted(all_parts.needs("scorers", name) & {"checkpoint", "verdicts"}):
        raise PartError(
            f"ensemble: member '{name}' needs {', '.join(inputs)}, which only a [[score]] of its own gets; "
            "add it as a [[score]] and set reward.how"
        )
    all_parts.check_settings("scorers", name, settings)
    return name, settings
