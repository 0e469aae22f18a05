"""Completions: sampled by an engine, pooled with others, or imported from a file."""
