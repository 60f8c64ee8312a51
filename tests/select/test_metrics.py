"""J and F: hand-counted cases, the benchmark's plain code written out again, real masks."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import plain_scores
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from osvos import write_osvos
from pycocotools import mask as coco
from skimage.morphology import disk

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks, encode
from rvos_select.evaluation import Scope, evaluate_pngs, evaluate_selections
from rvos_select.merging.merge import merge
from rvos_select.metrics import METRICS, ExpressionScores, f, j
from rvos_select.metrics.boundary import boundary, frame_f, tolerance
from rvos_select.metrics.metric import FrameMetrics
from rvos_select.metrics.region_contour import REGION_CONTOUR
from rvos_select.metrics.scores import score
from rvos_select.metrics.silhouette import Silhouette, _spread, j_and_f
from rvos_select.metrics.slices import Facts, mean_share, slice_keys
from rvos_select.metrics.table import ALSO


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
        assert f(a, b) == pytest.approx([plain_scores.f_measure(prediction[0], truth[0]) if contour is None else contour])


def test_boundary_of_one_pixel_and_of_a_border_mask() -> None:
    """A pixel's boundary is itself and its left, upper and upper-left neighbour; the corner pixel has fewer."""
    mask = np.zeros((4, 5), bool)
    mask[2, 2] = True
    assert np.argwhere(boundary(mask)).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    corner = np.zeros((4, 5), bool)
    corner[3, 4] = True
    assert np.argwhere(boundary(corner)).tolist() == np.argwhere(plain_scores.boundary(corner)).tolist()
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
        assert np.array_equal(boundary(a), plain_scores.boundary(a))
        assert frame_f(a, b) == pytest.approx(plain_scores.f_measure(a, b), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=4, max_dims=4, max_side=7).map(lambda s: (2, *s[1:]))))
def test_runs_and_pixels_agree(masks: np.ndarray) -> None:
    a, b = (RleMasks.from_dense(masks[i : i + 1]) for i in (0, 1))
    assert j(a, b) == pytest.approx(j(masks[0], masks[1]), abs=1e-12)
    assert f(a, b) == pytest.approx(f(masks[0], masks[1]), abs=1e-12)
    plain = [plain_scores.f_measure(x, y) for x, y in zip(masks[0], masks[1])]
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
    scores = ExpressionScores([REGION_CONTOUR])
    for key, value, kind in (("a/0", (1.0, 1.0), "motion"), ("a/1", (0.5, 0.0), "static"), ("b/0", None, "motion")):
        scores.add(key, value and (value,), kind)
    table = scores.table()
    assert (table["j"], table["f"], table["jf"]) == pytest.approx((0.5, 1 / 3, 5 / 12))
    assert table["missing"] == ["b/0"]
    assert table["kinds"]["motion"] == pytest.approx({"j": 0.5, "f": 0.5, "jf": 0.5, "count": 2})


GOLDEN = Path(__file__).with_name("golden_osvos.json")


def test_real_tracks_against_real_masks(real_data: Path, tmp_path: Path) -> None:
    """The golden numbers are the official procedure's, which the file itself says; four of ten videos, to be quick."""
    golden, videos = json.loads(GOLDEN.read_text()), ("dog", "bmx-trees", "car-shadow", "scooter-black")
    assert "evaluate_bench.py --golden" in golden["made"]
    osvos = write_osvos(real_data, tmp_path, videos=videos)
    rows = evaluate_selections(osvos.selections, [osvos.cache], root=osvos.root, scope=Scope(videos=videos))["expressions"]
    assert rows.keys() == {key for key in golden["expressions"] if key.split("/")[0] in videos}
    for key, row in rows.items():
        assert row == pytest.approx(golden["expressions"][key], abs=1e-9)
    assert golden["j"] == pytest.approx(np.mean([row["j"] for row in golden["expressions"].values()]), abs=1e-12)


def test_the_golden_numbers_are_the_plain_codes(real_data: Path, tmp_path: Path) -> None:
    """One video of them, made again."""
    osvos = write_osvos(real_data, tmp_path, videos=("dog",))
    pngs = merge(osvos.selections, [osvos.cache], tmp_path / "png")
    meta, masks = (json.loads((osvos.root / "valid_u" / f).read_text()) for f in ("meta_expressions.json", "mask_dict.json"))
    plain = plain_scores.evaluate(pngs, {"dog": meta["videos"]["dog"]}, masks)
    golden = json.loads(GOLDEN.read_text())["expressions"]["dog/0"]
    assert plain["dog/0"] == pytest.approx((golden["j"], golden["f"]), abs=1e-12)
    scores = evaluate_pngs("mevis", osvos.root, "valid_u", pngs, scope=Scope(videos=["dog"]))
    assert scores["expressions"]["dog/0"] == pytest.approx(golden, abs=1e-9)


def both(mask: np.ndarray) -> tuple[Silhouette, Silhouette]:
    """Of its runs and of its pixels."""
    return Silhouette.of_runs(encode(mask), mask.shape), Silhouette.of_pixels(mask.astype(np.uint8) * 255)


