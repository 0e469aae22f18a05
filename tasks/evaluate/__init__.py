"""How good a checkpoint, a pool of completions or a judge is."""
