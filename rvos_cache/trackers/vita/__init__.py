"""VITA, frozen: Mask2Former of transformers, its video head, and what a cache keeps of them."""

from rvos_cache.trackers.vita.geometry import FrameGeometry
from rvos_cache.trackers.vita.head import HeadSizes, VideoQueries, VitaHead
from rvos_cache.trackers.vita.segmenter import load_head
from rvos_cache.trackers.vita.settings import VitaSettings
from rvos_cache.trackers.vita.tracker import VitaTracker

__all__ = ["FrameGeometry", "HeadSizes", "VideoQueries", "VitaHead", "VitaSettings", "VitaTracker", "load_head"]
