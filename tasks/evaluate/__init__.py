"""Measuring a checkpoint, a pool of completions or a judge."""
