"""A split in a mirror against the split itself."""

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
    own, seen = open_dataset("mevis", root, "train"), open_dataset("mevis", root, "train-mirror")
    assert seen.split == "train-mirror" and seen.has_ground_truth and list(seen.check()) == []
    swapped = 0
    for video_id, mirrored in zip(own.video_ids(), seen.video_ids(), strict=True):
        assert mirrored == video_id + "-mirror"
        a, b = own.video(video_id), seen.video(mirrored)
        assert b.frame_names == a.frame_names and b.size == a.size
        np.testing.assert_array_equal(b.read(3), np.fliplr(a.read(3)))
        truth, flipped = own.ground_truth(video_id), seen.ground_truth(mirrored)
        assert truth is not None and flipped is not None
        np.testing.assert_array_equal(flipped.masks.dense(), truth.masks.dense()[..., ::-1])
        for e, f in zip(own.expressions(video_id), seen.expressions(mirrored), strict=True):
            assert e.targets is not None and f.targets is not None
            assert truth.indices(e.targets) == flipped.indices(f.targets)
            assert f.video_id == mirrored and f.expression_id == e.expression_id
            if "clockwise" not in e.text and "angle" not in e.text:
                assert f.text == e.text.replace("left", "L").replace("right", "left").replace("L", "right")
            swapped += f.text != e.text
    assert swapped


def test_a_video_is_asked_for_by_its_mirrored_name(root: Path) -> None:
    seen = open_dataset("mevis", root, "train-mirror")
    with pytest.raises(InputError, match="no video"):
        seen.video(seen.video_ids()[0].removesuffix("-mirror"))


def test_what_only_some_datasets_have_is_seen_in_the_mirror_too(root: Path, tmp_path: Path) -> None:
    """Ids and kinds of sentences; the frames that A2D scores, each under a name of its own; where there is none, none."""
    own, seen = open_dataset("mevis", root, "train"), open_dataset("mevis", root, "train-mirror")
    for video_id, mirrored in zip(own.video_ids(), seen.video_ids(), strict=True):
        ids = seen.expression_ids(mirrored)  # type: ignore[attr-defined]
        assert ids == own.expression_ids(video_id) == tuple(e.expression_id for e in seen.expressions(mirrored))  # type: ignore[attr-defined]
        assert [seen.kind(mirrored, i) for i in ids] == [own.kind(video_id, i) for i in ids]  # type: ignore[attr-defined]
    assert not hasattr(seen, "samples")
    write_a2d(tmp_path)
    own, seen = open_dataset("a2d-sentences", tmp_path, "train"), open_dataset("a2d-sentences", tmp_path, "train-mirror")
    held, flipped = own.samples("b"), seen.samples("b-mirror")  # type: ignore[attr-defined]
    assert [(s.t, s.expression_id) for s in held] == [(s.t, s.expression_id) for s in flipped]
    assert {s.video_id for s in flipped} == {"b-mirror"} and not {s.image_id for s in held} & {s.image_id for s in flipped}
    assert not hasattr(seen, "kind")


def test_a_split_and_its_mirror_are_one_training_set(root: Path, tmp_path: Path) -> None:
    extract_all("mevis", root, splits=["train", "train-mirror"], tracker="flow", encoder="hashed", out=tmp_path)
    tracks = TrackSource([tmp_path / s / "flow.zarr" for s in ("train", "train-mirror")])
    texts = TextSource([tmp_path / s / "text-hashed.zarr" for s in ("train", "train-mirror")])
    own = TrackCache(tmp_path / "train/flow.zarr").video_ids()
    assert len(TextCache(tmp_path / "train-mirror/text-hashed.zarr").video_ids()) == len(own)
    assert set(tracks.video_ids()) == {*own, *(v + "-mirror" for v in own)}
    for video_id in own:
        a, b = tracks.overlap(video_id), tracks.overlap(video_id + "-mirror")
        # the pixels of each object are the same, whatever the tracker finds of them
        np.testing.assert_array_equal(a.gt_area, b.gt_area)
        assert [len(w.vectors) for w in texts.words(video_id)] == [len(w.vectors) for w in texts.words(video_id + "-mirror")]


def test_a_mirrored_cache_is_the_cache_of_mirrored_frames(root: Path, tmp_path: Path) -> None:
    """Tokens of the flipped masks over flipped frames, measured anew, against the tokens rearranged."""
    extract_all("mevis", root, splits=["train"], tracker="flow", encoder="hashed", out=tmp_path)
    path = tmp_path / "train/flow.zarr"
    report = mirror(path, tmp_path / "m.zarr")
    assert not report.failed
    own, seen, split = TrackCache(path), TrackCache(tmp_path / "m.zarr"), open_dataset("mevis", root, "train-mirror")
    assert seen.card.split == "train-mirror"
    for video_id in own.video_ids():
        a, b = own.read(video_id), seen.read(video_id + "-mirror")
        np.testing.assert_array_equal(b.tracks.masks.dense(), a.tracks.masks.dense()[..., ::-1])
        assert b.expressions == split.expressions(b.video_id)
        for record in (a, b):
            boxes = record.tracks.masks.boxes()[np.arange(len(record.tracks.origin)), record.tracks.prompt_frame]
            np.testing.assert_array_equal(record.tracks.prompt_box, [[x, y, x + w, y + h] for x, y, w, h in boxes])
        assert b.ground_truth is not None and b.overlap is not None
        truth = split.ground_truth(b.video_id)
        assert truth is not None and truth.object_ids == b.ground_truth.object_ids and truth.masks == b.ground_truth.masks
        again = count_overlap(b.tracks.masks, b.ground_truth)
        for name in ("inter", "area", "gt_area"):
            np.testing.assert_array_equal(getattr(again, name), getattr(b.overlap, name))
        np.testing.assert_array_equal(tokens.mirrored(tokens.mirrored(a.tracks.tokens)), a.tracks.tokens)
        measured, _ = tokens.describe(split.video(b.video_id).read, b.tracks.masks)
        for part, where in tokens.SLICES.items():
            one, two = measured[..., where].astype(float), b.tracks.tokens[..., where].astype(float)
            # flow is measured anew on flipped frames and is not quite the same there
            away = np.abs(one - two).mean() / max(np.abs(one).mean(), 0.02)
            assert away < (0.35 if part in ("velocity", "heading", "screen", "flow") else 0.05), (part, away)
    with pytest.raises(InputError, match="another"):
        mirror(path, path)
    again_report = mirror(path, tmp_path / "m.zarr")
    assert len(again_report.skipped) == len(own.video_ids()) and not again_report.done
