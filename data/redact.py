"""Secrets are kept out of what Ratchet prints and records: passwords in addresses, and the values of secret variables."""

from __future__ import annotations

import os
import re

# environment variables that hold a secret, by their last word: OPENAI_API_KEY, HF_TOKEN, MLFLOW_TRACKING_PASSWORD, ...
SECRET_NAME = re.compile(r"(^|_)(KEY|TOKEN|PASSWORD|SECRET|CREDENTIALS|AUTH_STRING)$", re.IGNORECASE)
IN_ADDRESS = re.compile(r"(?<=://)[^/@\s'\"]+@")  # user:password@
SHORTEST = 8  # characters; a shorter value is no secret, and may be a word of the text
HIDDEN = "***"


def redacted(text: str) -> str:
    """The text with every password in an address, and every value of a secret variable, replaced by `***`."""
    for value in secret_values():
        text = text.replace(value, HIDDEN)
    return IN_ADDRESS.sub(f"{HIDDEN}@", text)


def secret_values() -> list[str]:
    """The secrets in this process's environment, the longest first. `user:password` is one, and its password too."""
    found = {value.strip() for name, value in os.environ.items() if SECRET_NAME.search(name)}
    found |= {value.partition(":")[2] for value in found}
    return sorted((value for value in found if len(value) >= SHORTEST), key=len, reverse=True)
