"""Ctrl-C and SIGTERM while the command line starts: one line and exit code 130, also in the midst of an import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The command line as the launcher starts it. An import of it says "here" and then takes its time.
SLOW = """
import sys, time
_, slow, *arguments = sys.argv
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == slow:
            print("here", flush=True)
            time.sleep(30)
sys.meta_path.insert(0, Slow())
from flows import cli
sys.argv = ["ratchet", *arguments]
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("typer", ["recipes"]),  # the first large library
        ("flows.commands.run", ["runs"]),
        ("rich.progress", ["verify", "--home", "."]),  # inside a command
    ],
)
def test_a_signal_in_the_midst_of_an_import_is_one_line(
    module: str, arguments: list[str], number: signal.Signals, tmp_path: Path
) -> None:
    # Claim: wherever the first second is spent, the end is one line and 130, as documented.
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SLOW, module, *arguments]
    (tmp_path / "store").mkdir()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        began = time.monotonic()
        process.send_signal(number)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert error == "Interrupted. The same command can be run again.\n"
    assert time.monotonic() - began < 10


def test_a_signal_in_a_command_closes_what_is_open(tmp_path: Path) -> None:
    # Claim: inside a command files are closed and locks freed: `finally` runs. A second signal does not wait for that.
    code = (
        "import signal, sys, time; from flows import interrupt; interrupt.in_commands()\n"
        "try:\n print('here', flush=True); time.sleep(30)\n"
        "finally:\n print('closed', flush=True); time.sleep(float(sys.argv[1]))"
    )
    for wait in (0, 30):
        command = [sys.executable, "-c", code, str(wait)]
        with subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n"
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "closed\n"
            if wait:
                process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 130
