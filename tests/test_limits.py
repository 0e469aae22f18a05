"""Limits of the machine: a full disk, `ulimit`, memory. Each is one line, whichever library met it."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data.errors import HomeError, LimitReached, ScorerFailed
from data.limits import exhausted, ran_out, refused

ROOT = Path(__file__).parent.parent


def in_a_process(code: str, before: Callable[[], None], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code with a limit, which the rest of the tests must not have."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, preexec_fn=before, capture_output=True, text=True, check=False)


def limit(which: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(which, (value, resource.getrlimit(which)[1]))


SAVES = {  # every library that writes something large, against a real limit of the system
    "safetensors": "from safetensors.torch import save_file; save_file({'w': torch.zeros(100_000)}, out)",
    "torch": "torch.save({'w': torch.zeros(100_000)}, out)",
    "pyarrow": "import pyarrow as pa, pyarrow.parquet as pq, numpy as np; "
    "pq.write_table(pa.table({'x': np.random.default_rng(0).random(100_000)}), out)",
    "python": "open(out, 'w').write('x' * 400_000)",
}
REPORT = """
import sys
import torch
from data.limits import ran_out
out = sys.argv[1]
for name, code in eval(sys.argv[2]).items():
    try:
        exec(code)
        print(name, "written")
    except BaseException as error:
        print(name, ran_out(error))
"""


def test_every_library_that_saves_is_understood(tmp_path: Path) -> None:
    # Claim: a file that may not grow further is recognised through safetensors, torch, pyarrow, SQLite and Python alike.
    done = in_a_process(REPORT, limit(resource.RLIMIT_FSIZE, 65536), tmp_path / "out", SAVES)
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert found.keys() == SAVES.keys(), done.stderr
    assert found.pop("torch") == "disk"  # its words are the same for every write that fails
    assert set(found.values()) == {"file size"}


def test_real_limits_of_memory_and_open_files_are_understood(tmp_path: Path) -> None:
    # Claim: torch on a CPU, Python and NumPy without memory, and a process without file handles, are recognised.
    code = (
        "import resource, torch, numpy\nfrom data.limits import ran_out\n"
        "def tried(f):\n try: f(); print('no error')\n except BaseException as e: print(ran_out(e))\n"
        "resource.setrlimit(resource.RLIMIT_AS, (12 << 30, -1))\n"
        "tried(lambda: torch.zeros(40 << 30)); tried(lambda: bytearray(40 << 30)); tried(lambda: numpy.zeros(40 << 30))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))\n"
        "kept = []\ntried(lambda: [kept.append(open('/dev/null')) for _ in range(32)])"
    )
    done = in_a_process(code, lambda: None)
    assert done.stdout.split("\n")[:4] == ["memory", "memory", "memory", "open files"], done.stderr


WORDS = {
    "SafetensorError: Error while serializing: I/O error: No space left on device (os error 28)": "disk",
    "[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0": "disk",
    "PytorchStreamWriter failed writing file data/0: file write failed": "disk",
    "(sqlite3.OperationalError) database or disk is full": "disk",
    "Disk quota exceeded": "disk",
    "CUDA out of memory. Tried to allocate 2.00 GiB": "memory",
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes": "memory",
    "can't start new thread": "processes",
    "Too many open files (os error 24)": "open files",
    "the loss is nan at step 3": None,
    "expected 3 rows, found 4": None,
}


@pytest.mark.parametrize("text", WORDS)
def test_an_error_is_known_by_the_systems_words(text: str) -> None:
    # Claim: whatever its type, and also as the cause of another error; other errors are left alone.
    assert ran_out(RuntimeError(text)) == WORDS[text]
    outer = ValueError("saving failed")
    outer.__cause__ = RuntimeError(text)
    assert ran_out(outer) == WORDS[text]
    assert ran_out(ExceptionGroup("several", [outer])) == WORDS[text]


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN]
)
def test_each_limit_says_what_to_do(number: int, tmp_path: Path) -> None:
    # Claim: one line with what was at work, what ran out and the remedy.
    told = exhausted(OSError(number, os.strerror(number)), "train", tmp_path)
    assert isinstance(told, HomeError | LimitReached)
    assert str(told).startswith("train: ")
    assert str(told).endswith("run the same command again")
    assert "free some" in str(told) or "raise the limit" in str(told)


def test_torchs_own_type_is_known_whatever_it_says() -> None:
    # Claim: a GPU without memory is recognised by its type.
    import torch

    assert ran_out(torch.OutOfMemoryError("tried to allocate 2.00 GiB")) == "memory"


def test_errors_of_ours_and_of_other_kinds_stay_as_they_are() -> None:
    # Claim: a message that quotes "out of memory" keeps its type, and a defect of ours keeps its traceback.
    assert exhausted(ScorerFailed("row 3: out of memory"), "score") is None
    assert exhausted(KeyError("x"), "score") is None
    assert refused(FileNotFoundError(errno.ENOENT, "No such file", "/x")) is None
    assert "expected to read and write /x, found: Permission denied" in str(
        refused(OSError(errno.EACCES, "Permission denied", "/x"))
    )


RUN = "import sys; from flows.cli import main; sys.argv = ['ratchet', *sys.argv[1:]]; main()"


@pytest.mark.parametrize(
    ("which", "value", "arguments"),
    [
        (resource.RLIMIT_FSIZE, 0, ("run", "tiny_raft")),  # nothing can be written, the first byte neither
        (resource.RLIMIT_AS, 120 << 20, ("check", "tiny_raft")),
    ],
    ids=["no writes", "memory"],
)
def test_a_command_under_a_limit_ends_with_one_line(which: int, value: int, arguments: tuple[str, ...], home: Path) -> None:
    # Claim: `ulimit` reached at the start of a command is one line with the remedy, not a traceback.
    done = in_a_process(RUN, limit(which, value), *arguments, "--home", home)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode in (1, 2), done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(("LimitReached: ", "HomeError: "))
    assert "ulimit" in lines[0] or "TMPDIR" in lines[0]


def test_a_home_that_may_not_be_read_is_one_line(
    home: Path, ratchet: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    # Claim: an error of the system that names a file becomes one line; here a file stands where a folder should.
    (home / "store").mkdir(parents=True)
    (home / "store" / "artifacts").write_text("")
    assert ratchet("verify", "--home", home) == 2
    assert "--home" in capsys.readouterr().err
