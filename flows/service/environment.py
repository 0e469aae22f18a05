"""Environment of a run, set before Prefect, MLflow or Hugging Face are imported: state below the home, no telemetry."""

from __future__ import annotations

import os
import tomllib
import warnings
from pathlib import Path

from data.errors import HomeError

CHECKOUT = Path(__file__).parents[2]
DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",  # nothing is downloaded by surprise; set it to 0 to allow it
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # 20 by default; a busy machine needs more on a fresh database
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",  # the bars are ours
    "TRL_EXPERIMENTAL_SILENCE": "1",  # ORPO and CPO live there; the versions are pinned
    "VLLM_NO_USAGE_STATS": "1",
}


def ratchet_version() -> str:
    """Ratchet's own version: that of pyproject.toml in this checkout, since it runs from there and is not installed."""
    with (CHECKOUT / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def home_of(given: Path | None) -> Path:
    """`--home`, else RATCHET_HOME, else `runs/` in the checkout."""
    if given is not None:
        return given.absolute()
    named = os.environ.get("RATCHET_HOME")
    return Path(named).absolute() if named else CHECKOUT / "runs"


def prepare(home: Path) -> None:
    """Set what is not set, and create the home.

    Raises:
        HomeError: the home cannot be written.
    """
    prefect = home / "prefect"
    places = {
        "PREFECT_HOME": str(prefect),
        "PREFECT_LOCAL_STORAGE_PATH": str(prefect / "storage"),
        "PREFECT_MEMO_STORE_PATH": str(prefect / "memo_store.toml"),
        "HF_DATASETS_CACHE": str(home / "datasets"),
    }
    # Without a GPU one thread is fastest for small models on shared cores (two can be 10x slower), and makes runs repeatable.
    threads = {} if Path("/dev/nvidiactl").exists() else {"OMP_NUM_THREADS": "1"}
    try:
        prefect.mkdir(parents=True, exist_ok=True)
        probe = home / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise HomeError(f"expected a writable home, cannot write {home}: {error.strerror}; pass another --home") from error
    for name, value in {**DEFAULTS, **places, **threads}.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|torch")
