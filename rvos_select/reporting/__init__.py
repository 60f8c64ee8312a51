"""Static HTML pages with scores, curves and pictures."""

from rvos_select.reporting.page import report

__all__ = ["report"]
