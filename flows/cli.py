"""The command line: what a person sees of errors and signals. The commands are in flows/commands/all_commands.py."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from flows import interrupt

if TYPE_CHECKING:
    from data.errors import RatchetError


def entry() -> None:
    """Run the command line. Every RatchetError is printed as one message and gives the exit code.

    So is what the system refuses: a full disk, a limit of `ulimit`, a file that may not be read. All else is a defect of
    Ratchet and keeps its traceback.
    """
    try:
        from flows.commands.all_commands import app

        app(prog_name="ratchet")
    except Exception as error:
        told = _in_words(error)
        if told is None:
            raise
        _tell(told)
        sys.exit(told.exit_code)


def _in_words(error: Exception) -> RatchetError | None:
    from data.errors import RatchetError
    from data.limits import exhausted, refused

    return error if isinstance(error, RatchetError) else exhausted(error, "ratchet") or refused(error)


def _tell(error: RatchetError) -> None:
    from flows.terminal import err, line

    err.print(line((type(error).__name__, "red"), f": {error}"), soft_wrap=True)


def main() -> None:
    """The command line of a process of its own."""
    interrupt.while_importing()
    with contextlib.suppress(Exception):  # `entry` meets the error again, and tells it
        import flows.commands.all_commands  # noqa: F401

    interrupt.in_commands()
    entry()


if __name__ == "__main__":
    main()
