"""The fault laboratory in minutes: every fault of `./ratchet bench faults` at a moment drawn with a fixed seed."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.store.campaign import Campaign
from data.store.store import Store
from tests import bench_faults, laboratory
from tests.laboratory import Calm, Home


@pytest.fixture(scope="module")
def calms() -> Iterator[list[Calm]]:
    """The campaigns that nobody disturbs."""
    laboratory.imported()
    with tempfile.TemporaryDirectory(prefix="ratchet-faults-") as place:
        yield [Calm(recipe).run(Path(place)) for recipe in bench_faults.RECIPES]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*bench_faults.KILLS, *bench_faults.OTHERS])
def test_nothing_is_lost_doubled_or_different_and_all_is_explained(name: str, calms: list[Calm]) -> None:
    # Claim: under each fault the campaign ends as the calm one, or refuses in one line and then, repaired, ends so.
    if name in bench_faults.DISKS and not bench_faults.may_mount():
        pytest.skip("this user may not mount a file system")
    for number in range(2 if name == "SIGKILL" else 1):
        trial = bench_faults.trial_of(name, random.Random(f"test/{name}/{number}"), calms)
        assert not trial.troubles, trial.what


@pytest.mark.slow
def test_the_laboratory_notices(calms: list[Calm], tmp_path: Path) -> None:
    # Claim: a home that lost a round, holds another digest, a damaged artifact or a doubled metric does not count as survived.
    calm = calms[0]
    home = calm.home_before(calm.moments[-1], tmp_path / "home")
    assert home.finish().code == 0
    assert home.troubles() == []
    assert troubles_after(home, "update tags set value = 'other' where key = 'ratchet.campaign' and rowid % 2") != []
    assert any("doubled" in found for found in troubles_after(home, DOUBLED))
    record = Campaign.open(home.path, "k").folder / "rounds" / "001.json"
    artifacts = json.loads(record.read_text())
    next(iter(artifacts["artifacts"].values()))["digest"] = "0"
    record.write_text(json.dumps(artifacts))
    key = Store(home.path / "store").keys()[0]
    next(path for path in (Store(home.path / "store").folder(key) / "payload").rglob("*") if path.is_file()).write_text("x")
    found = home.troubles()
    assert "different digests" in found
    assert any(line.startswith("damaged:") for line in found)


DOUBLED = """insert into metrics select key, value + 1, timestamp + 1, run_uuid, step, is_nan from metrics limit 3"""


def troubles_after(home: Home, change: str) -> list[str]:
    """The troubles after a change in MLflow's database, which is taken back."""
    import sqlite3

    database = home.path / "mlflow.db"
    sound = database.read_bytes()
    connection = sqlite3.connect(database)
    with connection:
        connection.execute(change)
    connection.close()
    found = home.troubles()
    database.write_bytes(sound)
    return found
