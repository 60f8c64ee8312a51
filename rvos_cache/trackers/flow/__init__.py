"""The weights-free tracker: region proposals propagated by dense flow and an online appearance model, on the CPU."""

from rvos_cache.trackers.flow.settings import FlowSettings
from rvos_cache.trackers.flow.tracker import FlowTracker, working_step

__all__ = ["FlowSettings", "FlowTracker", "working_step"]
