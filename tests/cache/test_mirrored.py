"""A mirrored split and a mirrored cache against the original."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_a2d_sentences import write_a2d

from rvos_cache.datasets import open_dataset
from rvos_cache.errors import InputError
from rvos_cache.exchange.mirror import mirror
from rvos_cache.extraction import extract_all
from rvos_cache.overlap import count_overlap
from rvos_cache.shapes import write_shapes
from rvos_cache.store import TextCache, TrackCache
from rvos_cache.trackers.flow import tokens
from rvos_select.data.caches import TextSource, TrackSource


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mirror") / "shapes"
    write_shapes(folder, 3, 5)
    return folder


def test_frames_masks_and_sentences_are_flipped(root: Path) -> None:
    split, mirrored_split = open_dataset("mevis", root, "train"), open_dataset("mevis", root, "train-mirror")
    assert mirrored_split.split == "train-mirror" and mirrored_split.has_ground_truth and list(mirrored_split.check()) == []
    swapped = 0
    for video_id, mirrored in zip(split.video_ids(), mirrored_split.video_ids(), strict=True):
        assert mirrored == video_id + "-mirror"
        a, b = split.video(video_id), mirrored_split.video(mirrored)
        assert b.frame_names == a.frame_names and b.size == a.size
        np.testing.assert_array_equal(b.read(3), np.fliplr(a.read(3)))
        truth, flipped = split.ground_truth(video_id), mirrored_split.ground_truth(mirrored)
        assert truth is not None and flipped is not None
        np.testing.assert_array_equal(flipped.masks.dense(), truth.masks.dense()[..., ::-1])
        for e, f in zip(split.expressions(video_id), mirrored_split.expressions(mirrored), strict=True):
            assert e.targets is not None and f.targets is not None
            assert truth.indices(e.targets) == flipped.indices(f.targets)
            assert f.video_id == mirrored and f.expression_id == e.expression_id
            if "clockwise" not in e.text and "angle" not in e.text:
                assert f.text == e.text.replace("left", "L").replace("right", "left").replace("L", "right")
            swapped += f.text != e.text
    assert swapped


def test_a_video_has_its_mirrored_name_only(root: Path) -> None:
    mirrored_split = open_dataset("mevis", root, "train-mirror")
    with pytest.raises(InputError, match="no video"):
        mirrored_split.video(mirrored_split.video_ids()[0].removesuffix("-mirror"))


def test_a_mirrored_split_has_the_optional_methods_of_its_dataset(root: Path, tmp_path: Path) -> None:
    """Ids and kinds of sentences; the frames that A2D scores, each with an id of its own; no other methods."""
    split, flipped = open_dataset("mevis", root, "train"), open_dataset("mevis", root, "train-mirror")
    for video_id, mirrored in zip(split.video_ids(), flipped.video_ids(), strict=True):
        ids = flipped.expression_ids(mirrored)  # type: ignore[attr-defined]
        assert ids == split.expression_ids(video_id) == tuple(e.expression_id for e in flipped.expressions(mirrored))  # type: ignore[attr-defined]
        assert [flipped.kind(mirrored, i) for i in ids] == [split.kind(video_id, i) for i in ids]  # type: ignore[attr-defined]
    assert not hasattr(flipped, "samples")
    write_a2d(tmp_path)
    split, flipped = (
        open_dataset("a2d-sentences", tmp_path, "train"),
        open_dataset("a2d-sentences", tmp_path, "train-mirror"),
    )
    samples, flipped_samples = split.samples("b"), flipped.samples("b-mirror")  # type: ignore[attr-defined]
    assert [(s.t, s.expression_id) for s in samples] == [(s.t, s.expression_id) for s in flipped_samples]
    assert {s.video_id for s in flipped_samples} == {"b-mirror"} and not {s.image_id for s in samples} & {
        s.image_id for s in flipped_samples
    }
    assert not hasattr(flipped, "kind")


def test_a_split_and_its_mirror_are_one_training_set(root: Path, tmp_path: Path) -> None:
    extract_all("mevis", root, splits=["train", "train-mirror"], tracker="flow", encoder="hashed", out=tmp_path)
    tracks = TrackSource([tmp_path / s / "flow.zarr" for s in ("train", "train-mirror")])
    texts = TextSource([tmp_path / s / "text-hashed.zarr" for s in ("train", "train-mirror")])
    video_ids = TrackCache(tmp_path / "train/flow.zarr").video_ids()
    assert len(TextCache(tmp_path / "train-mirror/text-hashed.zarr").video_ids()) == len(video_ids)
    assert set(tracks.video_ids()) == {*video_ids, *(v + "-mirror" for v in video_ids)}
    for video_id in video_ids:
        a, b = tracks.overlap(video_id), tracks.overlap(video_id + "-mirror")
        # The objects have the same number of pixels, whatever the tracker finds.
        np.testing.assert_array_equal(a.gt_area, b.gt_area)
        assert [len(w.vectors) for w in texts.words(video_id)] == [len(w.vectors) for w in texts.words(video_id + "-mirror")]


def test_a_mirrored_cache_is_the_cache_of_mirrored_frames(root: Path, tmp_path: Path) -> None:
    """The rearranged tokens against tokens computed from the flipped masks and frames."""
    extract_all("mevis", root, splits=["train"], tracker="flow", encoder="hashed", out=tmp_path)
    path = tmp_path / "train/flow.zarr"
    report = mirror(path, tmp_path / "m.zarr")
    assert not report.failed
    cache, mirrored_cache, split = TrackCache(path), TrackCache(tmp_path / "m.zarr"), open_dataset("mevis", root, "train-mirror")
    assert mirrored_cache.card.split == "train-mirror"
    for video_id in cache.video_ids():
        a, b = cache.read(video_id), mirrored_cache.read(video_id + "-mirror")
        np.testing.assert_array_equal(b.tracks.masks.dense(), a.tracks.masks.dense()[..., ::-1])
        assert b.expressions == split.expressions(b.video_id)
        for record in (a, b):
            boxes = record.tracks.masks.boxes()[np.arange(len(record.tracks.origin)), record.tracks.prompt_frame]
            np.testing.assert_array_equal(record.tracks.prompt_box, [[x, y, x + w, y + h] for x, y, w, h in boxes])
        assert b.ground_truth is not None and b.overlap is not None
        truth = split.ground_truth(b.video_id)
        assert truth is not None and truth.object_ids == b.ground_truth.object_ids and truth.masks == b.ground_truth.masks
        recounted = count_overlap(b.tracks.masks, b.ground_truth)
        for name in ("inter", "area", "gt_area"):
            np.testing.assert_array_equal(getattr(recounted, name), getattr(b.overlap, name))
        np.testing.assert_array_equal(tokens.mirrored(tokens.mirrored(a.tracks.tokens)), a.tracks.tokens)
        tokens_of_split, _ = tokens.describe(split.video(b.video_id).read, b.tracks.masks)
        for part, channels in tokens.SLICES.items():
            expected, mirrored_part = tokens_of_split[..., channels].astype(float), b.tracks.tokens[..., channels].astype(float)
            # Optical flow of flipped frames differs a little from the flipped optical flow.
            difference = np.abs(expected - mirrored_part).mean() / max(np.abs(expected).mean(), 0.02)
            assert difference < (0.35 if part in ("velocity", "heading", "screen", "flow") else 0.05), (part, difference)
    with pytest.raises(InputError, match="another"):
        mirror(path, path)
    again_report = mirror(path, tmp_path / "m.zarr")
    assert len(again_report.skipped) == len(cache.video_ids()) and not again_report.done
