"""A run's folder on disk: settings, weights, the state to resume from."""
