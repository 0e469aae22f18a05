"""A recorded run: outputs may only change together with a VERSION. `python -m tests.test_golden` records it anew."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from data.store.campaign import Campaign
from data.store.store import canonical, sha256_text

GOLDEN = Path(__file__).parent / "golden.json"
EXACT = ("prepare", "draw")  # no arithmetic of a processor in them: equal everywhere
LIBRARIES = ("torch", "transformers", "tokenizers", "trl", "accelerate", "numpy", "scipy", "pyarrow")


def processor() -> str:
    """What decides which kernels run: the processor's model and its instruction sets."""
    wanted = ("model name", "cpu family", "model", "stepping", "flags")
    lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    known = {name.strip(): value.strip() for name, value in lines}
    return sha256_text(canonical({name: known.get(name) for name in wanted}))[:16]


def record(home: Path) -> dict[str, Any]:
    from flows.service import environment
    from tests.micro import micro

    environment.prepare(home)
    from flows.round.improve import improve

    stages: dict[str, Any] = {}
    for source in ("tiny_raft", "tiny_dpo"):
        campaign = Campaign.start(home, source, micro(source, "rounds=1", "probe.samples=2", "probe.baseline=1"))
        improve.fn(source, str(home))
        for finished in campaign.rounds():
            for label, ref in finished.artifacts.items():
                job = campaign.store.manifest(ref.key)["job"]
                stages[f"{source} {finished.round} {label}"] = [job["stage"], job["version"], ref.digest]
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"processor": processor(), "python": sys.version.split()[0], "versions": versions, "stages": stages}


def test_outputs_change_only_with_a_version(home: Path) -> None:
    # Claim: whoever changes what a stage writes must raise its VERSION; on another processor only exact stages are compared.
    known, now = json.loads(GOLDEN.read_text()), record(home)
    same_machine = all(known[key] == now[key] for key in ("processor", "versions"))
    assert known["stages"].keys() == now["stages"].keys()
    for label, (stage, version, digest) in now["stages"].items():
        if known["stages"][label][1] == version and (same_machine or stage in EXACT):
            assert digest == known["stages"][label][2], (
                f"{label} changed, VERSION of tasks/{stage}.py did not: raise it, record anew"
            )
    raised = [label for label, (_, version, _) in now["stages"].items() if known["stages"][label][1] != version]
    assert not raised, f"VERSION raised for {raised}: record the run anew with python -m tests.test_golden"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        GOLDEN.write_text(json.dumps(record(Path(place)), indent=1) + "\n")