def placed(silhouette: Silhouette, bits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels of the frame from a silhouette's bits, one at a time."""
    out = np.zeros(size, bool)
    for w, c in np.ndindex(bits.shape):
        for b in range(64):
            if int(bits[w, c]) >> b & 1:
                y, x = silhouette.top + 64 * w + b, silhouette.left + c
                if 0 <= y < size[0] and 0 <= x < size[1]:
                    out[y, x] = True
    return out


SIZES = [(96, 160), (33, 57), (240, 320), (160, 90), (1, 40), (40, 1), (2, 2), (1, 1), (63, 64), (64, 64), (65, 3), (130, 20)]


@pytest.mark.parametrize("size", SIZES)
def test_bits_are_the_plain_code(size: tuple[int, int]) -> None:
    """Smooth shapes, some cut by the border or shifted a little, and noise, whose runs go on from column to column."""
    rng = np.random.default_rng(sum(size))
    for turn in range(25):
        a, b = blob(rng, size), blob(rng, size)
        if turn % 3 == 0:
            b = np.roll(a, rng.integers(-4, 5, 2), (0, 1))
        if turn % 5 == 0:
            a = rng.random(size) < 0.4
        pairs = []
        for mask in (a, b):
            runs, pixels = both(mask)
            assert np.array_equal(runs.mask, pixels.mask) and np.array_equal(runs.edge, pixels.edge)
            assert (runs.left, runs.top, runs.area) == (pixels.left, pixels.top, mask.sum())
            assert runs.length == pixels.length == plain_scores.boundary(mask).sum()
            pairs.append(runs)
        region, contour = j_and_f(*pairs)
        assert region == pytest.approx(plain_scores.iou(b[None], a[None])[0], abs=1e-12)
        assert contour == pytest.approx(plain_scores.f_measure(a, b), abs=1e-12)
        assert j_and_f(*pairs[::-1]) == pytest.approx((region, contour), abs=1e-15)


@pytest.mark.parametrize("size", [(70, 75), (1, 9), (9, 1)])
def test_bits_lie_where_the_pixels_are(size: tuple[int, int]) -> None:
    mask = blob(np.random.default_rng(1), size)
    for silhouette in both(mask):
        assert np.array_equal(placed(silhouette, silhouette.mask, size), mask)
        assert np.array_equal(placed(silhouette, silhouette.edge, size), plain_scores.boundary(mask))


@pytest.mark.parametrize("reach", [1, 2, 8, 18, 71])
def test_near_is_the_disk_around_the_edge(reach: int) -> None:
    """71 pixels, of a frame of 4320x7680, are more than a word has bits."""
    element = disk(reach).astype(np.uint8)
    height, width = 4 * reach + 9, 4 * reach + 7
    mask = np.zeros((height, width), bool)
    mask[2 * reach : 2 * reach + 5, 2 * reach : 2 * reach + 4] = True
    edge = plain_scores.boundary(mask)
    edge = np.pad(edge, ((0, -height % 64), (0, 0)))
    bits = np.ascontiguousarray(np.packbits(edge.T, axis=1, bitorder="little")).view("<u8").T.astype(np.uint64, order="C")
    spread = _spread(bits, reach)
    expected = cv2.dilate(edge.astype(np.uint8), element) > 0
    assert np.array_equal(np.unpackbits(spread.T.copy().view(np.uint8), axis=1, bitorder="little").T > 0, expected)


@settings(max_examples=80, deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9).map(lambda s: (2, *s[1:]))))
def test_bits_and_pixels_agree(masks: np.ndarray) -> None:
    """Also with the slower route over `boundary.f` and `region.j`."""
    dense = j(masks[:1], masks[1:])[0], f(masks[:1], masks[1:])[0]
    for pair in zip(*(both(mask) for mask in masks)):
        assert j_and_f(*pair) == pytest.approx(dense, abs=1e-12)


def test_runs_of_length_zero_change_nothing() -> None:
    """Two objects that touch, as a foreign encoder may write them: 5 background, 3 and 2 foreground with 0 between, 10 after."""
    raw = coco.frPyObjects({"size": [4, 5], "counts": [5, 3, 0, 2, 0, 0, 10]}, 4, 5)["counts"]
    plain = coco.frPyObjects({"size": [4, 5], "counts": [5, 5, 10]}, 4, 5)["counts"]
    a, b = (Silhouette.of_runs(r, (4, 5)) for r in (raw, plain))
    assert np.array_equal(a.mask, b.mask) and a.area == b.area == 5
    assert j_and_f(a, b) == (1, 1)


def items(value: float, targets: int, empty: bool) -> tuple[tuple[float, ...], ...]:
    """An expression of two frames with J and F of `value`; unless `empty`, one of its predictions has pixels."""
    frames = np.array([[value, value, 0.0], [value, value, float(not empty)]])
    return FrameMetrics(METRICS["video"]).items(frames, targets)


def facts(words: int = 3, targets: int | None = 1, frames: int = 10, share: float | None = 0.1, kind: str | None = None) -> Facts:
    return Facts(words, targets, frames, share, kind)


