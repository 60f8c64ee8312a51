"""Metrics of masks: J (region), F (boundary), IoU, average precision, and their combination over frames and expressions.

Nothing here reads a file, a cache or a dataset.
"""

from rvos_select.metrics.boundary import f
from rvos_select.metrics.region import j
from rvos_select.metrics.scores import ExpressionScores
from rvos_select.metrics.table import METRICS

__all__ = ["METRICS", "ExpressionScores", "f", "j"]
