"""Training: SFT, preference losses, online losses and reward models."""
