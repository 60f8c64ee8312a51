"""Soft sums through the store and a batch: in clips, in all frames, of one video and of several, of joined caches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.media.geometry import FrameGeometry
from rvos_cache.soft_overlap import SOFT_SPECS, soft_overlap, truth_shares
from rvos_cache.store import CacheWriter, TrackCache, write_tracks
from rvos_select.contracts import write_caches
from rvos_select.data.caches import TrackSource
from rvos_select.data.cards import CacheCards, check_declared
from rvos_select.data.collate import Row, collate
from rvos_select.data.samples import VideoSample, load_video
from rvos_select.data.texts import TextSource
from rvos_select.losses.matching import bce_costs, dice_costs
from rvos_select.selectors.matching import TrackCosts, soft_parts, soft_track_costs

OBJECTS = {1: [0, 1], 2: [1], 3: []}
"""Row of an expression -> positions of the objects that it names, as `write_caches` has them."""


def geometry(side: int = 32) -> FrameGeometry:
    return FrameGeometry.stretched((12, 16), (side, side), mean=(0, 0, 0), deviation=(1, 1, 1))


def logits(video_id: str, n: int, t: int, cells: tuple[int, int], seed: int = 0) -> Tensor:
    """(T, N, h, w)."""
    return 4 * torch.randn(t, n, *cells, generator=torch.Generator().manual_seed(ord(video_id) + seed))


def measured(base: Path, path: Path, side: int = 32, seed: int = 0) -> Path:
    """The tracks of `base` as a cache with soft sums of random logits."""
    cache = TrackCache(base)
    specs = [spec.to_json() for spec in SOFT_SPECS]
    writer = CacheWriter(path, cache.card.model_copy(update={"measurement_specs": specs}))
    for record in map(cache.read, cache.video_ids()):
        n, t = record.tracks.masks.shape
        truth = record.ground_truth
        assert truth is not None
        maps = logits(record.video_id, n, t, geometry(side).cells(), seed)
        sums = soft_overlap(maps, truth_shares(truth, geometry(side)), truth.annotated)
        write_tracks(writer, replace(record, measurements=sums))
    return path


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("soft")
    tracks, texts = write_caches(folder)
    return measured(tracks, folder / "soft.zarr"), texts


def load(caches: tuple[Path, Path], requires: tuple[str, ...], labelled: bool = True) -> dict[str, VideoSample]:
    tracks, texts = TrackSource([caches[0]]), TextSource([caches[1]])
    thresholds = {str(caches[0]): 0.3} if labelled else None
    return {v: load_video(tracks, texts, v, thresholds=thresholds, requires=requires) for v in tracks.video_ids()}


def dense(sample: VideoSample, frames: list[int], objects: list[int]) -> Tensor:
    """5 BCE + 5 Dice (N, A) of dense masks in the annotated ones of `frames`."""
    assert sample.truth is not None
    shares = torch.stack(list(truth_shares(sample.truth, geometry())))
    at = [t for t in frames if sample.truth.annotated[t]]
    maps = logits(sample.video_id, len(sample.tokens), sample.tokens.shape[1], geometry().cells())
    x, y = maps[at].transpose(0, 1).flatten(1), shares[at][:, objects].transpose(0, 1).flatten(1)
    return 5 * bce_costs(x, y) + 5 * dice_costs(x, y)


def check(costs: list[TrackCosts], rows: list[Row], clips: list[list[int]]) -> None:
    """Of each row's own objects and candidates; what pads them is no object."""
    for own, (sample, row), frames in zip(costs, rows, clips, strict=True):
        objects, candidates = OBJECTS[row], sample.candidates[row].nonzero()[:, 0]
        assert own.visible.tolist() == list(range(len(objects)))
        expected = dense(sample, frames, objects)[candidates]
        torch.testing.assert_close(own.masks[: len(candidates), : len(objects)], expected, atol=1e-5, rtol=1e-5)


def test_clips_have_the_sums_of_their_frames(caches: tuple[Path, Path]) -> None:
    """Strided clips of two videos of other numbers of tracks, of expressions of other numbers of objects."""
    requires = (*soft_parts("clip"), "truth")
    samples = load(caches, requires)
    rows, clips = [(samples["a"], 1), (samples["b"], 2), (samples["c"], 3)], [[0, 2, 4], [1, 5, 9], [3, 4, 4]]
    batch = collate(rows, requires, frames=clips)
    assert batch.measured["soft"].shape == (3, 5, 2, 3, 2) and batch.measured["soft_cells"].tolist() == [[64] * 3] * 3
    check(soft_track_costs(batch, 5, 5), rows, clips)


