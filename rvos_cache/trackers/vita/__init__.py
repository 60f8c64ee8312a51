"""The VITA tracker: a frozen Mask2Former (transformers), the frozen VITA head, and the features stored in a cache.

Heo et al., "VITA: Video Instance Segmentation via Object Token Association", NeurIPS 2022; code: github.com/sukjunhwang/VITA.
"""

from rvos_cache.trackers.vita.checkpoint import load_head
from rvos_cache.trackers.vita.geometry import vita_geometry
from rvos_cache.trackers.vita.head import HeadSizes, VideoQueries, VitaHead
from rvos_cache.trackers.vita.settings import VitaSettings
from rvos_cache.trackers.vita.tracker import VitaTracker

__all__ = ["HeadSizes", "VideoQueries", "VitaHead", "VitaSettings", "VitaTracker", "load_head", "vita_geometry"]
