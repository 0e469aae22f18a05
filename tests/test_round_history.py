"""What a round asks of earlier rounds: checkpoints by role, artifacts by label, the round that measured a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from data import labels
from data.store.campaign import Ref, Round, Verdict
from data.store.store import Store
from flows.round.history import History


def ref(name: str) -> Ref:
    return Ref(key=f"key of {name}", digest=f"digest of {name}")


def finished(number: int, checkpoint: str, head: str, champion: str, **artifacts: str) -> Round:
    return Round(
        round=number,
        head_before=ref("base"),
        checkpoint=ref(checkpoint),
        head=ref(head),
        champion=ref(champion),
        artifacts={label.replace("__", "/"): ref(name) for label, name in artifacts.items()},
        metrics={},
        facts={},
        verdict=Verdict(decision="hold", reason="by hand"),
        versions={},
        seconds=1.0,
    )


@pytest.fixture
def history(tmp_path: Path) -> History:
    """Round 1 promoted, round 2 was rolled back, round 3 trained nothing and measured the head again."""
    rounds = (
        finished(0, "base", "base", "base", prepare="prompts", bias="ledger 0"),
        finished(1, "one", "one", "one", generate="samples 1", bias="ledger 1", probe__observed="observed 1"),
        finished(2, "two", "one", "one", generate="samples 2", probe__observed="observed 2"),
        finished(3, "one", "one", "one", generate="samples 3"),
    )
    return History(Store(tmp_path / "store"), rounds)


def test_roles_are_those_of_the_last_round(history: History) -> None:
    # after a roll-back `previous` is the head, not the checkpoint of the last training
    assert history.checkpoints_by_role == {"previous": ref("one"), "base": ref("base"), "best": ref("one")}
    assert History(history.store, history.rounds[:1]).checkpoints_by_role["previous"] == ref("base")


def test_a_checkpoint_is_looked_up_in_the_latest_round_that_measured_it(history: History) -> None:
    # round 3 measured checkpoint one again; only round 1 observed it on the probe
    assert history.measured("digest of one").round == 3
    assert history.measured("digest of one", labels.probe().observed).round == 1
    assert history.measured("digest of two").round == 2
    with pytest.raises(LookupError, match="no finished round measured checkpoint digest of t"):
        history.measured("digest of three")


def test_artifacts_are_found_by_label(history: History) -> None:
    # rounds without the artifact are passed over, the earliest comes first
    assert [r.round for r in history.with_labels(labels.GENERATE)] == [1, 2, 3]
    assert [r.round for r in history.with_labels(labels.GENERATE, labels.BIAS)] == [1]
    assert history.of_first(labels.PREPARE).digest == "digest of prompts"


def test_a_lost_artifact_is_loaded_as_absent(history: History) -> None:
    # the stage that needs it makes it again, or says which one is gone
    lost = history.load(ref("one"))
    assert (lost.key, lost.digest, lost.absent) == ("key of one", "digest of one", "gone")
