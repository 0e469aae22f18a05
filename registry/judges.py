"""Judge templates in MLflow's prompt registry: a template gets a new version when its text has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data.recipe import templates
from data.store.campaign import Campaign

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREFIX = "ratchet-judge-"


def mirror_templates(client: MlflowClient, campaign: Campaign) -> None:
    """Register the templates of a campaign, except those whose newest version has the file's hash.

    The text is registered as it is: MLflow has the same syntax for variables as our templates.
    """
    for name in used(campaign):
        digest = templates.digest(name)
        newest = client.load_prompt(f"prompts:/{PREFIX}{name}@latest", allow_missing=True, cache_ttl_seconds=0)
        if newest is None or newest.tags.get("digest") != digest:
            template = templates.load(name)
            client.register_prompt(PREFIX + name, template.text, template.about, {"digest": digest})


def used(campaign: Campaign) -> list[str]:
    """The templates of all judges, in any round."""
    recipe = campaign.recipe
    rounds = {0, *(entry.round for entry in recipe.at)}
    names = {score.settings.get("template") for number in rounds for score in recipe.at_round(number).score}
    return sorted(name for name in names if isinstance(name, str))
