"""The bias ledger of a round (the record of drift of style and length): the LEDGER table, and its alarms."""

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
from data.rows.completions import RIGHT
from data.statistics import finite
from tasks.bias.alarm_rule import gain_in_words, judge, mitigations, remedies
from tasks.bias.effects import SMALLEST, Array, Kind, prompt_means, scaled
from tasks.bias.ledger import Entry, Sample, compare
from tasks.bias.observed import features, grids, marks_of, numbers
from tasks.bias.one_answer import accuracy_rise, one_answer
from tasks.bias.overoptimisation import Gap, alarms_of, facts_of, lines, proxy_gap
from tasks.bias.pressure import DIFFERENCE, Selection, contrast, estimate, surface_auc, with_selection
from tasks.run.work import StageSettings, Work

# 8: alarms have a source and a name. 9: errors, intervals and alarms that hold on small probes; gold's units; the gain is
# always told; KL in full; one answer for many prompts; alarms by size
VERSION = 9
LIBRARIES = ("numpy", "scipy", "scikit-learn")
COLLAPSED = 0.7  # entropy of answers as a share of round 0 below which they have collapsed, if fewer prompts are solved
SHORTCUT = 0.7  # AUC above which surface features alone tell chosen from rejected

Columns = Mapping[str, Array]


class Settings(StageSettings):
    round: int
    kinds: dict[str, Kind]  # of the columns of FEATURES
    prompt_kinds: dict[str, Kind]  # of the columns of PROMPT_FEATURES
    counterfactuals: tuple[str, ...]  # columns of counterfactual_features, all real numbers
    baseline: int  # samples of round 0: inputs base/1 ...
    on_policy: bool  # whether training started from the checkpoint that sampled its data
    chosen: str  # "selected" or "pairs": the input with the data the round trained on


def bias(work: Work) -> None:
    """`ledger.parquet` (LEDGER), `alarms.json` and `report.md` of the checkpoint whose probe samples `observed` describes.

    Inputs:
        prompts: the probe (a fixed set of prompts that is sampled every round and never trained on).
        observed, previous/observed, base/1/observed ...: of `observe`, each with its verdicts (SCORES) and counterfactuals.
        proxy, base/proxy: SCORES of the training reward on the probe, now and at round 0; base/verdicts: its verdicts there.
        earlier: this stage's output for the round before.
        pool_prompts, pool (of `observe`), reward, and the input that `chosen` names: what the round trained on.

    Only prompts, observed and the samples of round 0 are required.
    """
    with threadpool_limits(1, "blas"):  # the number of threads changes the last digits of a matrix product
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
    earlier, earlier_facts = _earlier(work)
    entries = [_with_interval_of_mean(entry, now) for entry in entries]
    entries, alarms = judge(entries, earlier, round=s.round, of_prompts=s.prompt_kinds)
    kl = next((entry.mean for entry in entries if entry.key == ("kl_base", None)), None)
    facts |= facts_of(s.round, kl, now.right, base.right, _proxy_gap(work, now, base, order), earlier_facts)
    advice = remedies(mitigations("shared_answer", "rate"))
    first = one_answer(now.marks, base.marks, accuracy_rise(now, base), advice=advice) + answer_collapse(entries, now, base)
    alarms = first + alarms + _shortcut(facts.get("surface_auc"))
    alarms += alarms_of(facts, earlier_facts.get("alarms", ()))
    write_ledger(work.out, entries, alarms, facts)


def _with_interval_of_mean(entry: Entry, now: Sample) -> Entry:
    """With the interval of the mean, where round 0 has no value to compare with: a KL from round 0."""
    if entry.group is not None or entry.mean is None or entry.n:
        return entry
    mean = estimate(prompt_means(now.values[entry.feature]))
    return dataclasses.replace(entry, mean_low=finite(mean.low), mean_high=finite(mean.high))


