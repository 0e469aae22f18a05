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

    The names are those in `mlflow.server.constants`. That package is not imported here: it makes a Flask application, and vLLM
    cannot start in a process that has one. MLflow's job runner is switched off, since nothing here uses it.
    """
    return {
        "_MLFLOW_SERVER_FILE_STORE": uri,
        "_MLFLOW_SERVER_REGISTRY_STORE": uri,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(home / "mlartifacts"),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
