"""ReferDINO's matching and losses, which live tuning of the tracker has too: see `rvos_cache.trackers.referdino_losses`."""

from __future__ import annotations

from rvos_cache.trackers.referdino_losses import TERMS, Predicted, Truth, losses, match

__all__ = ["TERMS", "Predicted", "Truth", "losses", "match"]
