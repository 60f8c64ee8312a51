"""Checkpoints of released systems as runs."""
