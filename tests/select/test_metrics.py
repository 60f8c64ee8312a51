"""J and F: hand-counted cases, the benchmark's plain code written out again, real masks."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.morphology import disk

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks, from_coco
from rvos_select.metrics import Scores, f, j
from rvos_select.metrics.boundary import boundary, frame_f, tolerance
from rvos_select.metrics.scores import score


def plain_boundary(mask: np.ndarray) -> np.ndarray:
    """`seg2bmap` at the mask's own size, as published."""
    seg = mask.astype(bool)
    e, s, se = np.zeros_like(seg), np.zeros_like(seg), np.zeros_like(seg)
    e[:, :-1] = seg[:, 1:]
    s[:-1, :] = seg[1:, :]
    se[:-1, :-1] = seg[1:, 1:]
    b = seg ^ e | seg ^ s | seg ^ se
    b[-1, :] = seg[-1, :] ^ e[-1, :]
    b[:, -1] = seg[:, -1] ^ s[:, -1]
    b[-1, -1] = 0
    return b


def plain_f(mask: np.ndarray, truth: np.ndarray) -> float:
    """`f_measure` over the whole frame with skimage's disk, as published."""
    reach = np.ceil(0.008 * np.linalg.norm(mask.shape))
    ours, theirs = plain_boundary(mask), plain_boundary(truth)
    element = disk(reach).astype(np.uint8)
    ours_wide, theirs_wide = (cv2.dilate(b.astype(np.uint8), element) for b in (ours, theirs))
    n, m = ours.sum(), theirs.sum()
    if n == 0 and m > 0:
        precision, recall = 1.0, 0.0
    elif n > 0 and m == 0:
        precision, recall = 0.0, 1.0
    elif n == 0 and m == 0:
        precision, recall = 1.0, 1.0
    else:
        precision, recall = (ours * theirs_wide).sum() / float(n), (theirs * ours_wide).sum() / float(m)
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def blob(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A random smooth shape, often cut by the frame's border, sometimes empty or full."""
    noise = cv2.GaussianBlur(rng.standard_normal(size).astype(np.float32), (0, 0), rng.uniform(1, 12))
    return noise > np.quantile(noise, rng.choice([0.0, 0.3, 0.7, 0.95, 0.999])) - (rng.random() < 0.05)


def square(size: tuple[int, int], y: int, x: int, side: int) -> np.ndarray:
    out = np.zeros((1, *size), bool)
    out[0, y : y + side, x : x + side] = True
    return out


EMPTY, FULL = np.zeros((1, 20, 30), bool), np.ones((1, 20, 30), bool)


@pytest.mark.parametrize(
    ("prediction", "truth", "region", "contour"),
    [
        (EMPTY, EMPTY, 1, 1),
        (EMPTY, square((20, 30), 5, 5, 4), 0, 0),
        (square((20, 30), 5, 5, 4), EMPTY, 0, 0),
        (square((20, 30), 5, 5, 1), square((20, 30), 5, 5, 1), 1, 1),
        # A full frame has no boundary: beside an empty truth it scores F 1 and J 0, beside an object F 0.
        (FULL, EMPTY, 0, 1),
        (FULL, FULL, 1, 1),
        (FULL, square((20, 30), 5, 5, 4), 16 / 600, 0),
        # 4x4 squares shifted by two: 8 shared of 24; the tolerance of 20x30 is one pixel.
        (square((20, 30), 5, 5, 4), square((20, 30), 5, 7, 4), 8 / 24, None),
        (square((20, 30), 2, 2, 3), square((20, 30), 12, 20, 3), 0, 0),
    ],
)
def test_hand_cases(prediction: np.ndarray, truth: np.ndarray, region: float, contour: float | None) -> None:
    for a, b in ((prediction, truth), (RleMasks.from_dense(prediction[None]), RleMasks.from_dense(truth[None]))):
        assert j(a, b) == pytest.approx([region])
        assert f(a, b) == pytest.approx([plain_f(prediction[0], truth[0]) if contour is None else contour])


def test_boundary_of_one_pixel_and_of_a_border_mask() -> None:
    """A pixel's boundary is itself and its left, upper and upper-left neighbour; the corner pixel has fewer."""
    mask = np.zeros((4, 5), bool)
    mask[2, 2] = True
    assert np.argwhere(boundary(mask)).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    corner = np.zeros((4, 5), bool)
    corner[3, 4] = True
    assert np.argwhere(boundary(corner)).tolist() == np.argwhere(plain_boundary(corner)).tolist()
    assert not boundary(np.ones((4, 5), bool)).any()


def test_tolerance_is_the_benchmarks() -> None:
    assert tolerance((480, 854)) == 8
    assert tolerance((96, 160)) == 2
    assert tolerance((1080, 1920)) == 18


@pytest.mark.parametrize("size", [(96, 160), (33, 57), (240, 320), (160, 90), (1, 40), (2, 2)])
def test_fast_f_is_the_plain_one(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(size))
    for _ in range(25):
        a, b = blob(rng, size), blob(rng, size)
        if rng.random() < 0.5:
            b = np.roll(a, rng.integers(-4, 5, 2), (0, 1))
        assert np.array_equal(boundary(a), plain_boundary(a))
        assert frame_f(a, b) == pytest.approx(plain_f(a, b), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=4, max_dims=4, max_side=7).map(lambda s: (2, *s[1:]))))
