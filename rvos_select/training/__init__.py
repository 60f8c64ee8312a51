"""Training runs: the loop, its optimiser, validation, records."""
