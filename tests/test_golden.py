"""A recorded run: outputs may only change together with a VERSION. `python -m tests.test_golden` records it anew.

Every artifact is compared: by its bytes where they are promised or happen to agree, else by numbers (tests/golden_numbers.py).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from data.store.campaign import Campaign
from data.store.store import canonical, sha256_text
from tests.golden_numbers import Number, differences, numbers

GOLDEN = Path(__file__).parent / "golden.json"
# Nothing that a processor rounds happens in these: with the recorded inputs they write the recorded bytes everywhere.
EXACT = ("prepare", "draw", "score", "reward", "select", "pair", "training_log")
CAMPAIGNS = {  # name -> recipe, settings
    "tiny_raft": ("tiny_raft",),
    "tiny_dpo": ("tiny_dpo",),  # TRL's own DPO
    "tiny_dpo_nll": ("tiny_dpo", "loss.terms={nll=1.0}"),  # the loss of tasks/train/losses.py
}
LIBRARIES = ("torch", "transformers", "tokenizers", "trl", "accelerate", "numpy", "scipy", "pyarrow")


@dataclass(frozen=True)
class Output:
    """An artifact of the run. Its numbers tell about its content where the digest differs."""

    stage: str
    version: int
    digest: str
    inputs: list[str]  # digests
    numbers: dict[str, Number]


def machine() -> dict[str, Any]:
    """What decides bytes: which kernels run, by the processor's model, its instruction sets and what torch makes of them."""
    import torch

    wanted = ("model name", "cpu family", "model", "stepping", "flags")
    lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    known = {name.strip(): value.strip() for name, value in lines}
    processor = sha256_text(canonical([{name: known.get(name) for name in wanted}, torch.backends.cpu.get_cpu_capability()]))
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"processor": processor[:16], "python": sys.version.split()[0], "versions": versions}


def run(home: Path, names: Iterable[str] = CAMPAIGNS) -> dict[str, Output]:
    """One round of each campaign: every artifact, by campaign, round and label."""
    from flows.service import environment
    from tests.micro import micro

    environment.prepare(home)
    from flows.round.improve import improve

    outputs: dict[str, Output] = {}
    for name in names:
        source, *sets = CAMPAIGNS[name]
        campaign = Campaign.start(home, name, micro(source, "rounds=1", "probe.samples=2", "probe.baseline=1", *sets))
        improve.fn(name, str(home))
        for finished in campaign.rounds():
            for label, ref in finished.artifacts.items():
                job, found = campaign.store.manifest(ref.key)["job"], campaign.store.find(ref.key)
                assert found is not None
                given = sorted(job["inputs"].values())
                outputs[f"{name} {finished.round} {label}"] = Output(
                    job["stage"], job["version"], ref.digest, given, numbers(found.path)
                )
    return outputs


def recorded(file: Path = GOLDEN) -> tuple[dict[str, Any], dict[str, Output]]:
    known = json.loads(file.read_text())
    return known["machine"], {label: Output(**fields) for label, fields in known["outputs"].items()}


def save(outputs: Mapping[str, Output], file: Path = GOLDEN) -> None:
    """A line per artifact, so that a diff shows which changed."""
    lines = [f"  {json.dumps(label)}: {json.dumps(asdict(output))}" for label, output in outputs.items()]
    joined = ",\n".join(lines)
    file.write_text(f'{{\n "machine": {json.dumps(machine())},\n "outputs": {{\n{joined}\n }}\n}}\n')


def bytes_promised(output: Output, known: Mapping[str, Output], before: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Everything on the machine of the record; elsewhere what an exact stage made of recorded inputs, in the same format."""
    if all(before[key] == here[key] for key in ("processor", "versions")):
        return True
    same_inputs = set(output.inputs) <= {other.digest for other in known.values()}
    return output.stage in EXACT and same_inputs and before["versions"]["pyarrow"] == here["versions"]["pyarrow"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden") / "home"


@pytest.fixture(scope="module")
def outputs(here: Path) -> dict[str, Output]:
    return run(here)


def test_outputs_change_only_with_a_version(outputs: dict[str, Output], capsys: pytest.CaptureFixture[str]) -> None:
    # Claim: whoever changes what a stage writes must raise its VERSION. Every artifact is compared, on every processor.
    (before, known), now = recorded(), machine()
    assert known.keys() == outputs.keys()
    raised = [label for label, output in outputs.items() if known[label].version != output.version]
    assert not raised, f"VERSION raised for {raised}: record the run anew with python -m tests.test_golden"
    by_bytes = {label for label, output in outputs.items() if output.digest == known[label].digest}
    by_numbers = {label for label in outputs.keys() - by_bytes if known[label].numbers}
    for label in outputs.keys() - by_bytes:
        stage = outputs[label].stage
        assert not bytes_promised(outputs[label], known, before, now), (
            f"{label} changed, VERSION of tasks/*/{stage}.py did not: raise it, record anew"
        )
    with capsys.disabled():
        where = "the recorded machine" if before == now else "another processor or other libraries than recorded"
        print(f"\ngolden run, on {where}: {len(by_bytes)} artifacts equal by bytes, {len(by_numbers)} compared by numbers")
    assert by_bytes | by_numbers == outputs.keys()
    off = {label: wrong for label in sorted(outputs) if (wrong := differences(outputs[label].numbers, known[label].numbers))}
    assert not off, f"changed more than another processor can, VERSION did not: {json.dumps(off, indent=1)}"


def test_every_artifact_has_numbers() -> None:
    # one without would go uncompared on another processor
    _, known = recorded()
    assert not [label for label, output in known.items() if not output.numbers]


@pytest.mark.minutes
def test_the_numbers_notice_a_doubled_loss(
    outputs: dict[str, Output], here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Adam ignores a constant factor of the loss, so the weights hardly change: the training log shows it
    from tasks.train import losses, train

    monkeypatch.setattr(losses, "pair_loss", lambda *args, plain=losses.pair_loss: 2 * plain(*args))
    monkeypatch.setattr(train, "VERSION", train.VERSION + 1)  # else the artifacts are found
    shutil.copytree(here / "store", tmp_path / "store")
    doubled, (_, known) = run(tmp_path, ["tiny_dpo_nll"]), recorded()
    off = {label: wrong for label, output in doubled.items() if (wrong := differences(output.numbers, known[label].numbers))}
    assert any(line.startswith("step mean|training|loss:") for line in off["tiny_dpo_nll 1 train"])
    assert "tiny_dpo_nll 0 base" not in off  # the world's first training has another loss


@pytest.mark.slow
def test_other_kernels_agree_in_numbers(tmp_path: Path) -> None:
    # Without AVX this processor rounds as another one would: most artifacts have other bytes, and all have the recorded
    # numbers.
    plainest = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    command = [sys.executable, "-m", "tests.test_golden", str(tmp_path / "other.json")]
    subprocess.run(command, check=True, cwd=GOLDEN.parents[1], env=os.environ | plainest | {"OMP_NUM_THREADS": "1"})
    (_, known), (_, others) = recorded(), recorded(tmp_path / "other.json")
    assert sum(others[label].digest != known[label].digest for label in known) > len(known) // 2
    assert not [line for label in known for line in differences(others[label].numbers, known[label].numbers)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        save(run(Path(folder)), Path(sys.argv[1]) if sys.argv[1:] else GOLDEN)
