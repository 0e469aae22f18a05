"""Checkpoints: load, save, import, average, and log-probabilities."""
