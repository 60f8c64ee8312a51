"""Masks, overlap and settings against dense pixels, pycocotools and hand-computed cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from rvos_cache.errors import InputError
from rvos_cache.mask_runs import MaskRuns
from rvos_cache.masks import RleMasks, empty_rle, from_coco, intersections, mask_ends, run_ends, run_total
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
    joined = RleMasks.concatenate([masks.select([len(dense) - 1]), masks])
    assert np.array_equal(joined.dense(), np.concatenate([dense[-1:], dense]))
    shared = intersections(masks.column(0), masks.column(0))
    assert np.array_equal(shared, [[(a & b).sum() for b in dense[:, 0]] for a in dense[:, 0]])
    assert all(run_total(masks.bytes_at(k, 0)) == dense.shape[2] * dense.shape[3] for k in range(len(dense)))


@given(DENSE, st.lists(st.integers(0, 3), max_size=5))
@settings(max_examples=100, deadline=None)
def test_runs_and_dense_agree(dense: np.ndarray, indices: list[int]) -> None:
    masks, selected = RleMasks.from_dense(dense), [k % len(dense) for k in indices]
    runs = masks.runs()
    assert RleMasks.from_runs(runs) == masks
    assert RleMasks.from_runs(runs.select(selected)) == masks.select(selected)
    both = MaskRuns.concatenate([runs, runs.select(selected)])
    assert RleMasks.from_runs(both) == RleMasks.concatenate([masks, masks.select(selected)])
    for t in range(dense.shape[1]):
        assert np.array_equal(runs.union(t), dense[:, t].any(0))
        assert np.array_equal(runs.union(t, selected), dense[selected, t].any(0))


@given(DENSE)
@settings(max_examples=300, deadline=None)
def test_flipped_runs_are_those_of_flipped_pixels(dense: np.ndarray) -> None:
    assert RleMasks.from_runs(RleMasks.from_dense(dense).runs().flipped()) == RleMasks.from_dense(dense[..., ::-1])


@pytest.mark.parametrize(
    "counts", [[0, 12], [12], [0, 12, 0], [3, 0, 0, 4, 5], [0, 0, 0, 12], [1] * 12, [11, 1], [2, 4, 0, 3, 3]]
)
def test_runs_of_other_encoders_are_flipped(counts: list[int]) -> None:
    raw = from_coco({"size": [4, 3], "counts": counts}, (4, 3), "x")
    masks = RleMasks.from_bytes([[raw, empty_rle((4, 3))], [raw, raw]], 2, (4, 3))
    assert RleMasks.from_runs(masks.runs().flipped()) == RleMasks.from_dense(masks.dense()[..., ::-1])


def test_runs_that_do_not_fill_the_frame_are_refused() -> None:
    runs = RleMasks.from_dense(np.ones((2, 1, 3, 4), bool)).runs()
    for size in ((3, 5), (4, 4), (2, 4)):
        with pytest.raises(ValueError, match="do not fill"):
            MaskRuns(runs.ends, runs.stops, runs.shape, size).union(0)
    for indices, frame in (([2], 0), ([0], 1)):
        with pytest.raises(IndexError):
            runs.union(frame, indices)
    with pytest.raises(ValueError, match="are not masks"):
        MaskRuns(runs.ends[:-1], runs.stops, runs.shape, runs.size)
    none = RleMasks.empty(0, 2, (3, 4)).runs()
    assert none.shape == (0, 2) and not none.union(1).any() and RleMasks.from_runs(none) == RleMasks.empty(0, 2, (3, 4))


def test_overlap_by_hand() -> None:
    """A track of pixels 0-3 and an object of pixels 2-7 of ten; both are empty in frame 1; frame 2 is not annotated."""
    track, thing = np.zeros((1, 3, 1, 10), bool), np.zeros((1, 3, 1, 10), bool)
    track[0, 0, 0, :4] = thing[0, 0, 0, 2:8] = thing[0, 2, 0, :5] = True
    truth = GroundTruth(("1",), RleMasks.from_dense(thing), np.array([True, True, False]))
    counts = count_overlap(RleMasks.from_dense(track), truth)
    assert iou(counts)[0, 0].tolist() == [2 / 8, 1.0, 0.0]
    assert precision(counts)[0, 0].tolist() == [2 / 4, 1.0, 1.0]
    assert recall(counts)[0, 0].tolist() == [2 / 6, 1.0, 0.0]
    assert frame_mean(iou(counts), counts.annotated)[0, 0] == (0.25 + 1) / 2


@given(st.integers(1, 150), st.integers(1, 9), st.lists(st.lists(st.integers(0, 90), max_size=12), max_size=4), st.booleans())
@settings(max_examples=150, deadline=None)
def test_pixels_are_those_of_the_counts(height: int, width: int, rows: list[list[int]], long: bool) -> None:
    """Runs over several columns and words of 64 rows, empty runs, a last pixel that is set; against np.repeat."""
    total, masks, expected = height * width, [], []
    for counts in rows:
        fitting = [c * 7 if long else c for c in counts]
        while sum(fitting) > total:
            fitting.pop()
        fitting.append(total - sum(fitting))
        masks.append([from_coco({"size": [height, width], "counts": fitting}, (height, width), "x")])
        expected.append(np.repeat(np.arange(len(fitting)) % 2 == 1, fitting).reshape(width, height).T)
    all_masks = RleMasks.from_bytes(masks, 1, (height, width))
    for k, pixels in enumerate(expected):
        assert np.array_equal(all_masks.decode(k, 0), pixels) and np.array_equal(all_masks.dense([k])[0, 0], pixels)
        assert np.array_equal(coco.decode(all_masks.at(k, 0)).view(bool), pixels) and run_total(all_masks.bytes_at(k, 0)) == total
    assert np.array_equal(all_masks.dense()[:, 0], np.array(expected, bool).reshape(-1, height, width))
    if masks:
        ends, stops = run_ends(all_masks.rle, all_masks.offsets)
        assert np.array_equal(ends[stops - 1], [total] * len(masks)) and len(ends) == stops[-1]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 70_000), min_size=1, max_size=40))
def test_runs_are_read_as_coco_writes_them(counts: list[int]) -> None:
    """Runs of any length, empty ones too, by both routes."""
    raw = coco.frPyObjects({"size": [sum(counts), 1], "counts": counts}, sum(counts), 1)["counts"]
    rle = np.frombuffer(raw, np.uint8)
    assert np.array_equal(mask_ends(rle), np.cumsum(counts))
    assert np.array_equal(run_ends(rle, np.array([0, len(rle)]))[0], np.cumsum(counts))


def test_runs_that_do_not_fill_the_frame_give_no_pixels() -> None:
    square = RleMasks.from_dense(np.ones((1, 1, 4, 4), bool))
    for raw, message in ((square.rle, "fill"), (np.append(square.rle, np.uint8(50)), "fill"), (square.rle[:1] + 32, "break off")):
        damaged = RleMasks(raw, np.array([0, len(raw)]), (1, 1), (4, 5))
        for read in (lambda m: m.decode(0, 0), RleMasks.dense):
            with pytest.raises(ValueError, match=message):
                read(damaged)


def loop_total(raw: bytes) -> int:
    """`run_total` a byte at a time."""
    counts: list[int] = []
    position = 0
    while position < len(raw):
        value = shift = 0
        while True:
            if position >= len(raw) or not 0 <= raw[position] - 48 < 64 or shift > 30:
                return -1
            digit = raw[position] - 48
            position += 1
            value |= (digit & 0x1F) << shift
            shift += 5
            if not digit & 0x20:
                value -= (digit >> 4) << shift
                break
        value += counts[-2] if len(counts) > 2 else 0
        if value < 0:
            return -1
        counts.append(value)
    return sum(counts)


@given(st.lists(st.integers(46, 113), max_size=14).map(bytes))
@settings(max_examples=400, deadline=None)
def test_any_bytes_have_the_total_of_the_loop(raw: bytes) -> None:
    assert run_total(raw) == loop_total(raw)


@given(DENSE, st.data())
@settings(max_examples=100, deadline=None)
def test_counts_are_those_of_the_pixels(dense: np.ndarray, data: st.DataObject) -> None:
    """No track, no object, empty and full masks too."""
    k, t, h, w = dense.shape
    objects = data.draw(arrays(bool, st.tuples(st.integers(0, 3), st.just(t), st.just(h), st.just(w))))
    tracks = dense[: data.draw(st.integers(0, k))]
    both = [RleMasks.from_dense(m) if len(m) else RleMasks.empty(0, t, (h, w)) for m in (tracks, objects)]
    counts = count_overlap(both[0], GroundTruth(tuple(map(str, range(len(objects)))), both[1], np.ones(t, bool)))
    assert np.array_equal(counts.inter, (tracks[:, None] & objects[None]).sum((3, 4)))
    assert np.array_equal(counts.area, tracks.sum((2, 3))) and np.array_equal(counts.gt_area, objects.sum((2, 3)))
    assert {counts.inter.dtype, counts.area.dtype, counts.gt_area.dtype} == {np.dtype(np.int32)}


@pytest.mark.parametrize("raw", [b"", b"zz", b"0" * 30, b"\xff\xff", b"o" * 12 + b"0"])
def test_damaged_runs_are_refused(raw: bytes) -> None:
    with pytest.raises(InputError, match=r"file\.json"):
        from_coco({"size": [6, 8], "counts": raw}, (6, 8), "file.json")


SQUARE = {"size": [6, 8], "counts": "=240g0"}


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ("=240g0", "found str"),
        ("null", "found str"),
        ([48], "found list"),
        ({}, "found dict"),
        (False, "found bool"),
        ({**SQUARE, "counts": None}, "found NoneType"),
        ({**SQUARE, "counts": {"0": 48}}, "found dict"),
        ({**SQUARE, "counts": 48}, "found int"),
        (
            {**SQUARE, "counts": str(b"=240g0")},
            r"bytes as Python prints them, b'=240g0'\.\.\.; write rle\['counts'\]\.decode\(\)",
        ),
        ({**SQUARE, "counts": list(b"=240g0")}, "do not add up"),
        ({**SQUARE, "counts": [True] * 48}, "do not add up"),
        ({**SQUARE, "counts": [48.0]}, "do not add up"),
        ({**SQUARE, "counts": ["48"]}, "do not add up"),
        ({**SQUARE, "counts": [-1, 49]}, "do not add up"),
        ({**SQUARE, "counts": [10**30]}, "do not add up"),
        ({**SQUARE, "counts": "=240ä0"}, "do not fill 6x8"),
        ({**SQUARE, "size": "6x8"}, "the mask is '6x8'"),
        ({**SQUARE, "size": None}, "the mask is None"),
        ({**SQUARE, "size": [8, 6]}, r"the mask is \(8, 6\)"),
    ],
)
def test_anything_but_a_mask_is_refused_in_one_line(rle: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"^file\.json: .*{message}") as error:
        from_coco(rle, (6, 8), "file.json")
    assert "\n" not in str(error.value) and ";" in str(error.value)


def test_bytes_are_counts_too() -> None:
    """In the form of pycocotools; JSON has no bytes."""
    assert from_coco({**SQUARE, "counts": b"=240g0"}, (6, 8), "x") == from_coco(SQUARE, (6, 8), "x") == b"=240g0"
    assert coco.area({"size": [6, 8], "counts": b"=240g0"}) == 4


def test_uncompressed_counts_and_null() -> None:
    square = np.zeros((2, 3), np.uint8, order="F")
    square[0, 1] = 1
    raw = from_coco({"size": [2, 3], "counts": [2, 1, 3]}, (2, 3), "x")
    assert np.array_equal(coco.decode({"size": [2, 3], "counts": raw}), square)
    assert coco.decode({"size": [2, 3], "counts": from_coco(None, (2, 3), "x")}).sum() == 0
    with pytest.raises(InputError, match="add up"):
        from_coco({"size": [2, 3], "counts": [2, 1]}, (2, 3), "x")


def test_errors_of_settings_list_the_settings() -> None:
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