def test_runs_and_pixels_agree(masks: np.ndarray) -> None:
    a, b = (RleMasks.from_dense(masks[i : i + 1]) for i in (0, 1))
    assert j(a, b) == pytest.approx(j(masks[0], masks[1]), abs=1e-12)
    assert f(a, b) == pytest.approx(f(masks[0], masks[1]), abs=1e-12)
    plain = [plain_f(x, y) for x, y in zip(masks[0], masks[1])]
    assert f(a, b) == pytest.approx(plain, abs=1e-9)


@given(st.integers(0, 9))
@settings(max_examples=5, deadline=None)
def test_a_mask_scores_one_against_itself(seed: int) -> None:
    mask = np.stack([blob(np.random.default_rng(seed + i), (40, 60)) for i in range(3)])
    assert (j(mask, mask) == 1).all()
    assert (f(mask, mask) == 1).all()


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="same frames and size"):
        j(EMPTY, np.zeros((1, 20, 31), bool))
    with pytest.raises(ValueError, match="same frames and size"):
        f(RleMasks.empty(2, 1, (20, 30)), RleMasks.empty(2, 1, (20, 30)))


def test_only_annotated_frames_count() -> None:
    truth = np.concatenate([square((20, 30), 5, 5, 4), EMPTY, EMPTY])[None]
    prediction = np.concatenate([square((20, 30), 5, 5, 4), EMPTY, FULL])[None]
    masks = RleMasks.from_dense(prediction), RleMasks.from_dense(truth)
    assert score(*masks, np.array([True, True, False])) == (1.0, 1.0)
    assert score(*masks, np.ones(3, bool)) == pytest.approx((2 / 3, 1.0))
    with pytest.raises(InputError, match="no annotated frame"):
        score(*masks, np.zeros(3, bool))


def test_means_run_over_expressions_not_videos() -> None:
    scores = Scores()
    for key, value, kind in (("a/0", (1.0, 1.0), "motion"), ("a/1", (0.5, 0.0), "static"), ("b/0", None, "motion")):
        scores.add(key, value, kind)
    table = scores.table()
    assert (table["j"], table["f"], table["jf"]) == pytest.approx((0.5, 1 / 3, 5 / 12))
    assert table["missing"] == ["b/0"]
    assert table["kinds"]["motion"] == pytest.approx({"j": 0.5, "f": 0.5, "jf": 0.5, "count": 2})


GOLDEN = {"dog": (0.88192641, 0.85476344), "blackswan": (0.94640231, 0.97977409)}
"""J and F of the first object over 12 frames."""


def test_real_tracks_against_real_masks(real_data: Path) -> None:
    """OSVOS's masks of a real object: the plain code over the whole frame gives the same J and F."""
    found = {}
    for video in GOLDEN:
        pair = []
        for name in ("davis17-osvos-tracks", "mevis-davis"):
            meta = json.loads((real_data / name / "valid_u/meta_expressions.json").read_text())["videos"][video]
            key = str(meta["expressions"]["0"]["anno_id"][0])
            rows = json.loads((real_data / name / "valid_u/mask_dict.json").read_text())[key][:12]
            size = tuple(next(r for r in rows if r)["size"])
            pair.append(RleMasks.from_bytes([[from_coco(r, size, key) for r in rows]], 12, size))
        region, contour = j(*pair), f(*pair)
        a, b = (p.dense()[0] for p in pair)
        assert contour == pytest.approx([plain_f(x, y) for x, y in zip(a, b)], abs=1e-9)
        assert region == pytest.approx((a & b).sum((1, 2)) / (a | b).sum((1, 2)), abs=1e-12)
        found[video] = (region.mean(), contour.mean())
        assert found[video] == pytest.approx(GOLDEN[video], abs=1e-6)
