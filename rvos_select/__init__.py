"""Stage two: train light selection modules from the caches, select tracks, merge, evaluate, show."""