def answer_collapse(entries: Sequence[Entry], now: Sample, base: Sample) -> list[Alarm]:
    """A STOP if the entropy of a prompt's answers fell by 30% or more and fewer prompts are solved in K samples.

    A policy that narrows because it improves has fewer different wrong answers, but solves as many prompts or more.
    """
    entropy = next((e for e in entries if e.key == ("answer_entropy", None)), None)
    if entropy is None or entropy.n < SMALLEST or not entropy.base or entropy.drift_high is None:
        return []
    if now.right is None or base.right is None:
        return []
    k = now.right.shape[1]
    ours, theirs = (prompt_means(_solved(sample.right, k)) for sample in (now, base))
    change, ratio = estimate(ours - theirs, DIFFERENCE), (entropy.mean or 0.0) / entropy.base
    if not (entropy.base > 0 and ratio <= COLLAPSED and entropy.drift_high < 0 and change.high < 0):
        return []
    lost = f"{-100 * change.value:.1f} points [{-100 * change.high:.1f}, {-100 * change.low:.1f}]"
    sentence = (
        f"The entropy of a prompt's answers fell from {entropy.base:.2f} to {entropy.mean:.2f} ({ratio - 1:+.0%}) since "
        f"round 0. The share of prompts solved in {k} samples fell by {lost}. {remedies(mitigations('answer_entropy', 'real'))}"
    )
    return [Alarm("STOP", "ledger", "answer collapse", sentence)]


def _solved(right: Array | None, k: int) -> Array:
    """Whether any of k samples is right: prompts x sets of k samples; NaN if none of the k was judged."""
    assert right is not None
    sets = right.reshape(len(right), -1, k)
    return np.where(np.isnan(sets).all(-1), np.nan, (sets == 1.0).any(-1))


def _shortcut(auc: float | None) -> list[Alarm]:
    if auc is None or auc <= SHORTCUT:
        return []
    sentence = (
        f"Surface features alone tell chosen from rejected completions (AUC {auc:.2f}; 0.5 is chance). The policy can learn "
        f"this shortcut instead of the task. {remedies(('style_balanced', 'length_matched'))}"
    )
    return [Alarm("watch", "ledger", "pairs", sentence)]


# -- reading ------------------------------------------------------------------------------------------------------------


def _sample(work: Work, prefixes: Sequence[str], order: Mapping[str, int]) -> Sample:
    """One Sample of one or more sets of samples of the same prompts, in columns next to each other.

    Args:
        prefixes: of the names of the inputs, one per set of samples.
    """
    sets = [_set_of_samples(work, prefix, order) for prefix in prefixes]
    values = {name: np.concatenate([one[name] for one in sets], axis=1) for name in sets[0]}
    marks = marks_of(work.inputs[f"{prefixes[0]}observed"], list(order))
    return Sample(values, right=values.pop("", None), marks=marks)


def _set_of_samples(work: Work, prefix: str, order: Mapping[str, int]) -> dict[str, Array]:
    """The features of one set of samples, and under "" whether each completion is right (1.0 or 0.0)."""
    s: Settings = work.settings
    folder, verdicts = work.inputs[f"{prefix}observed"], work.inputs[f"{prefix}verdicts"]
    right = _values(verdicts, order)
    values = features(folder / "features.parquet", tables.features(*s.kinds), order, list(s.kinds))
    schema = tables.prompt_features(*s.prompt_kinds)
    values |= features(folder / "prompt_features.parquet", schema, order, list(s.prompt_kinds))
    if s.counterfactuals:
        path = work.inputs[f"{prefix}counterfactuals"] / "prompt_features.parquet"
        values |= features(path, tables.prompt_features(*s.counterfactuals), order, s.counterfactuals)
    return values | ({"": _right(right)} if np.isfinite(right).any() else {})


def _values(scores: Path, order: Mapping[str, int]) -> Array:
    """The values of SCORES, prompts x samples."""
    table = tables.read(scores / "scores.parquet", tables.SCORES)
    return grids(table["prompt_id"].to_pylist(), order, {"": numbers(table, "value")})[""]


def _right(verdicts: Array) -> Array:
    """1.0 where a verdict says right, 0.0 where wrong, NaN where there is none."""
    right: Array = np.where(np.isfinite(verdicts), verdicts >= RIGHT, np.nan)
    return right


def _proxy_gap(work: Work, now: Sample, base: Sample, order: Mapping[str, int]) -> Gap:
    if "base/proxy" not in work.inputs or now.right is None or base.right is None:
        return Gap()
    ours, theirs, verdicts = (_values(work.inputs[name], order) for name in ("proxy", "base/proxy", "base/verdicts"))
    return proxy_gap(ours, now.right, theirs, _right(verdicts))


def _earlier(work: Work) -> tuple[list[Entry], dict[str, Any]]:
    """The ledger of the round before, and the content of its alarms.json."""
    if "earlier" not in work.inputs:
        return [], {}
    folder = work.inputs["earlier"]
    return read_ledger(folder), json.loads((folder / "alarms.json").read_text())


