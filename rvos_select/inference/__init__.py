"""Selectors on videos: scores of every candidate, from caches (`predict`) or from a video of the user's own (`ask`)."""
