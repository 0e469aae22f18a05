"""Make the twins of a split's prompts. `tasks/bias/twin_features.py` says how differently they were answered."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from data.errors import PromptsError
from data.rows import tables
from data.rows.completions import by_prompt, finished
from tasks.prompts.counterfactuals import challenge_twins, identity_twins, sycophancy_twins
from tasks.run.work import Work

VERSION = 2  # 2: challenges
LIBRARIES = ()


class Settings(BaseModel):
    split: str
    kinds: tuple[Literal["identity", "sycophancy", "challenge"], ...]
    hint: str  # with {prompt} and {wrong}; the tiny world, which cannot spell the default, takes "{prompt}~{wrong} "
    challenge: str = ""


def twins(work: Work) -> None:
    """PROMPTS (`twins.parquet`) made of `inputs["prompts"]`, to draw completions for, and TWINS (`links.parquet`).

    For challenges also of `inputs["completions"]`: the first of each prompt, where it came to its end.

    Raises:
        PromptsError: no prompt of the split can be twinned in any of these ways.
    """
    s: Settings = work.settings
    prompts = tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS).to_pylist()
    made = [*(identity_twins(prompts) if "identity" in s.kinds else ())]
    made += sycophancy_twins(prompts, s.hint) if "sycophancy" in s.kinds else []
    made += challenge_twins(prompts, _first_answers(work), s.challenge) if "challenge" in s.kinds else []
    known = {prompt["prompt_id"] for prompt in prompts}
    unique = {twin["prompt_id"]: (twin, link) for twin, link in made if twin["prompt_id"] not in known}
    if not unique:
        raise PromptsError(
            f"probe.twins = {list(s.kinds)}: expected prompts with an answer (sycophancy), that name somebody (identity) or "
            f"whose answer comes to an end (challenge), found none among the {len(prompts)} of the {s.split} split"
        )
    tables.write(tables.from_rows((t for t, _ in unique.values()), tables.PROMPTS), tables.PROMPTS, work.out / "twins.parquet")
    tables.write(
        tables.from_rows((link for _, link in unique.values()), tables.TWINS), tables.TWINS, work.out / "links.parquet"
    )


def _first_answers(work: Work) -> dict[str, str]:
    rows = tables.read(work.inputs["completions"] / "completions.parquet", tables.COMPLETIONS).to_pylist()
    return {prompt: samples[0]["text"] for prompt, samples in by_prompt(rows).items() if finished(samples[0])}
