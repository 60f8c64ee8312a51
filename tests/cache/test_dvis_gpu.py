"""DVIS++ on a GPU against the CPU; skipped where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_dvis import SMALL, shared_checkpoint
from tiny_sam2 import without_gpu

from rvos_cache.contracts.scene import make_scene
from rvos_cache.extraction import extract_video
from rvos_cache.trackers.dvis import DvisSettings, DvisTracker
from rvos_cache.types import TrackSet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def extract(**settings: Any) -> tuple[Any, str]:
    video, truth = make_scene(19)
    dvis = DvisTracker(DvisSettings(checkpoint=shared_checkpoint(), keep_raw=True, **SMALL, **settings))
    return extract_video(dvis, video, (), truth), dvis.segmenter.device.type


def presence_error(one: TrackSet, other: TrackSet) -> float:
    """The largest difference of Σ(p - 1/2) over a mask's pixels p, per pixel of both masks together.

    Presence itself, the mean of p, jumps: some of these masks have twenty pixels of p = 0.94, and a pixel whose p is 1/2 but for the
    rounding of TF32 changes it by 0.02. This sum does not, and as a p moves by at most a quarter of what its logit does, 0.05 allows
    for 0.2 of a logit; rounding all convolutions' inputs to TF32 on a CPU gives 0.007.
    """
    masks = one.masks.dense(), other.masks.dense()
    one_sum, other_sum = (
        (tracks.presence.astype(np.float64) - 0.5) * own.sum((2, 3)) for tracks, own in zip((one, other), masks)
    )
    pixels = (masks[0] | masks[1]).sum((2, 3)).clip(min=1)
    return float((np.abs(one_sum - other_sum) / pixels).max())


@pytest.mark.parametrize("generator", ["offline", "frames"])
def test_tracks_and_measurements_are_those_of_the_cpu(generator: str) -> None:
    record, device = extract(generator=generator)
    with without_gpu():
        expected, other = extract(generator=generator)
    assert (device, other) == ("cuda", "cpu")
    assert np.array_equal(record.tracks.features["query"], expected.tracks.features["query"])
    assert (record.tracks.masks.dense() != expected.tracks.masks.dense()).mean() < 0.01
    assert presence_error(record.tracks, expected.tracks) < 0.05
    pairs = [(record.tracks.tokens, expected.tracks.tokens)]
    pairs += [(record.tracks.features[name], value) for name, value in expected.tracks.features.items()]
    pairs += [(record.measurements[name], value) for name, value in expected.measurements.items()]
    for value, wanted in pairs:
        scale = max(1.0, float(np.abs(wanted.astype(np.float64)).max()))
        assert np.abs(value.astype(np.float64) - wanted.astype(np.float64)).max() < 0.02 * scale