def _selection(work: Work) -> Selection:
    """The completions the round trained on: features, rewards and counts over the training pool."""
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
    arrays = grids(table["prompt_id"].to_pylist(), order, columns)
    weights = {name: np.nan_to_num(arrays.pop(f"#{name}")) for name in ("chosen", "rejected")}
    return Selection(
        values={name: arrays[name] for name in s.kinds},
        chosen=weights["chosen"],
        rejected=weights["rejected"] if counts["rejected"] else None,
        reward=arrays["#reward"],
        strata=prompts["stratum"].to_pylist(),
    )


def sides_of(work: Work) -> dict[str, Counter[str]]:
    """How often training pushes each completion up (chosen) and down (rejected).

    It pushes down the rejected completion of a pair, a label of false (KTO) and every rank but the best (listwise losses).
    """
    if work.settings.chosen == "pairs":
        pairs = tables.read(work.inputs["pairs"] / "pairs.parquet", tables.PAIRS)
        return {side: Counter(pairs[f"{side}_id"].to_pylist()) for side in ("chosen", "rejected")}
    sides: dict[str, Counter[str]] = {"chosen": Counter(), "rejected": Counter()}
    for row in tables.read(work.inputs["selected"] / "selected.parquet", tables.SELECTED).to_pylist():
        pushed_up = row["label"] is not False and not row["rank"]
        sides["chosen" if pushed_up else "rejected"][row["completion_id"]] += 1
    return sides


def _surface_auc(work: Work, chosen: Selection) -> float | None:
    """Over one difference per prompt: the mean of its chosen completions minus the mean of its rejected ones."""
    assert chosen.rejected is not None
    kinds: dict[str, Kind] = work.settings.kinds
    sides = [contrast(scaled(chosen.values[name], kinds[name]), chosen.chosen, chosen.rejected) for name in kinds]
    differences = np.stack(sides, axis=1)
    used = (chosen.chosen.sum(-1) > 0) & (chosen.rejected.sum(-1) > 0)
    return surface_auc(differences[used], np.flatnonzero(used).tolist())


# -- writing and reading back -------------------------------------------------------------------------------------------
def write_ledger(folder: Path, entries: Sequence[Entry], alarms: Sequence[Alarm], facts: Mapping[str, Any]) -> None:
    rows = [{name: _rounded(value) for name, value in dataclasses.asdict(entry).items()} for entry in entries]
    tables.write(tables.from_rows(rows, tables.LEDGER), tables.LEDGER, folder / "ledger.parquet")
    content = {"level": gravest(alarms), "alarms": [dataclasses.asdict(alarm) for alarm in alarms], **facts}
    (folder / "alarms.json").write_text(json.dumps(content, indent=1))
    (folder / "report.md").write_text(report(entries, alarms, facts))


def _rounded(value: Any) -> Any:
    """To five digits: the last digits of a sum over resamples have differed between two processes on one machine."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def report(entries: Sequence[Entry], alarms: Sequence[Alarm], facts: Mapping[str, Any]) -> str:
    """The alarms, reward against verified accuracy, and every feature over all completions, the largest effect first."""
    text = [*(f"- **{alarm.level} {alarm.name}**: {alarm.sentence}" for alarm in alarms), "", *lines(facts), ""]
    text += ["| feature | level | round 0 | now | effect | 95% interval | step | pressure | gain |", "|" + "---|" * 9]
    ungrouped = [entry for entry in entries if entry.group is None]
    for e in sorted(ungrouped, key=lambda entry: -abs(entry.effect or 0.0)):
        numbers = [e.base, e.mean, e.effect, e.effect_low, e.effect_high, e.step_effect, e.pressure]
        base, mean, effect, low, high, step, pressure = ("" if x is None else f"{x:.3g}" for x in numbers)
        interval = f"{low} to {high}" if low else ""
        text.append(
            f"| {e.feature} | {e.level} | {base} | {mean} | {effect} | {interval} | {step} | {pressure} | {gain_in_words(e)} |"
        )
    return "\n".join(text) + "\n"


def read_ledger(folder: Path) -> list[Entry]:
    return [Entry(**row) for row in tables.read(folder / "ledger.parquet", tables.LEDGER).to_pylist()]
