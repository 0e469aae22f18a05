"""Scores of completions: scorers, the verifiers among them, and the reward that combines their scores."""
