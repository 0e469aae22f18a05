"""Make counterfactual copies of a split's prompts. tasks/bias/counterfactual_features.py compares the completions of both."""

from __future__ import annotations

from typing import Literal

from data.errors import PromptsError
from data.rows import tables
from data.rows.completions import by_prompt, finished
from tasks.prompts.counterfactuals import challenge_copies, identity_copies, sycophancy_copies
from tasks.run.work import StageSettings, Work

SPLIT = "counterfactuals"  # the file of its prompts
VERSION = 3  # 3: a neutral second turn beside each challenge. 2: challenges
LIBRARIES = ()


class Settings(StageSettings):
    split: str
    kinds: tuple[Literal["identity", "sycophancy", "challenge"], ...]
    hint: str  # contains {prompt} and {wrong}; tiny recipes, whose tokenizer lacks most letters, set "{prompt}~{wrong} "
    challenge: str
    neutral: str  # the second turn that a challenge is compared with


def counterfactual_prompts(work: Work) -> None:
    """PROMPTS (`counterfactuals.parquet`): copies of `inputs["prompts"]`. COUNTERFACTUALS (`links.parquet`) links both.

    A challenge and its neutral copy also contain the prompt's first completion in `inputs["completions"]`, if it is finished.

    Raises:
        PromptsError: no prompt of the split has a copy of any of these kinds.
    """
    s: Settings = work.settings
    prompts = tables.read(work.inputs["prompts"] / f"{s.split}.parquet", tables.PROMPTS).to_pylist()
    pairs = [*(identity_copies(prompts) if "identity" in s.kinds else ())]
    pairs += sycophancy_copies(prompts, s.hint) if "sycophancy" in s.kinds else []
    pairs += challenge_copies(prompts, _first_answers(work), s.challenge, s.neutral) if "challenge" in s.kinds else []
    originals = {prompt["prompt_id"] for prompt in prompts}
    unique = {copy["prompt_id"]: (copy, link) for copy, link in pairs if copy["prompt_id"] not in originals}
    if not unique:
        raise PromptsError(
            f"probe.counterfactuals = {list(s.kinds)}: expected prompts with an answer (sycophancy), with a named person "
            f"(identity) or with a finished completion (challenge), found none among {len(prompts)} of the {s.split} split; "
            "set probe.counterfactuals to other kinds, or to []"
        )
    copies, links = zip(*unique.values(), strict=True)
    tables.write(tables.from_rows(copies, tables.PROMPTS), tables.PROMPTS, work.out / f"{SPLIT}.parquet")
    tables.write(tables.from_rows(links, tables.COUNTERFACTUALS), tables.COUNTERFACTUALS, work.out / "links.parquet")


def _first_answers(work: Work) -> dict[str, str]:
    rows = tables.read(work.inputs["completions"] / "completions.parquet", tables.COMPLETIONS).to_pylist()
    return {prompt: samples[0]["text"] for prompt, samples in by_prompt(rows).items() if finished(samples[0])}
