from __future__ import annotations

from collections.abc import Callable

import pytest

from data.errors import RecipeError
from data.store.campaign import Campaign
from tests.micro import micro


def test_rounds_get_room_where_answers_are_cut(run_micro: Callable[..., Campaign]) -> None:
    # Most of what is sampled is cut at 4 and 8 tokens: twice as many, then the limit; held-out keeps its window of 48.
    room = "generate.lengthen={above=0.3, factor=2.0, limit=12}"
    small = ("evaluate.max_tokens=48", "evaluate.samples=0")
    campaign = run_micro("tiny_raft", room, "generate.max_tokens=4", "rounds=3", *small)
    zero, *rounds = campaign.rounds()

    def tokens(label: str) -> list[int]:
        jobs = [campaign.store.manifest(made.artifacts[label].key)["job"] for made in rounds]
        return [job["settings"]["max_tokens"] for job in jobs]

    assert "truncated" not in zero.metrics
    assert all((made.metrics["truncated"].value or 0) > 0.3 for made in rounds[:2])
    assert rounds[0].metrics["truncated"].n == 32 * 4
    assert tokens("generate") == [4, 8, 12]
    assert tokens("evaluate/greedy") == [48] * 3


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["generate.lengthen={limit=8}"], "below max_tokens"),
        (["generate.engine=recorded", "generate.path=x", "generate.lengthen={limit=64}"], "no such samples"),
    ],
)
def test_room_that_makes_no_sense_is_refused(sets: list[str], says: str) -> None:
    # Refused: a limit below the window, and lengthening of recorded completions, which no engine samples.
    with pytest.raises(RecipeError, match=says):
        micro("tiny_raft", *sets)
