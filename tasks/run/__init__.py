"""How a stage runs: its artifact's key, its process, its parts."""
