"""`ratchet audit`: given outputs (or checkpoints) as successive iterations, through a campaign's ledger and alarm rule."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from data.errors import PromptsError
from data.recipe.settings import Hardware, Prompts
from data.rows import tables
from data.store.store import Artifact, Store, canonical, sha256_text
from flows.commands.options import Columns, Home, Json, err, out, overrides
from flows.service import environment

if TYPE_CHECKING:
    from tasks.bias.iterations import Step
    from tasks.bias.ledger import Sample
    from tasks.run.stage import Input

Call = Callable[..., Artifact]


def audit(
    sources: Annotated[list[Path], typer.Argument(metavar="A B ...", help="Files of outputs, or checkpoints, oldest first.")],
    columns: Columns = "",
    gold: Annotated[str, typer.Option(help="Column with the verdict on each output: 1 right, 0 wrong.")] = "",
    judge: Annotated[str, typer.Option(help="Column with a judge's score.")] = "",
    prompts: Annotated[Path | None, typer.Option(help="Checkpoints only: the prompts to draw for.")] = None,
    samples: Annotated[int, typer.Option(help="Checkpoints only: completions per prompt.", min=1)] = 4,
    max_tokens: Annotated[int, typer.Option(help="Checkpoints only: limit of a completion.", min=1)] = 512,
    name: Annotated[str, typer.Option(help="Name of the audit in MLflow (default: the first and last source).")] = "",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Compare outputs of successive models on the same prompts: what drifted, how much, since when. Trains nothing.

    What cannot be known (token counts of a text, diversity of a single sample) is null. Exit code 0, whatever is found.

    Examples:

      ratchet audit base.jsonl sft.jsonl dpo.jsonl --map prompt=instruction,completion=output

      ratchet audit round0.parquet round1.parquet --gold correct --judge score --json

      ratchet audit ./base ./tuned --prompts questions.jsonl --samples 4
    """
    if len(sources) < 2:
        raise typer.BadParameter("expected at least two files or checkpoints, oldest first")
    place = environment.home_of(home)
    environment.prepare(place)
    asked = _Asked(_mapping(columns), {"gold": gold, "judge": judge}, prompts, samples, max_tokens)
    found = run(place, sources, asked, name or f"{_label(sources[0])} to {_label(sources[-1])}")
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        _print(found)
    _remember(place, found)


@dataclass(frozen=True)
class _Asked:
    map: dict[str, str]
    scores: dict[str, str]  # "gold" and "judge" -> column, "" where there is none
    prompts: Path | None
    samples: int
    max_tokens: int


def _mapping(columns: str) -> dict[str, str]:
    given = overrides(None, None, columns)
    return Prompts(map={name.rpartition(".")[2]: column for name, column in given.items()}).map.model_dump()


def _label(source: Path) -> str:
    return re.sub(r"(\.jsonl?|\.parquet)?(\.gz)?$", "", source.name) if source.is_file() else source.name


