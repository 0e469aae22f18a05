"""The artifact store, and what stands on it: campaigns, sweeps, lineage, garbage collection."""
