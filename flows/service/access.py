"""How one gets into a home's servers (Prefect, MLflow): names of this machine, and a password that only the user can read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from data.errors import HomeError
from data.store.locks import locked

HOSTS = ("127.0.0.1", "localhost")  # the servers answer under these names only
ENTER = "/enter"  # the page of the printed links; what follows # in a link is never sent to a server
MLFLOW_CREDENTIALS = "RATCHET_MLFLOW_CREDENTIALS"  # user:password, an environment variable for flows/service/guard.py
USER = "ratchet"


def password(home: Path) -> str:
    """The password of this home, made at the first call.

    Raises:
        HomeError: others may read the file, it belongs to another user, or it holds no password.
    """
    file = home / "prefect" / "password"
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.with_suffix(".lock")):
        if not file.exists():
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as new:
                new.write(secrets.token_urlsafe(24))
    held, secret = file.stat(), file.read_text().strip()
    if held.st_mode & 0o077 or held.st_uid != os.getuid() or len(secret) < 20:
        raise HomeError(
            f"expected {file} to hold a password that only you can read, found mode {held.st_mode & 0o777:o} and "
            f"{len(secret)} characters; delete the file, and a new password is made"
        )
    return secret


def credentials(home: Path) -> str:
    """User and password as HTTP Basic authentication and Prefect's `..._AUTH_STRING` expect them."""
    return f"{USER}:{password(home)}"
