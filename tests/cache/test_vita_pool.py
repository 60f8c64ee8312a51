"""VITA's caches for DeRVOS: pooled mask features and sums of soft masks, over the cells of the frame without the padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_vita import CHANNELS, SMALL, shared_checkpoint
from torch.nn import functional as F

from rvos_cache.contracts.scene import make_scene
from rvos_cache.extraction import extract, extract_video
from rvos_cache.media.geometry import FrameGeometry
from rvos_cache.store import TrackCache
from rvos_cache.trackers.mask2former.planning import OBJECTS
from rvos_cache.trackers.vita import VitaSettings, VitaTracker
from rvos_cache.trackers.vita.geometry import vita_geometry
from rvos_cache.trackers.vita.profiles import video_bytes

SIZE = (30, 63)
"""Of frames whose maps are padded."""
SCENE = "rvos_cache.contracts.scene:SceneDataset"


def tracker(**settings: Any) -> VitaTracker:
    return VitaTracker(VitaSettings(checkpoint=shared_checkpoint(), **SMALL, **settings))


def geometry(resized: tuple[int, int]) -> FrameGeometry:
    return FrameGeometry.stretched((10, 10), resized, mean=(0, 0, 0), deviation=(1, 1, 1))


def test_pooling_is_the_mean_of_areas_without_the_padding() -> None:
    """Of 16 x 16 cells torch's own pooling; of 10 x 16, of which a cell's half lies in each of two areas, by hand."""
    maps = torch.randn(3, 16, 16, 5, generator=torch.Generator().manual_seed(0))
    pooled = F.avg_pool2d(maps.permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1)
    torch.testing.assert_close(geometry((64, 64)).pool(maps, 4), pooled)
    part = geometry((40, 64))
    assert part.cells() == (16, 16) and part.inside() == (10, 16)
    weights = torch.zeros(4, 16)
    for i, cells in enumerate(([1, 1, 0.5], [0, 0, 0.5, 1, 1], [0, 0, 0, 0, 0, 1, 1, 0.5], [*[0] * 7, 0.5, 1, 1])):
        weights[i, : len(cells)] = torch.tensor(cells) / 2.5
    expected = torch.einsum("iy,tyxc->tixc", weights, maps).unflatten(2, (4, 4)).mean(3)
    torch.testing.assert_close(part.pool(maps, 4), expected)
    assert geometry((41, 61)).inside() == (11, 16)


def test_pooled_features_are_of_the_frame_alone() -> None:
    vita = tracker(profile="exact", pool=4)
    video = make_scene(3, size=SIZE)[0]
    tracks = vita.track(video, ())
    f_mask = torch.from_numpy(np.stack(list(tracks.features["f_mask"])))
    pooled, own = tracks.features["f_mask_pooled"], vita_geometry(SIZE, 64, 96)
    assert pooled.shape == (3, 4, 4, CHANNELS) and pooled.dtype == np.float16
    assert own.cells() == (16, 24) and own.inside() == (12, 24)
    f_mask[:, 12:] += 9
    np.testing.assert_array_equal(pooled, own.pool(f_mask, 4).numpy().astype(np.float16))


@pytest.mark.parametrize("profile", ["exact", "selection_only"])
def test_sums_are_those_of_the_mask_logits_in_the_frame(profile: str) -> None:
    vita = tracker(profile="exact", pool=4)
    video, truth = make_scene(3, size=SIZE)
    exact = vita.track(video, ())
    h, w = vita_geometry(video.size, 64, 96).inside()
    f_mask = torch.from_numpy(np.stack(list(exact.features["f_mask"])))[:, :h, :w].double()
    embed = torch.from_numpy(exact.features["mask_embed"][exact.features["query"]]).double()
    x = torch.einsum("nc,thwc->nthw", embed, f_mask)
    record = extract_video(tracker(profile=profile, pool=4), video, (), truth)
    sums = record.measurements
    # A square of 18 x 18 of 30 x 63 pixels, which are resized to 46 x 96; it is gone in the last frame.
    share = 18 * 18 / (30 * 63) * (46 * 96 / 16)
    np.testing.assert_allclose(sums["soft_track"][..., 0], x.sigmoid().sum((2, 3)), rtol=1e-5)
    np.testing.assert_allclose(sums["soft_track"][..., 1], F.softplus(x).sum((2, 3)), rtol=1e-5)
    assert sums["soft_cells"].tolist() == [h * w] * 3 and sums["soft_truth"].shape == (1, 3)
    np.testing.assert_allclose(sums["soft_truth"][0], [share, share, 0], rtol=1e-5)


def test_a_cache_of_both_kinds_of_split(tmp_path: Path) -> None:
    """A hidden split has the features without the sums; without pool there is neither."""
    settings = {"checkpoint": shared_checkpoint(), **SMALL}
    for split, pool in (("train", 4), ("hidden", 4), ("train", 0)):
        out = tmp_path / f"{split}{pool}.zarr"
        assert extract(SCENE, tmp_path, split, "vita", out, overrides={**settings, "pool": pool}).done == ["v0", "v1"]
    with_sums, hidden, without = (TrackCache(tmp_path / f"{name}.zarr") for name in ("train4", "hidden4", "train0"))
    names = [set(cache.folder("v0").array_names()) for cache in (with_sums, hidden, without)]
    sums = {"measured/soft", "measured/soft_track", "measured/soft_truth", "measured/soft_cells"}
    assert names[0] - names[1] == {*sums, "gt_rle", "overlap"} and names[0] - names[2] == {*sums, "features/f_mask_pooled"}
    np.testing.assert_array_equal(with_sums.feature("v1", "f_mask_pooled"), hidden.feature("v1", "f_mask_pooled"))
    assert with_sums.masks("v1") == without.masks("v1") and not without.card.measurement_specs


def test_planned_bytes_have_the_pooled_features_and_the_sums() -> None:
    vita = tracker(max_tracks=4, pool=4)
    video, truth = make_scene(7)
    record = extract_video(vita, video, (), truth)
    planned = video_bytes(vita.settings, vita.head.sizes, video.size, 7)
    assert len(record.tracks.origin) == 4 and planned["f_mask_pooled"] == record.tracks.features["f_mask_pooled"].nbytes
    for name, array in record.measurements.items():
        assert planned[name] == array.nbytes * (OBJECTS if name in ("soft", "soft_truth") else 1), name
