"""Built-in tasks, which generate their own prompts and answers."""
