"""Rows: the Parquet tables, and how users' files become prompts and completions."""
