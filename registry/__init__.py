"""The memory: what MLflow knows about campaigns. The only room that imports mlflow; imports `data` only."""
