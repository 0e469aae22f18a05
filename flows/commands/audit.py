"""`ratchet audit`: compare successive models by their outputs, with the bias ledger and the alarm rule of a campaign."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel

from data.errors import PromptsError
from data.recipe.settings import Columns as ColumnMap
from data.recipe.settings import Hardware, Prompts
from data.rows import tables
from data.store.store import Artifact, Store, canonical, sha256_text
from flows.commands.options import Columns, Home, Json, overrides
from flows.commands.training_log import audit_log
from flows.round.deliver import deliver
from flows.service import environment
from flows.terminal import err, line, out

if TYPE_CHECKING:
    from rich.table import Table

    from tasks.bias.audit_words import Compared
    from tasks.bias.iterations import Step
    from tasks.bias.ledger import Sample
    from tasks.run.stage import Input
    from tasks.run.work import Stage

Call = Callable[["Stage", BaseModel, Mapping[str, "Input"]], Artifact]


def audit(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[A B ...]", help="Files of outputs, or checkpoints, the oldest first; at least two."),
    ] = None,
    columns: Columns = "",
    gold: Annotated[
        str, typer.Option(help="Column with the verdict on each output: 1 = right, 0 = wrong.", metavar="COLUMN")
    ] = "",
    judge: Annotated[str, typer.Option(help="Column with a judge's score.", metavar="COLUMN")] = "",
    prompts: Annotated[Path | None, typer.Option(help="Checkpoints only: file of prompts to sample completions for.")] = None,
    samples: Annotated[int, typer.Option(help="Checkpoints only: completions per prompt.", min=1)] = 4,
    max_tokens: Annotated[int, typer.Option(help="Checkpoints only: most tokens per completion.", min=1)] = 512,
    training_log: Annotated[
        Path | None,
        typer.Option(
            help="Instead of outputs: a training log of TRL, verl or OpenRLHF; of any other program with --map.",
            metavar="FILE",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the audit in MLflow (default: 'FIRST to LAST', from the sources).")] = "",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Compare outputs of successive models on the same prompts: which features drifted, how much, since when. Trains nothing.

    Metrics that the input cannot support are null. With one completion per
    prompt and no token ids these are token counts, truncation and diversity
    between samples. The exit code is 0, with alarms or without.

    Examples:

      ratchet audit base.jsonl sft.jsonl dpo.jsonl --map prompt=instruction,completion=output

      ratchet audit round0.parquet round1.parquet --gold correct --judge score --json

      ratchet audit ./base ./tuned --prompts questions.jsonl --samples 4

      ratchet audit --training-log trainer_state.json

      ratchet audit --training-log run.csv --map reward=score,length=tokens
    """
    from registry.audits import record_audit

    if training_log is not None and not sources:
        audit_log(training_log, columns, as_json)
        return
    if training_log is not None or sources is None or len(sources) < 2:
        raise typer.BadParameter("expected at least two files or checkpoints, oldest first, or --training-log FILE alone")
    folder = environment.home_of(home)
    environment.prepare(folder)
    options = _Options(_mapping(columns), {"gold": gold, "judge": judge}, prompts, samples, max_tokens)
    result = run(folder, sources, options, name or f"{_label(sources[0])} to {_label(sources[-1])}")
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        _print(result)
    deliver(lambda: record_audit(folder, result), lambda text: err.print(text, soft_wrap=True))


@dataclass(frozen=True)
class _Options:
    map: dict[str, str]
    scores: dict[str, str]  # "gold" and "judge" -> column, "" if there is none
    prompts: Path | None
    samples: int
    max_tokens: int


def _mapping(columns: str) -> dict[str, str]:
    """`--map`, with the usual columns filled in."""
    column_of = {name.rpartition(".")[2]: column for name, column in overrides(None, None, columns).items()}
    return Prompts(map=column_of).map.model_dump()


def _label(source: Path) -> str:
    return re.sub(r"(\.jsonl?|\.parquet)?(\.gz)?$", "", source.name) if source.is_file() else source.name