def test_answers_to_expressions_without_target() -> None:
    """N-acc: one of three is answered with nothing, one is missing; T-acc: two of three are answered with something."""
    scores = ExpressionScores()
    for key, targets, empty in (
        ("a/0", 0, True),
        ("a/1", 0, False),
        ("a/2", 0, None),
        ("b/0", 1, False),
        ("b/1", 2, False),
        ("b/2", 1, True),
    ):
        scores.add(key, None if empty is None else items(0.5, targets, empty), None, facts(targets=targets))
    table = scores.table()
    assert (table["n_acc"], table["t_acc"]) == pytest.approx((1 / 3, 2 / 3))


def test_no_accuracy_is_made_up() -> None:
    """Every expression has a target: neither is there; none has: no T-acc; nothing is known of it: no row of either."""
    scores = ExpressionScores()
    scores.add("a/0", items(1.0, 1, empty=False), None, facts())
    assert not {"n_acc", "t_acc"} & scores.table().keys()
    scores.add("b/0", None, None)
    assert not {"n_acc", "t_acc"} & scores.table().keys()
    scores = ExpressionScores()
    scores.add("a/0", items(1.0, 0, empty=True), None, facts(targets=0))
    table = scores.table()
    assert table["n_acc"] == 1 and "t_acc" not in table


def test_slices_by_hand() -> None:
    """Limits of each part, and every expression in one part of each attribute."""
    rows = {
        "a/0": facts(words=5, frames=50, share=1 / 300 - 1e-9, kind="motion"),
        "a/1": facts(words=6, frames=51, share=1 / 300, targets=2),
        "a/2": facts(words=10, frames=100, share=0.03 - 1e-9, kind="static"),
        "a/3": facts(words=11, frames=101, share=0.03, targets=0),
        "a/4": facts(words=1, frames=1, share=None, targets=0),
        "b": None,
    }
    scores = ExpressionScores([REGION_CONTOUR])
    for i, (key, known) in enumerate(rows.items()):
        scores.add(key, ((i / 10, 0.0),), None, known)
    slices = scores.table()["slices"]
    counts = {name: {part: row["count"] for part, row in parts.items()} for name, parts in slices.items()}
    assert counts == {
        "kind": {"motion": 1, "static": 1, "unknown": 4},
        "targets": {"single": 2, "multi": 1, "none": 2, "unknown": 1},
        "words": {"1-5": 2, "6-10": 2, "11+": 1, "unknown": 1},
        "size": {"small": 1, "medium": 2, "large": 1, "none": 1, "unknown": 1},
        "frames": {"1-50": 2, "51-100": 2, "101+": 1, "unknown": 1},
    }
    assert slices["words"]["1-5"] == pytest.approx({"j": 0.2, "f": 0, "jf": 0.1, "count": 2})
    for known, attributes in ((facts(), {"targets", "words", "size", "frames"}), (None, set())):
        one = ExpressionScores([REGION_CONTOUR])
        one.add("a/0", ((1.0, 1.0),), None, known)
        assert one.table().get("slices", {}).keys() == attributes


def test_objects_are_no_expressions() -> None:
    """They name nothing; of those that no text names nothing is said of the text."""
    slices = slice_keys({"a/0/1": Facts(0, None, 4, 0.5, None, 1), "b/0/1": Facts(6, None, 4, 0.5, None, 2), "c": None})
    assert slices == {
        "objects": {"multi": ["b/0/1"], "single": ["a/0/1"], "unknown": ["c"]},
        "words": {"6-10": ["b/0/1"], "none": ["a/0/1"], "unknown": ["c"]},
        "size": {"large": ["a/0/1", "b/0/1"], "unknown": ["c"]},
        "frames": {"1-50": ["a/0/1", "b/0/1"], "unknown": ["c"]},
    }


def test_the_mean_share_leaves_out_frames_without_pixels() -> None:
    assert mean_share([0, 2, 0, 4], (4, 5)) == 3 / 20
    assert mean_share([0, 0], (4, 5)) is mean_share([], (4, 5)) is None


def test_the_pooled_f1_of_pixels_by_hand() -> None:
    """Frames of 4, 2 and 0 predicted pixels, of which 3, 0 and 0 are right, against 4, 1 and 0: 2 * 3 / (6 + 5)."""
    prediction, truth = np.zeros((2, 3, 8, 8), bool)
    prediction[0, 1, 1:5], truth[0, 1, 2:6] = True, True
    prediction[1, 5, 0:2], truth[1, 7, 7] = True, True
    metrics = FrameMetrics(ALSO["sola"])
    masks = [RleMasks.from_dense(pixels[None]) for pixels in (prediction, truth)]
    (item,) = metrics.score(masks[0], masks[1], np.ones(3, bool))
    assert item == pytest.approx((2 * 3 / (6 + 5),))
    assert metrics.score(masks[0], masks[1], np.array([True, False, True]))[0] == pytest.approx((2 * 3 / (4 + 4),))
    empty = RleMasks.empty(1, 3, (8, 8))
    assert metrics.score(empty, empty, np.ones(3, bool)) == ((0.0,),)
