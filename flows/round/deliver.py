"""Deliveries to MLflow. An outage loses nothing: the Rounds on disk are the truth, and the next delivery completes MLflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from data.store.campaign import Campaign

T = TypeVar("T")


def deliver(send: Callable[[], T], tell: Callable[[str], None]) -> T | None:
    """What `send` returns. If MLflow does not answer or refuses: None, and `tell` gets a warning that says what to do."""
    from registry.client import MLflowUnreachable

    try:
        return send()
    except MLflowUnreachable as error:
        tell(f"warning: {error}")
        return None


def deliver_rounds(campaign: Campaign, tell: Callable[[str], None]) -> None:
    """Deliver the rounds that MLflow does not have yet."""
    from registry.sync import sync_campaign

    if deliver(lambda: sync_campaign(campaign), tell) is not None:
        campaign.mark_delivered()
