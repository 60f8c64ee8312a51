"""VITA on a GPU against the CPU; skipped where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_sam2 import without_gpu
from tiny_vita import SMALL, shared_checkpoint

from rvos_cache.contracts.scene import make_scene
from rvos_cache.trackers.vita import VitaSettings, VitaTracker

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def outputs() -> tuple[dict[str, NDArray[Any]], str]:
    """What does not depend on the order of the tracks, whose scores are nearly equal: that of all video queries, and the maps."""
    vita = VitaTracker(VitaSettings(checkpoint=shared_checkpoint(), profile="exact", **SMALL))
    features = vita.track(make_scene(19)[0], ()).features
    return {
        name: np.stack(list(features[name])) for name in ("q_v", "logits", "mask_embed", "f_mask")
    }, vita.segmenter.device.type


def test_video_queries_and_maps_are_those_of_the_cpu() -> None:
    """Up to the rounding of convolutions to TF32, which done on a CPU changes them by at most 0.006 of the largest value."""
    ours, device = outputs()
    with without_gpu():
        expected, other = outputs()
    assert (device, other) == ("cuda", "cpu")
    for name, wanted in expected.items():
        largest = max(1.0, float(np.abs(wanted.astype(np.float64)).max()))
        assert np.abs(ours[name].astype(np.float64) - wanted.astype(np.float64)).max() < 0.02 * largest, name
