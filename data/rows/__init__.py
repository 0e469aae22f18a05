"""Rows: the schemas of the Parquet tables, and how prompts and completions are read from users' files."""
