"""Judge templates: the question to a judge and the labels it may answer, one TOML file each in `data/judges/`.

A template's text holds `{{prompt}}` and either `{{completion}}` or, to compare two, `{{first}}` and `{{second}}`. `{{fence}}`
is replaced by a mark that none of these texts contains. The judge answers with `lead` and one of `labels`, each of which has a
value between 0 and 1.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from data.errors import RecipeError, did_you_mean

FOLDER = Path(__file__).parents[1] / "judges"
PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
PLACEHOLDER_SETS = ({"prompt", "completion"}, {"prompt", "first", "second"})


class Template(BaseModel):
    """One template, checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str
    lead: str = Field(min_length=1, description="the words before the label, e.g. 'Score:'")
    text: str
    labels: dict[str, float] = Field(
        min_length=2, description="the answers a judge may give, each with its value between 0 and 1"
    )

    @field_validator("labels")
    @classmethod
    def _worth(cls, labels: dict[str, float]) -> dict[str, float]:
        if not all(0 <= worth <= 1 for worth in labels.values()):
            raise ValueError(f"expected a value between 0 and 1 for each label, found {labels}")
        return labels

    @model_validator(mode="after")
    def _placeholders(self) -> Template:
        names = set(PLACEHOLDER.findall(self.text))
        if names - {"fence"} not in PLACEHOLDER_SETS:
            raise ValueError(
                f"expected places in text for {{{{prompt}}}} and {{{{completion}}}}, or for {{{{prompt}}}}, {{{{first}}}} and "
                f"{{{{second}}}}; found {', '.join(sorted(names)) or 'none of them'}"
            )
        return self

    @property
    def compares(self) -> bool:
        """Whether it asks which of two completions is better, instead of how good one is."""
        return "{{second}}" in self.text

    def fill(self, texts: Mapping[str, str]) -> str:
        """The question to the judge. Text that is filled in stays as it is, even where it holds `{{prompt}}` itself."""
        values = {**texts, "fence": fence(texts)}
        return PLACEHOLDER.sub(lambda placeholder: values[placeholder[1]], self.text).strip()

    def read(self, answer: str) -> float | None:
        """The value of the judge's answer, None where it cannot be read.

        Only the last line counts, so that a line quoted from the judged text is not taken for the verdict. It must be the lead
        and one whole label, e.g. "Score: 4" or "**Score:** 4/5"; "Score: 4.5", "Score: 3 or 4" and "> Score: 4" are refused.
        """
        lines = answer.strip().splitlines()
        verdict = self._verdict().match(lines[-1]) if lines else None
        return self.labels[verdict[1]] if verdict else None

    def _verdict(self) -> re.Pattern[str]:
        words, colon = self.lead.rstrip(": "), r"[\s*_`]*:" if ":" in self.lead else ""
        labels = "|".join(re.escape(label) for label in sorted(self.labels, key=len, reverse=True))
        alone = rf"(?!\w|[.,]\d|[\s,]*(?:or\s+)?(?:{labels})\b)"
        return re.compile(rf"[\s#*_`-]*{re.escape(words)}{colon}[\s*_`]*({labels}){alone}")


def fence(texts: Mapping[str, str]) -> str:
    """A mark that no text contains. It is a hash over all texts, so no text can be written to contain it."""
    joined = "\0".join(texts[name] for name in sorted(texts))
    mark = hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    while mark in joined:  # too improbable to happen outside a test
        mark = hashlib.sha256(mark.encode()).hexdigest()[:12]
    return mark


def path(name: str) -> Path:
    """The file of a template.

    Raises:
        RecipeError: there is no template of that name.
    """
    files = {file.stem: file for file in sorted(FOLDER.glob("*.toml"))}
    if name not in files:
        hint = did_you_mean(name, files)
        raise RecipeError(f"no judge template '{name}'{hint}; expected one of {', '.join(files)} (in {FOLDER})")
    return files[name]


def load(name: str) -> Template:
    """Read and check a template.

    Raises:
        RecipeError: there is no template of that name, or its file is not valid.
    """
    try:
        return Template.model_validate(tomllib.loads(path(name).read_text()))
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path(name)}: expected a judge template, found a file that does not validate: {error}") from error


def digest(name: str) -> str:
    """The hash of a template's file, comments included. It enters the key of every artifact that was judged with it."""
    return hashlib.sha256(path(name).read_bytes()).hexdigest()
