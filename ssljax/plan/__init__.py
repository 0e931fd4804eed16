"""Plans: a run's step compiled for a machine that is not there, and what it would need."""
