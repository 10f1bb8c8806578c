"""Training: optimisers, the compiled loop, and the folder of a run."""
