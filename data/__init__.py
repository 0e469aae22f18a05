"""The nouns: recipes, tables, prompts, artifacts, campaigns. It imports nothing of ours; all other rooms import it."""
