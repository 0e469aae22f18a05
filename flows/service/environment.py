"""Environment of a run, set before Prefect, MLflow or Hugging Face are imported: their files in the home, no telemetry."""

from __future__ import annotations

import os
import tomllib
import warnings
from pathlib import Path

from data.addresses import http_address
from data.errors import HomeError
from registry.client import tracking_uri

PREFECT_ADDRESS = "http://127.0.0.1:4200/api"  # an example, for messages
CHECKOUT = Path(__file__).parents[2]
DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",  # downloads only if the user sets it to 0
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # 20 by default; a busy machine needs more for a new database
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",  # the reporter shows progress
    "TRL_EXPERIMENTAL_SILENCE": "1",  # ORPO and CPO are in TRL's experimental part; the versions are pinned
    "VLLM_NO_USAGE_STATS": "1",
}


def ratchet_version() -> str:
    """The version in this checkout's pyproject.toml, since Ratchet runs from its checkout and is not installed."""
    with (CHECKOUT / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def home_of(option: Path | None) -> Path:
    """`--home`, else RATCHET_HOME, else `runs/` in the checkout."""
    if option is not None:
        return option.absolute()
    variable = os.environ.get("RATCHET_HOME")
    return Path(variable).absolute() if variable else CHECKOUT / "runs"


def prepare(home: Path) -> None:
    """Create the home, and set the variables that the user has not set.

    Raises:
        HomeError: the home cannot be written.
        EndpointError: PREFECT_API_URL or MLFLOW_TRACKING_URI holds no address.
    """
    if named := os.environ.get("PREFECT_API_URL"):
        http_address(named, "PREFECT_API_URL", PREFECT_ADDRESS)
    tracking_uri(home)
    prefect = home / "prefect"
    paths = {
        "PREFECT_HOME": str(prefect),
        "PREFECT_LOCAL_STORAGE_PATH": str(prefect / "storage"),
        "PREFECT_MEMO_STORE_PATH": str(prefect / "memo_store.toml"),
        "HF_DATASETS_CACHE": str(home / "datasets"),
    }
    # Without a GPU one thread is fastest for small models on shared cores: two can be 10 times slower. It also makes runs
    # repeatable.
    threads = {} if Path("/dev/nvidiactl").exists() else {"OMP_NUM_THREADS": "1"}
    try:
        prefect.mkdir(parents=True, exist_ok=True)
        probe = home / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise HomeError(f"expected a writable home, cannot write {home}: {error.strerror}; pass another --home") from error
    for name, value in {**DEFAULTS, **paths, **threads}.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|torch")
