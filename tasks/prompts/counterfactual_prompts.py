"""Make counterfactual copies of a split's prompts. tasks/bias/counterfactual_features.py compares how both were answered."""

from __future__ import annotations

from typing import Literal

from data.errors import PromptsError
from data.rows import tables
from data.rows.completions import by_prompt, finished
from tasks.prompts.counterfactuals import challenge_copies, identity_copies, sycophancy_copies
from tasks.run.work import StageSettings, Work

SPLIT = "counterfactuals"  # the file of its prompts
VERSION = 2  # 2: challenges
LIBRARIES = ()


class Settings(StageSettings):
    split: str
    kinds: tuple[Literal["identity", "sycophancy", "challenge"], ...]
    hint: str  # with {prompt} and {wrong}; the tiny world, which cannot spell the default, takes "{prompt}~{wrong} "
    challenge: str


def counterfactual_prompts(work: Work) -> None:
    """PROMPTS (`counterfactuals.parquet`) made of `inputs["prompts"]`, and COUNTERFACTUALS (`links.parquet`), which link them.

    A challenge also holds the first of the prompt's `inputs["completions"]`, if that one was finished.

    Raises:
        PromptsError: no prompt of the split can be copied in any of these ways.
    """
    s: Settings = work.settings
    prompts = tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS).to_pylist()
    made = [*(identity_copies(prompts) if "identity" in s.kinds else ())]
    made += sycophancy_copies(prompts, s.hint) if "sycophancy" in s.kinds else []
    made += challenge_copies(prompts, _first_answers(work), s.challenge) if "challenge" in s.kinds else []
    known = {prompt["prompt_id"] for prompt in prompts}
    unique = {copy["prompt_id"]: (copy, link) for copy, link in made if copy["prompt_id"] not in known}
    if not unique:
        raise PromptsError(
            f"probe.counterfactuals = {list(s.kinds)}: expected prompts with an answer (sycophancy), with a named person "
            f"(identity) or with a finished completion (challenge), found none among {len(prompts)} of the {s.split} split"
        )
    copies, links = zip(*unique.values(), strict=True)
    tables.write(tables.from_rows(copies, tables.PROMPTS), tables.PROMPTS, work.out / f"{SPLIT}.parquet")
    tables.write(tables.from_rows(links, tables.COUNTERFACTUALS), tables.COUNTERFACTUALS, work.out / "links.parquet")


def _first_answers(work: Work) -> dict[str, str]:
    rows = tables.read(work.inputs["completions"] / "completions.parquet", tables.COMPLETIONS).to_pylist()
    return {prompt: samples[0]["text"] for prompt, samples in by_prompt(rows).items() if finished(samples[0])}
