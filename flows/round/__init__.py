"""The order of the stages in a round, and of the rounds in a campaign."""
