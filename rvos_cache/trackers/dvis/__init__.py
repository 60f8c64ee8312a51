"""The DVIS++ tracker: a frozen Mask2Former, the frozen referring tracker and temporal refiner, and the tracks they make.

Zhang et al., "DVIS++: Improved Decoupled Framework for Universal Video Segmentation", 2023; code: github.com/zhang-tao-whu/DVIS_Plus.
"""

from rvos_cache.trackers.dvis.adapter import VitAdapter
from rvos_cache.trackers.dvis.head import DvisHead, track_scores
from rvos_cache.trackers.dvis.queries import ReidQueries
from rvos_cache.trackers.dvis.referring import ReferringTracker
from rvos_cache.trackers.dvis.refiner import TemporalRefiner
from rvos_cache.trackers.dvis.settings import DvisSettings
from rvos_cache.trackers.dvis.tracker import DvisTracker

__all__ = [
    "DvisHead",
    "DvisSettings",
    "DvisTracker",
    "ReferringTracker",
    "ReidQueries",
    "TemporalRefiner",
    "VitAdapter",
    "track_scores",
]
