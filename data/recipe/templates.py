"""Judge templates: the words a judge is asked with and the labels it may answer, one TOML file each in `data/judges/`.

A template's text holds `{{prompt}}` and either `{{completion}}` or, to compare two, `{{first}}` and `{{second}}`; `{{fence}}`
stands for a mark that none of them contains. The judge answers `lead` and one of `labels`, whose worth lies between 0 and 1.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from data.errors import RecipeError, did_you_mean

FOLDER = Path(__file__).parents[1] / "judges"
PLACE = re.compile(r"\{\{(\w+)\}\}")
PLACES = ({"prompt", "completion"}, {"prompt", "first", "second"})


class Template(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str
    lead: str = Field(min_length=1, description="what stands before the label, e.g. 'Score:'")
    text: str
    labels: dict[str, float] = Field(min_length=2, description="what a judge may answer, and what that is worth")

    @field_validator("labels")
    @classmethod
    def _worth(cls, labels: dict[str, float]) -> dict[str, float]:
        if not all(0 <= worth <= 1 for worth in labels.values()):
            raise ValueError(f"each label is worth something between 0 and 1, found {labels}")
        return labels

    @model_validator(mode="after")
    def _places(self) -> Template:
        found = set(PLACE.findall(self.text))
        if found - {"fence"} not in PLACES:
            raise ValueError(f"text has places for prompt and completion, or prompt, first and second; found {sorted(found)}")
        return self

    @property
    def compares(self) -> bool:
        """Whether it asks which of two is better, rather than how good one is."""
        return "{{second}}" in self.text

    def fill(self, texts: Mapping[str, str]) -> str:
        """The question to the judge. Every place is filled once, so that a text may hold `{{prompt}}` and stay what it is."""
        given = {**texts, "fence": fence(texts)}
        return PLACE.sub(lambda place: given[place[1]], self.text).strip()

    def read(self, answer: str) -> float | None:
        """What the judge's answer is worth, None where it cannot be read.

        The verdict is the answer's last line, so that a line quoted from the judged text on the way is not taken for one: the
        lead and one whole label, e.g. "Score: 4" or "**Score:** 4/5"; not "Score: 4.5", "Score: 3 or 4" or "> Score: 4".
        """
        lines = answer.strip().splitlines()
        found = self._verdict().match(lines[-1]) if lines else None
        return self.labels[found[1]] if found else None

    def _verdict(self) -> re.Pattern[str]:
        words, colon = self.lead.rstrip(": "), r"[\s*_`]*:" if ":" in self.lead else ""
        labels = "|".join(re.escape(label) for label in sorted(self.labels, key=len, reverse=True))
        alone = rf"(?!\w|[.,]\d|[\s,]*(?:or\s+)?(?:{labels})\b)"
        return re.compile(rf"[\s#*_`-]*{re.escape(words)}{colon}[\s*_`]*({labels}){alone}")


def fence(texts: Mapping[str, str]) -> str:
    """A mark that no text contains: a hash over all of them, so that none can be written to hold it."""
    together = "\0".join(texts[name] for name in sorted(texts))
    mark = hashlib.sha256(together.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    while mark in together:  # so improbable that only a test could see it
        mark = hashlib.sha256(mark.encode()).hexdigest()[:12]
    return mark


def path(name: str) -> Path:
    """The file of a template.

    Raises:
        RecipeError: there is none of that name.
    """
    known = {file.stem: file for file in sorted(FOLDER.glob("*.toml"))}
    if name not in known:
        raise RecipeError(f"no judge template '{name}'{did_you_mean(name, known)}; known: {', '.join(known)} (in {FOLDER})")
    return known[name]


def load(name: str) -> Template:
    """Read and check a template.

    Raises:
        RecipeError: no such template, or its file is not one.
    """
    try:
        return Template.model_validate(tomllib.loads(path(name).read_text()))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise RecipeError(f"{path(name)}: expected a judge template: {error}") from error


def digest(name: str) -> str:
    """The hash of a template's file: what enters the key of a verdict given with it."""
    return hashlib.sha256(path(name).read_bytes()).hexdigest()
