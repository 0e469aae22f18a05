"""Ctrl-C and SIGTERM end the command line with one line and exit code 130, from its first moment on.

Importing the commands takes a second. So this file imports next to nothing, and flows/cli.py imports it first.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

CODE = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def while_importing() -> None:
    """End at once: nothing is written yet, and an exception could be lost inside an import."""
    for number in SIGNALS:
        signal.signal(number, _end)


def in_commands() -> None:
    """End by SystemExit, so that files are closed and locks freed. A second signal does not wait for that."""
    for number in SIGNALS:
        signal.signal(number, _unwind)


def say(text: str = "Interrupted. The same command can be run again.") -> None:
    """Write a line to stderr, past all buffers: the signal may have come in the middle of another write."""
    os.write(2, f"{text}\n".encode())


def _end(number: int, frame: FrameType | None) -> None:
    say()
    os._exit(CODE)


def _unwind(number: int, frame: FrameType | None) -> None:
    for again in SIGNALS:
        signal.signal(again, lambda *_: os._exit(CODE))
    say()
    raise SystemExit(CODE)