# -- the artifacts ------------------------------------------------------------------------------------------------------
def run(place: Path, sources: Sequence[Path], asked: _Asked, name: str) -> dict[str, Any]:
    """Observe every source and compare them; the result is plain data."""
    from flows.commands.report import Reporter
    from tasks.bias import observe
    from tasks.bias.iterations import ledger_of, null_test
    from tasks.bias.observed import prompts_of, read_sample
    from tasks.run.stage import perform
    from tasks.run.work import module_of

    store, hardware = Store(place / "store"), Hardware()
    with store.in_use(), Reporter("audit") as report:
        observed: list[_Observed] = []
        for number, source in enumerate(sources):

            def call(stage: str, settings: dict[str, Any], inputs: Mapping[str, Input], number: int = number) -> Artifact:
                with report.stage(number, stage, lambda key: None) as notes:
                    checked = module_of(stage).Settings.model_validate(settings)
                    artifact = perform(store, stage, checked, inputs, hardware=hardware, notes=notes)
                    report.done(number, stage, artifact)
                    return artifact

            before = {"base": observed[0].checkpoint, "previous": observed[-1].checkpoint} if observed else {}
            observed.append(_observe(call, source, asked, before))
        shared = [prompts_of(each.features.path) for each in observed]
        kept = [prompt for prompt in shared[0] if all(prompt in there for there in map(set, shared[1:]))]
        if not kept:
            raise PromptsError(
                "expected outputs for the same prompts, found none that all sources have; see --map prompt=COLUMN"
            )
        report.say(f"comparing {len(kept)} prompts that all {len(sources)} sources have")
        made = [read_sample(each.features.path, kept, {n: s.path for n, s in each.scores.items()}) for each in observed]
        kinds: Any = observe.kinds(observe.Settings(**observe.everything()))
        steps = ledger_of(made, kinds, _strata(observed[0].prompts, kept))
        null = null_test(made[0], kinds)
    files = [
        {"source": str(source), "label": _label(source), "digest": each.features.digest, **_facts(each.features.path)}
        for source, each in zip(sources, observed, strict=True)
    ]
    return {
        "name": name,
        "id": sha256_text(canonical([[f["digest"] for f in files], sorted(asked.scores.items())])),
        "prompts": len(kept),
        "files": files,
        "steps": [_plain(step) for step in steps],
        "null_test": {"alarms": [asdict(alarm) for alarm in null], "halves": _halves(made[0])},
    }


@dataclass(frozen=True)
class _Observed:
    prompts: Artifact
    features: Artifact
    scores: dict[str, Artifact]
    checkpoint: Artifact | None


def _observe(call: Call, source: Path, asked: _Asked, before: Mapping[str, Artifact | None]) -> _Observed:
    """Observe one source, a file of outputs or a checkpoint."""
    from flows.round.artifacts import external_file
    from tasks.bias.observe import everything
    from tasks.prompts.read_prompts import SPLIT
    from tasks.run.work import device_of

    checkpoint: Artifact | None = None
    more: dict[str, Artifact] = {}
    columns = {"map": asked.map, "template": "{prompt}"}
    if source.is_dir():
        prompts, checkpoint, drawn = _drawn(call, source, asked)
        asked_of = {"own": checkpoint if device_of(Hardware()) == "cuda" else None, **before}  # there it draws in bfloat16
        for name, other in asked_of.items():
            if other is not None:
                inputs = {"checkpoint": other, "prompts": prompts, "completions": drawn}
                more[f"{name}_logprobs"] = call("logprobs", {"split": SPLIT, "limit": 0}, inputs)
    else:
        file = {"file": external_file(source)}
        prompts = call("read_prompts", columns, file)
        imported = call("import_completions", columns, file)
        drawn = call("recorded", {"split": SPLIT}, {"prompts": prompts, "imported": imported})
    inputs = {"prompts": prompts, "completions": drawn}
    scores = {
        name: call("score", {"scorer": "imported", "settings": {"column": column}, "split": SPLIT}, inputs)
        for name, column in asked.scores.items()
        if column
    }
    if "gold" in scores:
        more["verdicts"] = scores["gold"]
    return _Observed(prompts, call("observe", {**everything(), "split": SPLIT}, {**inputs, **more}), scores, checkpoint)


def _drawn(call: Call, source: Path, asked: _Asked) -> tuple[Artifact, Artifact, Artifact]:
    """Prompts, checkpoint and completions drawn from it at temperature 1."""
    from flows.round.artifacts import external_file, external_model
    from tasks.prompts.read_prompts import SPLIT
    from tasks.run.work import device_of

    if asked.prompts is None:
        raise PromptsError(f"{source} is a checkpoint: expected --prompts FILE to draw completions for")
    prompts = call("read_prompts", {"map": asked.map, "template": "{prompt}"}, {"file": external_file(asked.prompts)})
    checkpoint = call("import_model", {}, {"model": external_model(source)})
    dtype = "bfloat16" if device_of(Hardware()) == "cuda" else "float32"
    decoding = {"n": asked.samples, "temperature": 1.0, "top_p": 1.0, "max_tokens": asked.max_tokens}
    settings = {"engine": "transformers", "split": SPLIT, **decoding, "batch": 64, "shard": 512, "dtype": dtype}
    return prompts, checkpoint, call("generate", settings, {"prompts": prompts, "checkpoint": checkpoint})


