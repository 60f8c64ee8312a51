"""SSA's matching costs and losses, under the names by which they are called from outside; see `rvos_select.selectors.ssa.losses`."""

from __future__ import annotations

from rvos_select.selectors.ssa.losses import ClipOutput as Found
from rvos_select.selectors.ssa.losses import costs, losses

__all__ = ["Found", "costs", "losses"]
