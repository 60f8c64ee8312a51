"""Static pages with scores, curves and pictures."""

from rvos_select.report.page import report

__all__ = ["report"]
