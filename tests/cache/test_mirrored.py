"""Mirrored splits against the original splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_a2d_sentences import write_a2d

from rvos_cache.datasets import open_dataset
from rvos_cache.errors import InputError
from rvos_cache.exchange.mirror import mirror as mirror_cache
from rvos_cache.extraction import extract_all
from rvos_cache.overlap import count_overlap
from rvos_cache.shapes import write_shapes
from rvos_cache.store import TextCache, TrackCache
from rvos_cache.trackers.flow import tokens
from rvos_select.data.caches import TrackSource
from rvos_select.data.texts import TextSource


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mirror") / "shapes"
    write_shapes(folder, 3, 5)
    return folder


def test_frames_masks_and_sentences_are_flipped(root: Path) -> None:
    unmirrored, mirror = open_dataset("mevis", root, "train"), open_dataset("mevis", root, "train-mirror")
    assert mirror.split == "train-mirror" and mirror.has_ground_truth and list(mirror.check()) == []
    swapped = 0
    for video_id, mirrored in zip(unmirrored.video_ids(), mirror.video_ids(), strict=True):
        assert mirrored == video_id + "-mirror"
        a, b = unmirrored.video(video_id), mirror.video(mirrored)
        assert b.frame_names == a.frame_names and b.size == a.size
        np.testing.assert_array_equal(b.read(3), np.fliplr(a.read(3)))
        truth, flipped = unmirrored.ground_truth(video_id), mirror.ground_truth(mirrored)
        assert truth is not None and flipped is not None
        np.testing.assert_array_equal(flipped.masks.dense(), truth.masks.dense()[..., ::-1])
        for e, f in zip(unmirrored.expressions(video_id), mirror.expressions(mirrored), strict=True):
            assert e.targets is not None and f.targets is not None
            assert truth.indices(e.targets) == flipped.indices(f.targets)
            assert f.video_id == mirrored and f.expression_id == e.expression_id
            if "clockwise" not in e.text and "angle" not in e.text:
                assert f.text == e.text.replace("left", "L").replace("right", "left").replace("L", "right")
            swapped += f.text != e.text
    assert swapped


def test_a_video_is_read_by_its_mirrored_id(root: Path) -> None:
    mirror = open_dataset("mevis", root, "train-mirror")
    with pytest.raises(InputError, match="no video"):
        mirror.video(mirror.video_ids()[0].removesuffix("-mirror"))


def test_optional_parts_of_a_dataset_are_mirrored_too(root: Path, tmp_path: Path) -> None:
    """Ids and kinds of expressions; the frames that A2D scores, each under an image id of its own."""
    unmirrored, mirror = open_dataset("mevis", root, "train"), open_dataset("mevis", root, "train-mirror")
    for video_id, mirrored in zip(unmirrored.video_ids(), mirror.video_ids(), strict=True):
        ids = mirror.expression_ids(mirrored)
        assert ids == unmirrored.expression_ids(video_id) == tuple(e.expression_id for e in mirror.expressions(mirrored))
        kinds = [unmirrored.kind(video_id, i) for i in ids]
        assert [mirror.kind(mirrored, i) for i in ids] == kinds and "motion" in kinds
        assert mirror.samples(mirrored) is unmirrored.samples(video_id) is None
    assert (mirror.protocol, mirror.one_object, mirror.name) == ("video", False, "mevis")
    write_a2d(tmp_path)
    unmirrored, mirror = open_dataset("a2d-sentences", tmp_path, "train"), open_dataset("a2d-sentences", tmp_path, "train-mirror")
    original, flipped = unmirrored.samples("b"), mirror.samples("b-mirror")
    assert original and flipped
    assert [(s.t, s.expression_id) for s in original] == [(s.t, s.expression_id) for s in flipped]
    assert {s.video_id for s in flipped} == {"b-mirror"} and not {s.image_id for s in original} & {s.image_id for s in flipped}
    assert mirror.kind("b-mirror", "0") is None
    assert (mirror.protocol, mirror.one_object, mirror.name) == ("image", True, "a2d-sentences")


@pytest.mark.slow
def test_a_split_and_its_mirror_are_one_training_set(root: Path, tmp_path: Path) -> None:
    extract_all("mevis", root, splits=["train", "train-mirror"], tracker="flow", encoder="hashed", out=tmp_path)
    tracks = TrackSource([tmp_path / s / "flow.zarr" for s in ("train", "train-mirror")])
    texts = TextSource([tmp_path / s / "text-hashed.zarr" for s in ("train", "train-mirror")])
    unmirrored = TrackCache(tmp_path / "train/flow.zarr").video_ids()
    assert len(TextCache(tmp_path / "train-mirror/text-hashed.zarr").video_ids()) == len(unmirrored)
    assert set(tracks.video_ids()) == {*unmirrored, *(v + "-mirror" for v in unmirrored)}
    for video_id in unmirrored:
        a, b = tracks.overlap(video_id), tracks.overlap(video_id + "-mirror")
        # The pixels of each object are the same, whichever tracks the tracker returns.
        np.testing.assert_array_equal(a.gt_area, b.gt_area)
        assert [len(w.vectors) for w in texts.words(video_id)] == [len(w.vectors) for w in texts.words(video_id + "-mirror")]


def test_a_mirrored_cache_is_the_cache_of_mirrored_frames(root: Path, tmp_path: Path) -> None:
    """Tokens computed from flipped masks and frames, against the rearranged tokens."""
    extract_all("mevis", root, splits=["train"], tracker="flow", encoder="hashed", out=tmp_path)
    path = tmp_path / "train/flow.zarr"
    report = mirror_cache(path, tmp_path / "m.zarr")
    assert not report.failed
    unmirrored, mirror, split = TrackCache(path), TrackCache(tmp_path / "m.zarr"), open_dataset("mevis", root, "train-mirror")
    assert mirror.card.split == "train-mirror"
    for video_id in unmirrored.video_ids():
        a, b = unmirrored.read(video_id), mirror.read(video_id + "-mirror")
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
        measured, _ = tokens.describe(split.video(b.video_id).read, b.tracks.masks)
        for part, where in tokens.SLICES.items():
            one, two = measured[..., where].astype(float), b.tracks.tokens[..., where].astype(float)
            # Optical flow is computed again on flipped frames, where it differs a little.
            away = np.abs(one - two).mean() / max(np.abs(one).mean(), 0.02)
            assert away < (0.35 if part in ("velocity", "heading", "screen", "flow") else 0.05), (part, away)
    with pytest.raises(InputError, match="another"):
        mirror_cache(path, path)
    again_report = mirror_cache(path, tmp_path / "m.zarr")
    assert len(again_report.skipped) == len(unmirrored.video_ids()) and not again_report.done
