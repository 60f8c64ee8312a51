"""Masks, overlap and settings against dense pixels, pycocotools and hand-computed cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks, from_coco, intersections, run_total
from rvos_cache.overlap import count_overlap, frame_mean, iou, precision, recall
from rvos_cache.settings import Settings, build, merge, parse_overrides
from rvos_cache.types import GroundTruth

DENSE = arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)))


@given(DENSE)
@settings(max_examples=60, deadline=None)
def test_rle_and_dense_agree(dense: np.ndarray) -> None:
    masks = RleMasks.from_dense(dense)
    assert np.array_equal(masks.dense(), dense)
    assert np.array_equal(masks.area(), dense.sum((2, 3)))
    assert np.array_equal(masks.union().dense()[0], dense.any(0))
    assert RleMasks.concatenate([masks.select([0]), masks]).shape == (len(dense) + 1, dense.shape[1])
    shared = intersections(masks.column(0), masks.column(0))
    assert np.array_equal(shared, [[(a & b).sum() for b in dense[:, 0]] for a in dense[:, 0]])
    assert all(run_total(masks.bytes_at(k, 0)) == dense.shape[2] * dense.shape[3] for k in range(len(dense)))


def test_overlap_by_hand() -> None:
    """A track of pixels 0-3 and an object of pixels 2-7 of ten; both gone in frame 1; frame 2 is not annotated."""
    track, thing = np.zeros((1, 3, 1, 10), bool), np.zeros((1, 3, 1, 10), bool)
    track[0, 0, 0, :4] = thing[0, 0, 0, 2:8] = thing[0, 2, 0, :5] = True
    truth = GroundTruth(("1",), RleMasks.from_dense(thing), np.array([True, True, False]))
    counts = count_overlap(RleMasks.from_dense(track), truth)
    assert iou(counts)[0, 0].tolist() == [2 / 8, 1.0, 0.0]
    assert precision(counts)[0, 0].tolist() == [2 / 4, 1.0, 1.0]
    assert recall(counts)[0, 0].tolist() == [2 / 6, 1.0, 0.0]
    assert frame_mean(iou(counts), counts.annotated)[0, 0] == (0.25 + 1) / 2


@pytest.mark.parametrize("raw", [b"", b"zz", b"0" * 30, b"\xff\xff", b"o" * 12 + b"0"])
def test_damaged_runs_are_refused(raw: bytes) -> None:
    with pytest.raises(InputError, match=r"file\.json"):
        from_coco({"size": [6, 8], "counts": raw}, (6, 8), "file.json")


def test_uncompressed_counts_and_null() -> None:
    square = np.zeros((2, 3), np.uint8, order="F")
    square[0, 1] = 1
    raw = from_coco({"size": [2, 3], "counts": [2, 1, 3]}, (2, 3), "x")
    assert np.array_equal(coco.decode({"size": [2, 3], "counts": raw}), square)
    assert coco.decode({"size": [2, 3], "counts": from_coco(None, (2, 3), "x")}).sum() == 0
    with pytest.raises(InputError, match="add up"):
        from_coco({"size": [2, 3], "counts": [2, 1]}, (2, 3), "x")


def test_settings_name_what_exists() -> None:
    class Inner(Settings):
        lr: float = 1.0

    class Outer(Settings):
        optim: Inner = Inner()
        name: str = "a"

    values = merge({"optim": {"lr": 2.0}}, parse_overrides(["name=b c", "optim.lr=1e-3"]))
    assert build(Outer, values, "t") == Outer(optim=Inner(lr=1e-3), name="b c")
    with pytest.raises(InputError, match=r"no setting 'optim\.rate'; there are: optim\.lr, name"):
        build(Outer, {"optim": {"rate": 1}}, "t")
    with pytest.raises(InputError, match="wants name=value"):
        parse_overrides(["name"])
