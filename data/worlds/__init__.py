"""Built-in tasks that generate their own prompts and check their own answers."""
