"""Judge templates in MLflow's prompt registry: a new version whenever the text of one that a campaign uses is new."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data.recipe import templates
from data.store.campaign import Campaign

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREFIX = "ratchet-judge-"


def mirror_templates(client: MlflowClient, campaign: Campaign) -> None:
    """Register what MLflow lacks; a template whose newest version carries the file's hash is there already.

    MLflow writes places as our templates do, so the text goes there as it is.
    """
    for name in used(campaign):
        digest = templates.digest(name)
        known = client.load_prompt(f"prompts:/{PREFIX}{name}@latest", allow_missing=True, cache_ttl_seconds=0)
        if known is None or known.tags.get("digest") != digest:
            template = templates.load(name)
            client.register_prompt(PREFIX + name, template.text, template.about, {"digest": digest})


def used(campaign: Campaign) -> list[str]:
    """The templates that the judges of any round are asked with."""
    recipe = campaign.recipe
    rounds = {0, *(entry.round for entry in recipe.at)}
    names = {score.settings.get("template") for number in rounds for score in recipe.at_round(number).score}
    return sorted(name for name in names if isinstance(name, str))