def test_scope_video_has_the_sums_of_all_frames(caches: tuple[Path, Path]) -> None:
    """While everything else is of the clip; a video's last frame is not annotated, and the shorter one is padded."""
    requires = (*soft_parts("video"), "truth")
    samples = load(caches, requires)
    rows = [(samples["a"], 1), (samples["b"], 2)]
    batch = collate(rows, requires, frames=[[0, 2, 4], [1, 5, 9]])
    assert batch.tokens.shape[2] == 3 and batch.measured["soft_track"].shape == (2, 5, 12, 2)
    assert batch.measured["soft_cells"].tolist() == [[64] * 6 + [0] * 6, [64] * 11 + [0]]
    check(soft_track_costs(batch, 5, 5), rows, [list(range(7)), list(range(12))])


def test_whole_videos(caches: tuple[Path, Path]) -> None:
    """Expressions that share a video share its tracks."""
    requires = (*soft_parts("clip"), "truth")
    samples = load(caches, requires)
    rows = [(samples["a"], row) for row in (1, 3)]
    batch = collate(rows, requires)
    assert batch.measured["soft_track"].shape[0] == 1 and batch.measured["soft"].shape[0] == 2
    one, none = soft_track_costs(batch, 5, 5)
    check([one], rows[:1], [list(range(7))])
    assert not len(none.visible)


def test_hidden_ground_truth_has_no_sums(caches: tuple[Path, Path]) -> None:
    requires = soft_parts("video")
    batch = collate([(load(caches, requires, labelled=False)["a"], 1)], requires)
    with pytest.raises(KeyError, match="ground truth is hidden"):
        soft_track_costs(batch, 5, 5)


def test_a_measurement_that_no_cache_declares(caches: tuple[Path, Path]) -> None:
    cards = CacheCards(TrackSource([caches[0]]).cards)
    check_declared((*soft_parts("clip"), *soft_parts("video")), cards, "s")
    with pytest.raises(InputError, match=r"requires 'measured.soft_area.video', .* declares the measurement 'soft_area'"):
        check_declared(("measured.soft_area.video",), cards, "s")
    with pytest.raises(InputError, match=r"declares the feature 'soft.video'"):
        check_declared(("features.soft.video",), cards, "s")
    (card,) = cards.tracks
    without = card.model_copy(update={"measurement_specs": []})
    with pytest.raises(InputError, match="give the cache of tracker dvis, or of vita with --set pool=20, or another way$"):
        check_declared(soft_parts("clip"), CacheCards([without]), "s", lambda name: "another way")
    # Frames of another split beside the tracks.
    frames = card.model_copy(update={"split": "other", "producer": "frames", "channels": 0, "measurement_specs": []})
    with pytest.raises(InputError, match="cache of frames is of .*/other, and no cache of tracks of .*/other was given"):
        check_declared(soft_parts("clip"), CacheCards([card, frames]), "s")


def test_joined_caches_have_the_tracks_of_both(caches: tuple[Path, Path], tmp_path: Path) -> None:
    other = measured(caches[0], tmp_path / "other.zarr", seed=7)
    source = TrackSource([caches[0], other])
    for name in ("soft", "soft_track"):
        parts = [TrackCache(path).measurement("a", name) for path in (caches[0], other)]
        np.testing.assert_array_equal(source.measurement("a", name), np.concatenate(parts))
        assert not np.array_equal(*parts)
    for name in ("soft_truth", "soft_cells"):
        np.testing.assert_array_equal(source.measurement("a", name), TrackCache(caches[0]).measurement("a", name))


@pytest.mark.parametrize("side", [64, 128])
def test_maps_of_other_cells_are_not_joined(caches: tuple[Path, Path], tmp_path: Path, side: int) -> None:
    source = TrackSource([caches[0], measured(caches[0], tmp_path / "large.zarr", side)])
    thresholds = {cache.path: 0.3 for cache in source.caches}
    with pytest.raises(InputError, match=r"large\.zarr, video a: the measurement 'soft_truth' differs .* at one size") as e:
        load_video(source, TextSource([caches[1]]), "a", thresholds=thresholds, requires=soft_parts("clip"))
    assert "\n" not in str(e.value)
