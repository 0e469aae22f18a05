"""MLflow's own pages for a home: its application, and what the application reads from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def application() -> Any:
    """MLflow's ASGI application, which shows the home that `environment` names. It asks for no password."""
    from mlflow.server.fastapi_app import app

    return app


def environment(home: Path, uri: str) -> dict[str, str]:
    """What `mlflow server --backend-store-uri URI` hands to the process that answers, as environment variables.

    MLflow's job runner is switched off, since nothing here uses it.
    """
    from mlflow.server import constants

    return {
        constants.BACKEND_STORE_URI_ENV_VAR: uri,
        constants.REGISTRY_STORE_URI_ENV_VAR: uri,
        constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
        constants.ARTIFACTS_DESTINATION_ENV_VAR: str(home / "mlartifacts"),
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
