"""The nouns: tables, artifacts, recipes, campaigns, prompts. Imports nothing of ours; everything else imports it."""
