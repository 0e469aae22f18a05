"""Choosing what to train on: selectors, pairers, mitigations, and facts about the chosen data."""
