"""Checkpoints: load, save, import and average them, and compute log-probabilities."""
