"""The released modules of ReferDINO, on transformers' GroundingDINO.

Liang et al., "ReferDINO: Referring Video Object Segmentation with Visual Grounding Foundations", ICCV 2025; code:
github.com/iSEE-Laboratory/ReferDINO (9a4cda1), whose evaluation these modules equal.
"""

from rvos_cache.trackers.referdino.alignment import align
from rvos_cache.trackers.referdino.head import HeadSizes, ReferDinoHead
from rvos_cache.trackers.referdino.masks import image_masks, upsampled
from rvos_cache.trackers.referdino.names import check_not_merged, check_released, hf_state
from rvos_cache.trackers.referdino.pruning import PrunedLayer, prune_decoder

__all__ = [
    "HeadSizes", "PrunedLayer", "ReferDinoHead", "align", "check_not_merged", "check_released", "hf_state", "image_masks",
    "prune_decoder", "upsampled",
]  # fmt: skip
