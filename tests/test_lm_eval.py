"""The task file for lm-eval, which is not installed here: it reads our tables, and the answer as our verifier does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from data.recipe.recipe import load
from data.rows import tables
from tasks.score.scorers.answers import exact_match

TASK: dict[str, Any] = yaml.safe_load((Path(__file__).parent.parent / "data" / "lm_eval" / "held_out.yaml").read_text())


def test_the_task_reads_a_prepared_split() -> None:
    # file and columns are those of the prepare stage; the tiny world's completions fit into its tokens
    assert TASK["dataset_kwargs"]["data_files"] == {"test": "held_out.parquet"}
    named = set(re.findall(r"\{\{(\w+)", TASK["doc_to_text"] + TASK["doc_to_target"]))
    assert named == {"messages", "answer"} <= set(tables.PROMPTS.names)
    assert TASK["generation_kwargs"]["max_gen_toks"] == load("tiny_raft").generate.max_tokens


@given(st.lists(st.sampled_from(["#", "1", "12", ";", "+", "=06"]), max_size=6).map("".join), st.sampled_from(["1", "12"]))
def test_the_task_judges_as_exact_match_does(text: str, gold: str) -> None:
    # lm-eval takes the first match of its filter, or the fallback, and compares it to the letter
    settings = TASK["filter_list"][0]["filter"][0]
    answer = (re.findall(settings["regex_pattern"], text) or [settings["fallback"]])[0]
    (ours,) = exact_match([{"answer": gold}], [{"text": text, "finish_reason": "stop"}], after="#")
    assert float(answer == gold) == ours.value
