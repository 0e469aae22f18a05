"""Keep the bias ledger of a round: LEDGER, and the alarms it gives rise to."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from data.alarm import Alarm, gravest
from data.rows import tables
from tasks.bias.alarm_rule import judge, mitigations
from tasks.bias.effects import Array, Kind, prompt_means, scaled
from tasks.bias.ledger import Entry, Sample, compare
from tasks.bias.observed import features, grids, numbers
from tasks.bias.overoptimisation import alarms_of, facts_of, lines, proxy_gap
from tasks.bias.pressure import UNKNOWN, Estimate, Selection, contrast, estimate, surface_auc, with_selection
from tasks.run.work import StageSettings, Work

VERSION = 8  # 7: gain. 8: alarms have a source and a name
LIBRARIES = ("numpy", "scipy", "scikit-learn")
NARROW = 0.7  # share of the entropy of answers at round 0 below which they have collapsed, if less is solved
SHORTCUT = 0.7  # AUC from which the pairs can be told apart by their surface alone

Columns = Mapping[str, Array]


class Settings(StageSettings):
    round: int
    kinds: dict[str, Kind]  # of the columns of FEATURES
    prompt_kinds: dict[str, Kind]  # of the columns of PROMPT_FEATURES
    counterfactuals: tuple[str, ...]  # columns of counterfactual_features, all real numbers
    baseline: int  # samples of round 0: inputs base/1 ...
    on_policy: bool  # whether training started from the checkpoint that sampled what it trained on
    chosen: str  # "selected" or "pairs": the input that says what the round trained on


def bias(work: Work) -> None:
    """`ledger.parquet` (LEDGER) and `alarms.json` of the round whose checkpoint `observed` is.

    Inputs: prompts; observed, previous/observed, base/1/observed ... (of `observe`), each with its verdicts (SCORES) and, where
    there are any, its counterfactuals; proxy and base/proxy (SCORES of the reward on the probe, now and at round 0);
    earlier (this stage's output for the round before); for what the round trained on pool_prompts, pool (of `observe`), reward
    and the input that `chosen` names. `previous`, the proxies, `earlier` and the last four may be missing.
    """
    with threadpool_limits(1, "blas"):  # how a matrix product is split among threads shows in its last digits
        _bias(work)


def _bias(work: Work) -> None:
    s: Settings = work.settings
    prompts = tables.read(work.inputs["prompts"] / "probe.parquet", tables.PROMPTS)
    order = {prompt: i for i, prompt in enumerate(prompts["prompt_id"].to_pylist())}
    now = _sample(work, [""], order)
    previous = _sample(work, ["previous/"], order) if "previous/observed" in work.inputs else None
    base = _sample(work, [f"base/{i}/" for i in range(1, s.baseline + 1)], order)
    kinds: dict[str, Kind] = s.kinds | s.prompt_kinds | dict.fromkeys(s.counterfactuals, "real")
    strata = prompts["stratum"].to_pylist()
    entries = compare(now, base, previous, kinds=kinds, strata=strata)

    facts: dict[str, Any] = {}
    if s.chosen and "pool" in work.inputs:
        chosen = _selection(work)
        entries = with_selection(entries, chosen, now, previous or base if s.on_policy else None, strata)
        facts["surface_auc"] = _surface_auc(work, chosen) if s.chosen == "pairs" else None
    earlier, said = _earlier(work)
    entries, alarms = judge(entries, earlier, round=s.round)
    kl = next((entry.mean for entry in entries if entry.key == ("kl_base", None)), None)
    facts |= facts_of(s.round, kl, now.right, base.right, _proxy_gap(work, now, base, order), said)
    alarms = answer_collapse(entries, now, base) + alarms + _shortcut(facts.get("surface_auc"))
    alarms += alarms_of(facts, said.get("alarms", ()))
    write_ledger(work.out, entries, alarms, facts)


def answer_collapse(entries: Sequence[Entry], now: Sample, base: Sample) -> list[Alarm]:
    """A STOP where the answers of a prompt have lost a third of their entropy and fewer prompts are solved in K samples: what
    narrows as it gets better (fewer different wrong answers) solves as many or more."""
    entropy = next((e for e in entries if e.key == ("answer_entropy", None)), None)
    if entropy is None or now.right is None or base.right is None or not entropy.base or entropy.drift_high is None:
        return []
    k = now.right.shape[1]
    ours, theirs = (prompt_means(_solved(sample.right, k)) for sample in (now, base))
    lost, ratio = estimate(ours - theirs), (entropy.mean or 0.0) / entropy.base
    if not (entropy.base > 0 and ratio <= NARROW and entropy.drift_high < 0 and lost.high < 0):
        return []
    said = (
        f"answers of a prompt: entropy {entropy.base:.2f} -> {entropy.mean:.2f} ({ratio - 1:+.0%}) since round 0, while "
        f"prompts solved in {k} samples fell by {-100 * lost.value:.1f} points [{-100 * lost.high:.1f}, {-100 * lost.low:.1f}]"
    )
    return [
        Alarm("STOP", "ledger", "answer collapse", f"{said}; acts on it: {', '.join(mitigations('answer_entropy', 'real'))}")
    ]


def _solved(right: Array | None, k: int) -> Array:
    """Whether any of k samples is right: prompts x drawings of k; NaN where none was judged."""
    assert right is not None
    drawn = right.reshape(len(right), -1, k)
    return np.where(np.isnan(drawn).all(-1), np.nan, (drawn == 1.0).any(-1))


def _shortcut(auc: float | None) -> list[Alarm]:
    if auc is None or auc <= SHORTCUT:
        return []
    said = f"surface features alone tell chosen from rejected (AUC {auc:.2f}, 0.5 = not at all): the pairs carry a shortcut"
    return [Alarm("watch", "ledger", "pairs", said + "; acts on it: style_balanced, length_matched")]


# -- reading ------------------------------------------------------------------------------------------------------------


def _sample(work: Work, places: Sequence[str], order: Mapping[str, int]) -> Sample:
    """One Sample of one or more drawings of the same prompts, side by side."""
    drawn = [_drawing(work, place, order) for place in places]
    values = {name: np.concatenate([d[name] for d in drawn], axis=1) for name in drawn[0]}
    return Sample(values, right=values.pop("", None))


def _drawing(work: Work, place: str, order: Mapping[str, int]) -> dict[str, Array]:
    s: Settings = work.settings
    folder, verdicts = work.inputs[f"{place}observed"], work.inputs[f"{place}verdicts"]
    judged = tables.read(verdicts / "scores.parquet", tables.SCORES)
    right = grids(judged["prompt_id"].to_pylist(), order, {"": numbers(judged, "value")})[""]
    values = features(folder / "features.parquet", tables.features(*s.kinds), order, list(s.kinds))
    schema = tables.prompt_features(*s.prompt_kinds)
    values |= features(folder / "prompt_features.parquet", schema, order, list(s.prompt_kinds))
    if s.counterfactuals:
        path = work.inputs[f"{place}counterfactuals"] / "prompt_features.parquet"
        values |= features(path, tables.prompt_features(*s.counterfactuals), order, s.counterfactuals)
    known = np.isfinite(right)
    return values | ({"": np.where(known, right >= 1.0, np.nan)} if known.any() else {})


def _proxy_gap(work: Work, now: Sample, base: Sample, order: Mapping[str, int]) -> Estimate:
    if "base/proxy" not in work.inputs or now.right is None or base.right is None:
        return UNKNOWN
    tables_of = (tables.read(work.inputs[name] / "scores.parquet", tables.SCORES) for name in ("proxy", "base/proxy"))
    ours, theirs = (grids(t["prompt_id"].to_pylist(), order, {"": numbers(t, "value")})[""] for t in tables_of)
    return proxy_gap(ours, now.right, theirs, base.right)


def _earlier(work: Work) -> tuple[list[Entry], dict[str, Any]]:
    """The ledger of the round before, and what its alarms.json says."""
    if "earlier" not in work.inputs:
        return [], {}
    folder = work.inputs["earlier"]
    return read_ledger(folder), json.loads((folder / "alarms.json").read_text())


def _selection(work: Work) -> Selection:
    """What the round trained on, as features, rewards and counts over the training pool."""
    s: Settings = work.settings
    prompts = tables.read(work.inputs["pool_prompts"] / "rounds.parquet", tables.PROMPTS)
    order = {prompt: i for i, prompt in enumerate(prompts["prompt_id"].to_pylist())}
    table = tables.read(work.inputs["pool"] / "features.parquet", tables.features(*s.kinds))
    counts = sides_of(work)
    rewards = tables.read(work.inputs["reward"] / "scores.parquet", tables.SCORES)
    reward = dict(zip(rewards["completion_id"].to_pylist(), numbers(rewards, "value"), strict=True))
    ids = table["completion_id"].to_pylist()
    columns = {name: numbers(table, name) for name in s.kinds}
    columns |= {f"#{side}": np.array([counter[i] for i in ids], dtype=float) for side, counter in counts.items()}
    columns["#reward"] = np.array([reward.get(i, np.nan) for i in ids])
    placed = grids(table["prompt_id"].to_pylist(), order, columns)
    weights = {name: np.nan_to_num(placed.pop(f"#{name}")) for name in ("chosen", "rejected")}
    return Selection(
        values={name: placed[name] for name in s.kinds},
        chosen=weights["chosen"],
        rejected=weights["rejected"] if counts["rejected"] else None,
        reward=placed["#reward"],
        strata=prompts["stratum"].to_pylist(),
    )


def sides_of(work: Work) -> dict[str, Counter[str]]:
    """How often each completion is trained towards, and how often away from: a label of false (KTO), a rank below its
    prompt's best (listwise losses) and the rejected of a pair are."""
    if work.settings.chosen == "pairs":
        pairs = tables.read(work.inputs["pairs"] / "pairs.parquet", tables.PAIRS)
        return {side: Counter(pairs[f"{side}_id"].to_pylist()) for side in ("chosen", "rejected")}
    sides: dict[str, Counter[str]] = {"chosen": Counter(), "rejected": Counter()}
    for row in tables.read(work.inputs["selected"] / "selected.parquet", tables.SELECTED).to_pylist():
        towards = row["label"] is not False and not row["rank"]
        sides["chosen" if towards else "rejected"][row["completion_id"]] += 1
    return sides


def _surface_auc(work: Work, chosen: Selection) -> float | None:
    """Over one pair a prompt: the mean of its chosen less the mean of its rejected."""
    assert chosen.rejected is not None
    kinds: dict[str, Kind] = work.settings.kinds
    sides = [contrast(scaled(chosen.values[name], kinds[name]), chosen.chosen, chosen.rejected) for name in kinds]
    differences = np.stack(sides, axis=1)
    used = (chosen.chosen.sum(-1) > 0) & (chosen.rejected.sum(-1) > 0)
    return surface_auc(differences[used], np.flatnonzero(used).tolist())


# -- writing, and reading back ------------------------------------------------------------------------------------------
def write_ledger(folder: Path, entries: Sequence[Entry], alarms: Sequence[Alarm], facts: Mapping[str, Any]) -> None:
    rows = [{name: _written(value) for name, value in dataclasses.asdict(entry).items()} for entry in entries]
    tables.write(tables.from_rows(rows, tables.LEDGER), tables.LEDGER, folder / "ledger.parquet")
    said = {"level": gravest(alarms), "alarms": [dataclasses.asdict(alarm) for alarm in alarms], **facts}
    (folder / "alarms.json").write_text(json.dumps(said, indent=1))
    (folder / "report.md").write_text(report(entries, alarms, facts))


def _written(value: Any) -> Any:
    """To five digits: the last ones of a sum over resamples have differed between two processes of one machine."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def report(entries: Sequence[Entry], alarms: Sequence[Alarm], facts: Mapping[str, Any]) -> str:
    """The alarms, the reward beside gold, and every feature over all completions, the largest effect first."""
    rows = [*(f"- **{alarm.level} {alarm.name}**: {alarm.sentence}" for alarm in alarms), "", *lines(facts), ""]
    rows += ["| feature | level | round 0 | now | effect | 95% interval | step | pressure | gain |", "|" + "---|" * 9]
    whole = [entry for entry in entries if entry.group is None]
    for e in sorted(whole, key=lambda entry: -abs(entry.effect or 0.0)):
        numbers = [e.base, e.mean, e.effect, e.effect_low, e.effect_high, e.step_effect, e.pressure, e.gain]
        base, mean, effect, low, high, step, pressure, gain = ("" if x is None else f"{x:.3g}" for x in numbers)
        between = f"{low} to {high}" if low else ""
        rows.append(f"| {e.feature} | {e.level} | {base} | {mean} | {effect} | {between} | {step} | {pressure} | {gain} |")
    return "\n".join(rows) + "\n"


def read_ledger(folder: Path) -> list[Entry]:
    return [Entry(**row) for row in tables.read(folder / "ledger.parquet", tables.LEDGER).to_pylist()]
