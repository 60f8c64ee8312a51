"""Named axes in batches, against the arrays that were written: what a row keeps along N, T, E and A, alone, padded, as a clip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rvos_cache.errors import InputError
from rvos_cache.extraction import extract, extract_text
from rvos_cache.media.boxes import mask_boxes
from rvos_cache.shapes import write_shapes
from rvos_cache.store import CacheWriter, TrackCache, write_tracks
from rvos_cache.types import FeatureSpec
from rvos_select.contracts import write_caches
from rvos_select.data.augment import Clip
from rvos_select.data.augment_clips import horizontal_flip
from rvos_select.data.batch import Batch
from rvos_select.data.caches import TrackSource
from rvos_select.data.clips import ClipSampler, ClipSettings
from rvos_select.data.collate import collate
from rvos_select.data.samples import VideoSample, load_video
from rvos_select.data.texts import TextSource

FEATURES = (
    FeatureSpec("by_text", ("E", 3), "float32"),
    FeatureSpec("of_tracks", ("N", "E"), "float32"),
    FeatureSpec("over_time", ("r", "T", "N"), "float32"),
    FeatureSpec("of_objects", ("A", "T"), "float32"),
    FeatureSpec("maps", ("T", "E", 2), "float16", by_frame=True),
    FeatureSpec("late", ("N", "T", 2), "float16"),
    FeatureSpec("rgb", ("T", 4, 6, 3), "uint8", by_frame=True),
)
MEASUREMENTS = (FeatureSpec("soft", ("N", "A", "T"), "float32"),)
REQUIRES = (*(f"features.{s.name}" for s in FEATURES[:4]), "frames.maps", "frames.late", "measured.soft", "pixels", "overlap")


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_caches(tmp_path_factory.mktemp("axes"), FEATURES, MEASUREMENTS)


def load(caches: tuple[Path, Path], labelled: bool = True, requires: tuple[str, ...] = REQUIRES) -> dict[str, VideoSample]:
    tracks, texts = TrackSource([caches[0]]), TextSource([caches[1]])
    thresholds = {str(caches[0]): 0.3} if labelled else None
    return {v: load_video(tracks, texts, v, thresholds=thresholds, requires=requires) for v in tracks.video_ids()}


def written(caches: tuple[Path, Path], video_id: str) -> dict[str, np.ndarray]:
    record = TrackCache(caches[0]).read(video_id)
    return {**record.tracks.features, **record.measurements}


def test_rows_of_one_video_have_their_own_expression_and_objects(caches: tuple[Path, Path]) -> None:
    """Rows 1 and 3 of video a, T = 7, N = 5; expression 1 names objects 0 and 1, expression 3 none."""
    arrays, sample = written(caches, "a"), load(caches)["a"]
    batch = collate([(sample, 1), (sample, 3)], REQUIRES)
    assert batch.tokens.shape[0] == 1 and batch.video_ids == ("a", "a") and batch.expression_ids == ("1", "3")
    assert batch.sentences == ("two cats", "no bird")
    np.testing.assert_array_equal(batch.features["by_text"], arrays["by_text"][[1, 3]])
    np.testing.assert_array_equal(batch.features["of_tracks"], arrays["of_tracks"][:, [1, 3]].T)
    np.testing.assert_array_equal(batch.features["over_time"], arrays["over_time"][None])
    np.testing.assert_array_equal(batch.features["of_objects"][0], arrays["of_objects"])
    assert batch.lengths["A"].tolist() == [2, 0] and not batch.features["of_objects"][1].any()
    np.testing.assert_array_equal(batch.measured["soft"][0], arrays["soft"])
    for i, row in enumerate((1, 3)):
        np.testing.assert_array_equal(batch.frames["maps"][i][2:5], arrays["maps"][2:5, row])
    np.testing.assert_array_equal(batch.frames["late"][0][::3], arrays["late"][:, ::3].transpose(1, 0, 2))
    assert batch.pixels is not None
    np.testing.assert_array_equal(batch.pixels[0][1:3], arrays["rgb"][1:3])
    assert batch.track_index is not None and batch.track_index.tolist() == [[0, 1, 2, 3, 4]]


def test_only_candidates_are_in_a_batch(caches: tuple[Path, Path]) -> None:
    """The last track of each video is a candidate of expression 1 alone."""
    arrays, samples = written(caches, "a"), load(caches)
    alone = collate([(samples["a"], 0)], REQUIRES)
    assert alone.tokens.shape[1] == 4 and alone.track_index is not None and alone.track_index.tolist() == [[0, 1, 2, 3]]
    np.testing.assert_array_equal(alone.features["of_tracks"][0], arrays["of_tracks"][:4, 0])
    np.testing.assert_array_equal(alone.frames["late"][0][:], arrays["late"][:4].transpose(1, 0, 2))
    assert alone.overlap is not None and alone.overlap[0].inter.shape == (4, 1, 7)
    shared = collate([(samples["a"], 0), (samples["a"], 1)], REQUIRES)
    assert shared.track_mask.tolist() == [[True] * 4 + [False], [True] * 5]
    padded = collate([(samples["a"], 0), (samples["b"], 1)], REQUIRES)
    assert padded.tokens.shape[:3] == (2, 4, 12) and padded.track_mask.tolist() == [[True] * 4, [True] * 3 + [False]]
    assert padded.track_index is not None and padded.track_index[1].tolist() == [0, 1, 2, -1]


def test_videos_of_different_sizes_are_padded(caches: tuple[Path, Path]) -> None:
    samples = load(caches)
    batch = collate([(samples["a"], 1), (samples["b"], 2)], REQUIRES)
    for i, (video_id, row, objects) in enumerate((("a", 1, [0, 1]), ("b", 2, [1]))):
        arrays = written(caches, video_id)
        frames, tracks = len(arrays["maps"]), 5 if video_id == "a" else 2
        assert batch.frame_mask[i].sum() == frames and batch.track_mask[i].sum() == tracks
        r = int(batch.lengths["r"][i])
        np.testing.assert_array_equal(batch.features["over_time"][i, :r, :frames, :tracks], arrays["over_time"][:, :, :tracks])
        np.testing.assert_array_equal(batch.features["of_tracks"][i, :tracks], arrays["of_tracks"][:tracks, row])
        np.testing.assert_array_equal(
            batch.measured["soft"][i, :tracks, : len(objects), :frames], arrays["soft"][:tracks, objects]
        )
        np.testing.assert_array_equal(batch.frames["maps"][i][:frames], arrays["maps"][:, row])
        assert len(batch.frames["maps"][i]) == 12 and not batch.frames["maps"][i][frames:].any()
    assert batch.lengths["A"].tolist() == [2, 1] and batch.lengths["r"].tolist() == [3, 4]
    assert batch.frame_index is not None and batch.frame_index[0].tolist() == [*range(7), *[-1] * 5]


@pytest.mark.parametrize("shared", [False, True])
def test_clips_have_their_frames_of_every_array(caches: tuple[Path, Path], shared: bool) -> None:
    arrays, sample, frames = written(caches, "a"), load(caches)["a"], [1, 4, 4]
    rows = [(sample, 1), (sample, 2)]
    batch = collate(rows, REQUIRES, frames=[frames] if shared else [frames, frames])
    assert len(batch.tokens) == (1 if shared else 2) and batch.frame_index is not None and batch.frame_index[0].tolist() == frames
    np.testing.assert_array_equal(batch.features["over_time"][0, :, :, :4], arrays["over_time"][:, frames][:, :, :4])
    np.testing.assert_array_equal(batch.measured["soft"][1, :4, :1], arrays["soft"][:4, [1]][:, :, frames])
    np.testing.assert_array_equal(batch.frames["maps"][1], arrays["maps"][frames, 2])
    assert batch.pixels is not None
    np.testing.assert_array_equal(batch.pixels[0], arrays["rgb"][frames])


def test_hidden_ground_truth_has_no_measurement_and_no_objects(caches: tuple[Path, Path]) -> None:
    requires = tuple(name for name in REQUIRES if name != "features.of_objects")
    batch = collate([(load(caches, False, requires)["a"], 0)], requires)
    assert not batch.measured and batch.overlap is None and batch.target is None
    with pytest.raises(InputError, match="a/0: 'of_objects' has an axis of objects, which this split hides"):
        collate([(load(caches, False)["a"], 0)], REQUIRES)


def other_cache(caches: tuple[Path, Path], path: Path, **changes: Any) -> Path:
    """The same tracks again, with expressions and their features in reverse order, as a second cache of the split."""
    cache = TrackCache(caches[0])
    writer = CacheWriter(path, cache.card.model_copy(update={"producer": "other", **changes}))
    for record in map(cache.read, cache.video_ids()):
        features = dict(record.tracks.features)
        for name, axis in (("by_text", 0), ("of_tracks", 1), ("maps", 1)):
            features[name] = np.flip(features[name], axis)
        kept = {spec["name"] for spec in writer.card.feature_specs}
        prompt = np.where(record.tracks.prompt == 1, len(record.expressions) - 2, record.tracks.prompt).astype(np.int32)
        tracks = replace(
            record.tracks, features={n: np.ascontiguousarray(v) for n, v in features.items() if n in kept}, prompt=prompt
        )
        write_tracks(writer, replace(record, tracks=tracks, expressions=record.expressions[::-1]))
    return path


def test_features_of_tracks_are_concatenated_over_caches(caches: tuple[Path, Path], tmp_path: Path) -> None:
    """Along N, and in one order of the expressions whatever that of each cache."""
    names = ("of_tracks", "late", "over_time")
    specs = [spec for spec in TrackCache(caches[0]).card.feature_specs if spec["name"] in names]
    two = other_cache(caches, tmp_path / "two.zarr", feature_specs=specs)
    source, arrays = TrackSource([caches[0], two]), written(caches, "a")
    np.testing.assert_array_equal(source.feature("a", "of_tracks"), np.concatenate([arrays["of_tracks"]] * 2))
    np.testing.assert_array_equal(source.measurement("a", "soft"), np.concatenate([arrays["soft"]] * 2))
    requires = ("features.of_tracks", "features.over_time", "frames.late", "features.by_text")
    sample = load_video(source, TextSource([caches[1]]), "a", requires=requires)
    batch = collate([(sample, 1)], requires)
    assert batch.tokens.shape[1] == 10
    np.testing.assert_array_equal(batch.features["of_tracks"][0], np.tile(arrays["of_tracks"][:, 1], 2))
    np.testing.assert_array_equal(batch.features["over_time"][0], np.concatenate([arrays["over_time"]] * 2, 2))
    np.testing.assert_array_equal(batch.frames["late"][0][:], np.concatenate([arrays["late"]] * 2).transpose(1, 0, 2))
    np.testing.assert_array_equal(batch.features["by_text"][0], arrays["by_text"][1])


def test_features_that_do_not_fit_over_caches_are_refused(caches: tuple[Path, Path], tmp_path: Path) -> None:
    everything = other_cache(caches, tmp_path / "all.zarr")
    with pytest.raises(InputError, match="2 caches hold the feature 'by_text', which has no axis of tracks"):
        TrackSource([caches[0], everything]).feature("a", "by_text")
    without = other_cache(caches, tmp_path / "none.zarr", feature_specs=[])
    with pytest.raises(InputError, match=r"'of_tracks' has an axis of tracks, .*none\.zarr does not hold it"):
        TrackSource([caches[0], without]).feature("a", "of_tracks")


def test_pixels_come_from_the_dataset_where_no_feature_holds_them(tmp_path: Path) -> None:
    write_shapes(tmp_path / "data", 3, 1)
    extract("mevis", tmp_path / "data", "train", "flow", tmp_path / "t.zarr", limit=1)
    extract_text("mevis", tmp_path / "data", "train", "hashed", tmp_path / "x.zarr")
    source = TrackSource([tmp_path / "t.zarr"])
    video_id = source.video_ids()[0]
    sample = load_video(source, TextSource([tmp_path / "x.zarr"]), video_id, requires=("pixels",))
    batch = collate([(sample, 0)], ("pixels",), frames=[[2, 0]])
    assert batch.pixels is not None and sample.pixels is not None
    from rvos_cache.datasets import open_dataset

    video = open_dataset("mevis", tmp_path / "data", "train").video(video_id)
    np.testing.assert_array_equal(batch.pixels[0], np.stack([video.read(2), video.read(0)]))
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    from rvos_select.data import pixels

    pixels._dataset.cache_clear()
    with pytest.raises(InputError, match="the selector reads pixels, .* and the dataset is not at"):
        load_video(source, TextSource([tmp_path / "x.zarr"]), video_id, requires=("pixels",))


def test_a_flip_moves_pixels_masks_boxes_and_words_together(caches: tuple[Path, Path]) -> None:
    masks = torch.zeros(1, 2, 4, 6, dtype=torch.bool)
    masks[0, 0, 1:3, 1:3] = True
    pixels = torch.arange(2 * 4 * 6 * 3, dtype=torch.uint8).reshape(2, 4, 6, 3)
    clip = Clip(pixels, masks, "the dog running to the left")
    assert clip.boxes.tolist() == [[[1, 1, 3, 3], [0, 0, 0, 0]]]
    flipped = [horizontal_flip(clip, torch.Generator().manual_seed(seed)) for seed in range(20)]
    changed = [c for c in flipped if c.sentence != clip.sentence]
    assert 0 < len(changed) < 20
    for c in changed:
        assert c.sentence == "the dog running to the right" and c.boxes[0, 0].tolist() == [3, 1, 5, 3]
        assert torch.equal(c.pixels, pixels.flip(2)) and torch.equal(c.truth, masks.flip(3))


def test_boxes_of_random_masks_are_those_of_their_pixels() -> None:
    masks = torch.rand(50, 5, 7, generator=torch.Generator().manual_seed(0)) < 0.1
    for mask, box in zip(masks, mask_boxes(masks)):
        y, x = np.nonzero(mask.numpy())
        expected = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0]
        assert box.tolist() == expected


def test_an_augmented_batch_of_clips(caches: tuple[Path, Path]) -> None:
    """Frames, masks and sentences of a batch are those of the augmentation, whatever it does."""

    def shrink(clip: Clip, generator: torch.Generator) -> Clip:
        return Clip(clip.pixels[:, ::2], clip.truth[:, :, ::2], clip.sentence.upper())

    sample = load(caches, requires=("pixels", "truth", "overlap"))["a"]
    sampler = ClipSampler(ClipSettings(frames=3), torch.Generator().manual_seed(0), ("pixels", "truth"), shrink)
    batch: Batch = sampler([(sample, 0), (sample, 1)])
    assert batch.pixels is not None and batch.truth is not None and batch.frame_index is not None
    arrays = written(caches, "a")
    for i in range(2):
        np.testing.assert_array_equal(batch.pixels[i], arrays["rgb"][batch.frame_index[i]][:, ::2])
    assert batch.sentences[0] == "THE DOG RUNNING TO THE LEFT" and batch.truth[1].shape[2] == 2
