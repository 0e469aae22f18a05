"""How a stage runs: the key of its artifact, its process, its fingerprint, its parts."""