# -- what is said of them -----------------------------------------------------------------------------------------------
def _strata(prompts: Artifact, kept: Sequence[str]) -> list[str | None]:
    from tasks.prompts.read_prompts import SPLIT

    table = tables.read(prompts.file(f"{SPLIT}.parquet"), tables.PROMPTS)
    stratum = dict(zip(table["prompt_id"].to_pylist(), table["stratum"].to_pylist(), strict=True))
    return [stratum[prompt] for prompt in kept]


def _facts(observed: Path) -> dict[str, Any]:
    """Rows, and the plain mean of every feature over all of a source's completions, shared prompts or not."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(observed / "features.parquet")
    means = {name: pc.mean(table[name]).as_py() for name in table.column_names[2:]}
    return {"completions": table.num_rows, "means": means}


def _halves(sample: Sample) -> str:
    return "samples" if any(v.shape[1] > 1 for v in sample.values.values()) else "prompts"


def _plain(step: Step) -> dict[str, Any]:
    return {
        "alarms": [asdict(alarm) for alarm in step.alarms],
        "entries": [asdict(entry) for entry in step.entries],
        "outcomes": [asdict(entry) for entry in step.outcomes],
        "proxy_gap": None if step.proxy_gap is None else asdict(step.proxy_gap),
    }


def _print(found: Mapping[str, Any]) -> None:
    from flows.commands.report import plain_table

    labels = [file["label"] for file in found["files"]]
    outcomes = {e["feature"] for step in found["steps"] for e in step["outcomes"]}
    steps = [{e["feature"]: e for e in (*step["entries"], *step["outcomes"]) if e["group"] is None} for step in found["steps"]]
    shown = outcomes | {name for step in steps for name, entry in step.items() if entry["level"]}
    table = plain_table(
        "feature", *labels, caption="means over the shared prompts (lengths: geometric); SD or h from the first"
    )
    for feature in sorted(shown):
        table.add_row(feature, _number(steps[0][feature]["base"]), *(_cell(step.get(feature)) for step in steps))
    out.print(table)
    for label, step in zip(labels[1:], found["steps"], strict=True):
        out.print(f"[bold]{escape(label)}[/bold] against {escape(labels[0])}:" + ("" if step["alarms"] else " nothing"))
        for alarm in step["alarms"]:
            out.print(escape(f"{alarm['level']} {alarm['feature']}: {alarm['sentence']}"), soft_wrap=True)
        if step["proxy_gap"]:
            gap = step["proxy_gap"]
            out.print(f"judge less gold: {gap['value']:+.2f} SD [{gap['low']:+.2f}, {gap['high']:+.2f}]", soft_wrap=True)
    null = found["null_test"]
    out.print(f"A/A by halves of the {null['halves']} of {escape(labels[0])}: {len(null['alarms'])} alarms (expected none)")
    for alarm in null["alarms"]:
        out.print(escape(f"  A/A {alarm['level']} {alarm['feature']}: {alarm['sentence']}"), soft_wrap=True)
    out.print(f"{found['prompts']} prompts; everything else: --json")


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["mean"] is None:
        return "-"
    effect = "" if entry["effect"] is None else f" ({entry['effect']:+.2f})"
    return f"{_number(entry['mean'])}{effect} {entry['level']}".rstrip()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _remember(place: Path, found: Mapping[str, Any]) -> None:
    """Into MLflow; what was found has been said already, so trouble there is only told."""
    from registry.audits import record_audit
    from registry.client import MemoryUnreachable

    try:
        record_audit(place, found)
    except MemoryUnreachable as error:
        err.print(f"[yellow]not in MLflow: {escape(str(error))}[/yellow]", soft_wrap=True)
