"""Campaigns in MLflow. The only package that imports mlflow; it imports `data` and nothing else of Ratchet."""
