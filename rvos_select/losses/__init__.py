"""Losses of selectors: over candidate tracks, over masks at sampled points, and the matching of queries and objects."""
