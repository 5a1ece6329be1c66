"""Questions about the objective, answered by many short runs of a tiny model: see lab/README.md."""