# -- the artifacts ------------------------------------------------------------------------------------------------------
def run(home: Path, sources: Sequence[Path], options: _Options, name: str) -> dict[str, Any]:
    """Observe every source and compare them. Returns plain data, which `--json` prints."""
    from flows.round.calls import watched_stage
    from flows.round.reporter import Reporter
    from tasks.bias import observe
    from tasks.bias.audit_words import Compared, reworded
    from tasks.bias.iterations import ledger_of, null_test
    from tasks.bias.observed import prompts_of, read_sample

    store, hardware = Store(home / "store"), Hardware()
    with store.in_use(), Reporter("audit") as report:
        observed: list[_Observed] = []
        for number, source in enumerate(sources):

            def call(stage: Stage, settings: BaseModel, inputs: Mapping[str, Input], number: int = number) -> Artifact:
                return watched_stage(store, report, number, stage.__name__, stage, settings, inputs, hardware=hardware)

            before = {"base": observed[0].checkpoint, "previous": observed[-1].checkpoint} if observed else {}
            observed.append(_observe(call, source, options, before))
        shared = _shared([prompts_of(one.features.path) for one in observed])
        report.say(f"Comparing the {len(shared)} prompts that all {len(sources)} sources have")
        samples = [read_sample(one.features.path, shared, {n: s.path for n, s in one.scores.items()}) for one in observed]
        kinds: Any = observe.kinds(observe.Settings(**observe.everything()))
        labels = [_label(source) for source in sources]
        steps = ledger_of(samples, kinds, _strata(observed[0].prompts, shared), labels[0])
        null = null_test(samples[0], kinds)
    files = [
        {"source": str(source), "label": _label(source), "digest": one.features.digest, **_facts(one.features.path)}
        for source, one in zip(sources, observed, strict=True)
    ]
    return {
        "name": name,
        "id": sha256_text(canonical([[f["digest"] for f in files], sorted(options.scores.items())])),
        "prompts": len(shared),
        "files": files,
        "steps": [_plain(step, Compared(labels, number)) for number, step in enumerate(steps, 1)],
        "null_test": {
            "alarms": [asdict(a) for a in reworded(null, Compared(["one half", "the other half"], 1))],
            "halves": _halves(samples[0]),
        },
    }


def _shared(prompts_of_sources: Sequence[Sequence[str]]) -> list[str]:
    """The prompts that all sources have, in the order of the first.

    Raises:
        PromptsError: there is none.
    """
    first, *others = prompts_of_sources
    shared = [prompt for prompt in first if all(prompt in prompts for prompts in map(set, others))]
    if not shared:
        raise PromptsError(
            "expected outputs for the same prompts, found no prompt that all sources have; see --map prompt=COLUMN"
        )
    return shared


@dataclass(frozen=True)
class _Observed:
    prompts: Artifact
    features: Artifact
    scores: dict[str, Artifact]
    checkpoint: Artifact | None


def _observe(call: Call, source: Path, options: _Options, before: Mapping[str, Artifact | None]) -> _Observed:
    """Observe one source: a file of outputs, or a checkpoint."""
    from tasks.bias import observe
    from tasks.models import logprobs
    from tasks.prompts.read_prompts import SPLIT
    from tasks.run.work import device_of
    from tasks.score import score

    checkpoint: Artifact | None = None
    more: dict[str, Artifact] = {}
    if source.is_dir():
        prompts, checkpoint, completions = _sampled(call, source, options)
        own = checkpoint if device_of(Hardware()) == "cuda" else None  # a GPU samples in bfloat16
        for name, other in {"own": own, **before}.items():
            if other is not None:
                inputs = {"checkpoint": other, "prompts": prompts, "completions": completions}
                inputs |= {"own": checkpoint} if name != "own" else {}
                settings = logprobs.Settings(split=SPLIT, limit=0, trust_remote_code=False)
                more[f"{name}_logprobs"] = call(logprobs.logprobs, settings, inputs)
    else:
        prompts, completions = _read(call, source, options)
    inputs = {"prompts": prompts, "completions": completions}
    scores = {}
    for name, column in options.scores.items():
        if column:
            scorer = score.Settings(scorer="imported", settings={"column": column}, split=SPLIT)
            scores[name] = call(score.score, scorer, inputs)
    if "gold" in scores:
        more["verdicts"] = scores["gold"]
    features = observe.Settings(**observe.everything(), split=SPLIT)
    return _Observed(prompts, call(observe.observe, features, {**inputs, **more}), scores, checkpoint)


def _read(call: Call, source: Path, options: _Options) -> tuple[Artifact, Artifact]:
    """Prompts and completions of a file of outputs."""
    from flows.round.artifacts import external_file
    from tasks.generate import import_completions, recorded
    from tasks.prompts.read_prompts import SPLIT

    file, columns = {"file": external_file(source)}, ColumnMap(**options.map)
    prompts = _read_prompts(call, source, options)
    importing = import_completions.Settings(map=columns, template="{prompt}")
    imported = call(import_completions.import_completions, importing, file)
    answers = {"prompts": prompts, "imported": imported}
    return prompts, call(recorded.recorded, recorded.Settings(split=SPLIT), answers)


def _read_prompts(call: Call, source: Path, options: _Options) -> Artifact:
    from flows.round.artifacts import external_file
    from tasks.prompts import read_prompts

    columns = ColumnMap(**options.map)
    settings = read_prompts.Settings(map=columns, template="{prompt}", answer_after="", trained="{prompt}")
    return call(read_prompts.read_prompts, settings, {"file": external_file(source)})


