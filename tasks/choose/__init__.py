"""What to train on: selectors, pairers, the mitigations that correct them, and facts about the choice."""
