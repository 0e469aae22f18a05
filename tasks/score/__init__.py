"""What a completion is worth: scorers, the verifiers behind them, and the combined reward."""
