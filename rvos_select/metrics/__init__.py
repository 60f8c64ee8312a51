"""Scores of masks: J (region), F (boundary), and their means over frames, expressions and kinds."""

from rvos_select.metrics.boundary import f
from rvos_select.metrics.region import j
from rvos_select.metrics.scores import Scores

__all__ = ["Scores", "f", "j"]
