"""The rows of token ids that a trainer reads. Sampled token ids are used as they are, never tokenised again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from data.errors import StageFailed
from data.recipe.loss import Loss
from data.rows import tables
from tasks.models.sequences import sequences, sequences_of_split

Row = dict[str, Any]
Inputs = Mapping[str, Path]


def of_selected(inputs: Inputs, split: str, tokenizer: Any, replay: bool) -> list[Row]:
    """SFT rows: input_ids, and labels that hide the prompt from the loss. `replay` adds the seed split's given solutions."""
    chosen: list[tuple[str, list[int], list[int]]] = []
    if "selected" in inputs:
        by_completion = sequences_of_split(inputs, split, tokenizer)
        chosen += [(row["prompt_id"], *by_completion[row["completion_id"]]) for row in _selected(inputs)]
    if replay:
        given = sequences(inputs["seed_data"] / "seed.parquet", inputs["seed_data"] / "given.parquet", tokenizer)
        chosen += [(name, *ids) for name, ids in given.items()]
    return [{"prompt_id": i, "input_ids": p + c, "labels": [-100] * len(p) + c} for i, p, c in chosen]


def of_labelled(inputs: Inputs, split: str, tokenizer: Any) -> list[Row]:
    """KTO rows: prompt_ids, completion_ids, label.

    Raises:
        StageFailed: a selected completion has no label.
    """
    by_completion, rows = sequences_of_split(inputs, split, tokenizer), []
    for row in _selected(inputs):
        if row["label"] is None:
            raise StageFailed(
                "train: this loss needs a label on every selected completion, found one without. "
                "Use select.selector = 'labelled'."
            )
        prompt, completion = by_completion[row["completion_id"]]
        rows.append({"prompt_id": row["prompt_id"], "prompt_ids": prompt, "completion_ids": completion, "label": row["label"]})
    return rows


def of_ranked(inputs: Inputs, split: str, tokenizer: Any) -> list[Row]:
    """Listwise rows, one per prompt with at least two ranks: prompt_ids, completions (lists of ids), ranks (0 = best).

    Raises:
        StageFailed: a selected completion has no rank.
    """
    by_completion, rows = sequences_of_split(inputs, split, tokenizer), []
    selected = _selected(inputs)
    if any(row["rank"] is None for row in selected):
        raise StageFailed(
            "train: this loss needs a rank on every selected completion, found one without. Use select.selector = 'ranked'."
        )
    for prompt, group in groupby(sorted(selected, key=lambda r: (r["prompt_id"], r["rank"])), key=lambda r: r["prompt_id"]):
        listed = list(group)
        if listed[0]["rank"] < listed[-1]["rank"]:
            ids = [by_completion[row["completion_id"]] for row in listed]
            ranks = [row["rank"] for row in listed]
            rows.append({"prompt_id": prompt, "prompt_ids": ids[0][0], "completions": [c for _, c in ids], "ranks": ranks})
    return rows


def of_pairs(inputs: Inputs, split: str, tokenizer: Any, loss: Loss) -> list[Row]:
    """Pair rows: prompt_ids, chosen_ids, rejected_ids; for terms of our own also weight, margin and certainty.

    Raises:
        StageFailed: loss.offset is set and a pair has no positive margin; or pairs have soft labels that the loss ignores.
    """
    by_completion = sequences_of_split(inputs, split, tokenizer)
    pairs = tables.read(inputs["pairs"] / "pairs.parquet", tables.PAIRS).to_pylist()
    if loss.offset and any(pair["margin"] <= 0 for pair in pairs):
        raise StageFailed(
            "train: loss.offset uses the log of each pair's reward difference, found one that is not above 0. "
            "Set loss.offset = 0, or a pairer's minimum_margin above 0."
        )
    rows: list[Row] = [
        {
            "prompt_id": pair["prompt_id"],
            "prompt_ids": by_completion[pair["chosen_id"]][0],
            "chosen_ids": by_completion[pair["chosen_id"]][1],
            "rejected_ids": by_completion[pair["rejected_id"]][1],
        }
        for pair in pairs
    ]
    soft = any(pair["label"] is not None for pair in pairs)
    if soft and set(loss.weights) - {"sigmoid", "nll"}:
        raise StageFailed(
            f"train: the pairs have soft labels, which only the sigmoid loss reads; found {loss.name} {loss.terms}. "
            "Remove the mitigation 'agreed', or use loss.name = 'sigmoid'."
        )
    if loss.own or soft:
        for row, pair in zip(rows, pairs, strict=True):
            row["weight"] = pair["weight"] if loss.weighted else 1.0
            row["margin"] = pair["margin"] if loss.offset else 1.0
            row["certainty"] = 1.0 - loss.smoothing if pair["label"] is None else pair["label"]
    return rows


def side_by_side(row: Row) -> Row:
    """A pair row in the form that TRL's ORPO and CPO trainers read: whole sequences, labels that hide the prompt."""
    sides: Row = {}
    for side in ("chosen", "rejected"):
        ids = row["prompt_ids"] + row[f"{side}_ids"]
        sides[f"{side}_input_ids"] = ids
        sides[f"{side}_attention_mask"] = [1] * len(ids)
        sides[f"{side}_labels"] = [-100] * len(row["prompt_ids"]) + row[f"{side}_ids"]
    return sides


def longest(row: Row) -> int:
    """Tokens of the longest sequence of a row, prompt and completion together."""
    if "input_ids" in row:
        return len(row["input_ids"])
    completions: Sequence[list[int]] = row.get("completions") or [
        row[name] for name in ("chosen_ids", "rejected_ids", "completion_ids") if name in row
    ]
    return len(row["prompt_ids"]) + max(map(len, completions))


def _selected(inputs: Inputs) -> list[Row]:
    rows: list[Row] = tables.read(inputs["selected"] / "selected.parquet", tables.SELECTED).to_pylist()
    if any(row["weight"] != 1.0 for row in rows):
        raise StageFailed(
            "train: no loss reads the weights of selected completions; expected 1.0 in every row, found another one. Let the "
            "selector repeat rows, or use a [pair] table with loss.weighted."
        )
    return rows