def _sampled(call: Call, source: Path, options: _Options) -> tuple[Artifact, Artifact, Artifact]:
    """Prompts, the checkpoint, and its completions, sampled at temperature 1."""
    from flows.round.artifacts import external_model
    from tasks.generate import generate
    from tasks.models import import_model
    from tasks.prompts.read_prompts import SPLIT
    from tasks.run.work import device_of

    if options.prompts is None:
        raise PromptsError(f"{source} is a checkpoint; pass --prompts FILE to sample completions from it")
    prompts = _read_prompts(call, options.prompts, options)
    checkpoint = call(import_model.import_model, import_model.Settings(), {"model": external_model(source)})
    settings = generate.Settings(
        engine="transformers",
        settings={},
        split=SPLIT,
        n=options.samples,
        temperature=1.0,
        top_p=1.0,
        max_tokens=options.max_tokens,
        batch=64,
        shard=512,
        dtype="bfloat16" if device_of(Hardware()) == "cuda" else "float32",
        trust_remote_code=False,
    )
    return prompts, checkpoint, call(generate.generate, settings, {"prompts": prompts, "checkpoint": checkpoint})


# -- the result ---------------------------------------------------------------------------------------------------------
def _strata(prompts: Artifact, shared: Sequence[str]) -> list[str | None]:
    from tasks.prompts.read_prompts import SPLIT

    table = tables.read(prompts.file(f"{SPLIT}.parquet"), tables.PROMPTS)
    stratum = dict(zip(table["prompt_id"].to_pylist(), table["stratum"].to_pylist(), strict=True))
    return [stratum[prompt] for prompt in shared]


def _facts(observed: Path) -> dict[str, Any]:
    """Number of completions, and the mean of every feature over all of them, also those on prompts that are not shared."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(observed / "features.parquet")
    means = {name: pc.mean(table[name]).as_py() for name in table.column_names[2:]}
    return {"completions": table.num_rows, "means": means}


def _halves(sample: Sample) -> str:
    return "samples" if any(v.shape[1] > 1 for v in sample.values.values()) else "prompts"


def _plain(step: Step, compared: Compared) -> dict[str, Any]:
    from tasks.bias.audit_words import gold_verdict, lines, reworded
    from tasks.bias.overoptimisation import outran_facts

    verdict = gold_verdict(step, compared)
    return {
        "gold": asdict(verdict) if verdict else None,
        "lines": lines(step, compared),
        "alarms": [asdict(alarm) for alarm in reworded(step, compared)],
        "entries": [asdict(entry) for entry in step.entries],
        "outcomes": [asdict(entry) for entry in step.outcomes],
        **outran_facts(step.proxy_gap),
    }


def _print(result: Mapping[str, Any]) -> None:
    labels = [file["label"] for file in result["files"]]
    for step in result["steps"]:
        out.print(step["gold"]["sentence"] if step["gold"] else NO_GOLD, soft_wrap=True)
        if not step["gold"]:
            break
    for label, step in zip(labels[1:], result["steps"], strict=True):
        _print_step(label, labels[0], step)
    null = result["null_test"]
    halves = f"two random halves of the {null['halves']} of {labels[0]}"
    out.print(f"Check of the method: between {halves} there are {len(null['alarms'])} alarms (0 expected).", soft_wrap=True)
    for alarm in null["alarms"]:
        out.print(f"  {alarm['level']} {alarm['name']}: {alarm['sentence']}", soft_wrap=True)
    out.print(_table(result, labels))
    out.print(f"{result['prompts']} prompts. Use --json for all features, groups and intervals.")


NO_GOLD = "Not known: whether answers are right. With --gold COLUMN the first line says whether the model got better."


def _print_step(label: str, first: str, step: Mapping[str, Any]) -> None:
    from tasks.bias.overoptimisation import outran

    out.print(line((label, "bold"), f" compared with {first}:" + ("" if step["lines"] else " nothing moved")))
    for told in step["lines"]:
        out.print(f"  {told}", soft_wrap=True)
    for told in outran(step):
        out.print(f"  {told}", soft_wrap=True)


def _table(result: Mapping[str, Any], labels: Sequence[str]) -> Table:
    """The features that moved, family by family."""
    from flows.commands.report import plain_table
    from tasks.bias.families import family_of

    outcomes = {e["feature"] for step in result["steps"] for e in step["outcomes"]}
    steps = [{e["feature"]: e for e in (*step["entries"], *step["outcomes"]) if e["group"] is None} for step in result["steps"]]
    shown = outcomes | {name for step in steps for name, entry in step.items() if entry["level"]}
    table = plain_table(
        "feature",
        *labels,
        caption="Means over the shared prompts (geometric for lengths). In brackets: effect against the first "
        "source, in SD, or Cohen's h for shares",
    )
    for feature in sorted(shown, key=lambda name: (name not in outcomes, family_of(name), name)):
        table.add_row(feature, _number(steps[0][feature]["base"]), *(_cell(step.get(feature)) for step in steps))
    return table


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["mean"] is None:
        return "-"
    effect = "" if entry["effect"] is None else f" ({entry['effect']:+.2f})"
    return f"{_number(entry['mean'])}{effect} {entry['level']}".rstrip()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
