"""The bias ledger: features of completions, their drift between rounds, and the alarm rule."""
