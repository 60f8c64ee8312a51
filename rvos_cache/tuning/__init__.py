"""Training of a tracker's own model on the videos of a dataset: `rvos-cache tune-referdino`."""

from rvos_cache.tuning.run import export, tune

__all__ = ["export", "tune"]
