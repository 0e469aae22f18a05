"""The verbs (one file per stage) and the shelves of parts (one file per family). Imports `data` only."""
