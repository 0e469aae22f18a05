"""The artifact store, and what is built on it: campaigns, sweeps, lineage, garbage collection."""
