"""mAP, IoU and precision of single frames: hand-counted cases, COCO's own evaluation, MTTR's plain code written out again."""

from __future__ import annotations

import contextlib
import io
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_select.metrics.average_precision import MapMode, mean_average_precision
from rvos_select.metrics.detections import Detections, smooth_iou
from rvos_select.metrics.image_level import ImageScores

Sample = tuple[str, np.ndarray, np.ndarray, np.ndarray]
"""Key, masks (Q, H, W), scores (Q,), truth (H, W)."""


def box(rows: slice, columns: slice) -> np.ndarray:
    out = np.zeros((20, 30), bool)
    out[rows, columns] = True
    return out


EMPTY, PIXEL, SQUARE = np.zeros((20, 30), bool), box(slice(3, 4), slice(7, 8)), box(slice(2, 12), slice(5, 15))


def rle(masks: np.ndarray) -> RleMasks:
    return RleMasks.from_dense(masks[:, None])


def scored(samples: list[Sample], mode: MapMode = "all-queries") -> dict:
    out = ImageScores(mode)
    for key, masks, scores, truth in samples:
        candidates = RleMasks.empty(0, 1, truth.shape) if len(masks) == 0 else rle(masks)
        out.add(key, Detections.count(candidates, scores, rle(truth[None])))
    return out.table()


def alone(mask: np.ndarray, truth: np.ndarray) -> dict:
    return scored([("x", mask[None], np.array([0.7]), truth)])


@pytest.mark.parametrize(
    ("mask", "truth", "iou", "overall", "passed", "average"),
    [
        # Nothing there and nothing drawn is right; COCO never finds an empty truth.
        (EMPTY, EMPTY, 1, 1, 5, 0),
        (EMPTY, SQUARE, 0, 0, 0, 0),
        (SQUARE, EMPTY, 0, 0, 0, 0),
        (PIXEL, PIXEL, 1, 1, 5, 1),
        (PIXEL, SQUARE, 0.01, 0.01, 0, 0),
        (SQUARE, SQUARE, 1, 1, 5, 1),
        # 6 of 10 rows: above 0.5, and 3/5 in single precision is above 0.6; COCO finds it at 0.50, 0.55 and 0.60 of ten.
        (box(slice(2, 8), slice(5, 15)), SQUARE, 0.6, 0.6, 2, 0.3),
        # Half is not above 0.5, but COCO's thresholds are reached, not passed.
        (box(slice(2, 7), slice(5, 15)), SQUARE, 0.5, 0.5, 0, 0.1),
    ],
)
def test_hand_cases(mask: np.ndarray, truth: np.ndarray, iou: float, overall: float, passed: int, average: float) -> None:
    table = alone(mask, truth)
    assert table["mean_iou"] == table["samples"]["x"] == pytest.approx(iou, abs=1e-7)
    assert table["overall_iou"] == pytest.approx(overall)
    assert list(table["precision"].values()) == [1] * passed + [0] * (5 - passed)
    assert table["map"] == pytest.approx(average)


def test_two_samples_by_hand() -> None:
    """One found by its second mask at 0.8, one by its best at 0.9; overall IoU weighs pixels, mean IoU samples."""
    samples = [
        ("a", np.stack([SQUARE, EMPTY]), np.array([0.8, 0.3]), SQUARE),
        ("b", np.stack([SQUARE, PIXEL]), np.array([0.4, 0.9]), SQUARE),
    ]
    table = scored(samples)
    assert table["samples"] == pytest.approx({"a": 1, "b": 0.01})
    assert table["overall_iou"] == pytest.approx(101 / 200)
    assert table["mean_iou"] == pytest.approx(0.505)
    assert set(table["precision"].values()) == {0.5}
    # By score: b's pixel wrong, a right (precision 1/2), b's square right (2/3), a's empty one wrong: 2/3 at every recall.
    assert table["map"] == pytest.approx(2 / 3)
    # The best alone: wrong, right; 51 of 101 recalls are reached, with precision 1/2.
    assert scored(samples, "top1")["map"] == pytest.approx(51 / 101 / 2)


def test_of_equal_scores_the_last_is_best() -> None:
    """As MTTR's sort leaves it."""
    assert scored([("a", np.stack([EMPTY, SQUARE]), np.array([0.5, 0.5]), SQUARE)])["mean_iou"] == 1
    assert scored([("a", np.stack([SQUARE, EMPTY]), np.array([0.5, 0.5]), SQUARE)], "top1")["map"] == 0


def test_no_masks_and_no_answer() -> None:
    none = (np.zeros((0, 20, 30), bool), np.zeros(0))
    assert scored([("a", *none, SQUARE), ("b", *none, EMPTY)])["samples"] == pytest.approx({"a": 0, "b": 1}, abs=1e-6)
    out = ImageScores()
    out.add("a", Detections.count(rle(SQUARE[None]), np.array([1.0]), rle(SQUARE[None])))
    out.add_missing("b", 0)
    out.add_missing("c", 300)
    table = out.table()
    assert table["missing"] == ["b", "c"]
    assert (table["mean_iou"], table["overall_iou"]) == pytest.approx((1 / 3, 0.25))
    assert table["precision"]["0.5"] == pytest.approx(1 / 3)
    # Recall ends at 1/3: 34 of 101 recalls.
    assert table["map"] == pytest.approx(34 / 101)


def test_what_cannot_be_scored() -> None:
    with pytest.raises(InputError, match="no sample"):
        ImageScores().table()
    out = ImageScores()
    out.add_missing("a", 3)
    with pytest.raises(ValueError, match="twice"):
        out.add_missing("a", 3)
    with pytest.raises(ValueError, match="NaN"):
        Detections(np.array([np.nan]), np.array([0]), np.array([0]), 0)
    with pytest.raises(ValueError, match="more shared pixels"):
        Detections(np.array([0.5]), np.array([3]), np.array([4]), 2)
    with pytest.raises(ValueError, match="one length"):
        Detections(np.array([0.5]), np.array([3, 3]), np.array([4]), 9)
    with pytest.raises(ValueError, match="expected"):
        Detections.count(rle(SQUARE[None]), np.array([0.5]), RleMasks.empty(1, 1, (20, 31)))


@pytest.mark.parametrize("mode", ["all-queries", "top1"])
def test_the_truth_as_prediction_scores_one(mode: MapMode) -> None:
    table = scored(
        [(f"{i:03d}", truth[None], np.array([0.5]), truth) for i, truth in enumerate([PIXEL, SQUARE, ~EMPTY] * 4)], mode
    )
    assert table["map"] == pytest.approx(1)
    assert {table["overall_iou"], table["mean_iou"], *table["precision"].values()} == {1.0}


def random_samples(rng: np.random.Generator, count: int, queries: int) -> list[Sample]:
    """Boxes near true boxes, some masks and truths empty, many scores equal, keys in no order, some samples unanswered."""
    out = []
    for i in rng.permutation(count).tolist():
        corner, side = rng.integers(0, 12, 2), rng.integers(0, 9)
        truth = box(slice(corner[0], corner[0] + side), slice(corner[1], corner[1] + side))
        masks = np.zeros((int(rng.integers(0, queries + 1)), 20, 30), bool)
        for mask in masks:
            y, x = corner + rng.integers(-1, 2, 2) * (rng.random() < 0.7)
            h, w = np.maximum(side + rng.integers(-2, 3, 2) * (rng.random() < 0.7), 0)
            mask[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = True
        out.append((f"v_{i}_f_1", masks, rng.integers(0, 12, len(masks)) / 12, truth))
    return out


def plain_map(samples: list[Sample], mode: MapMode) -> float:
    """COCOeval as MTTR's and ReferFormer's trainers call it."""
    truth, detections = COCO(), []
    images = [{"id": key, "height": 20, "width": 30} for key, *_ in samples]
    notes = []
    for number, (key, masks, scores, true) in enumerate(samples, 1):
        mask = rle(true[None])
        area = float(mask.area()[0, 0])
        notes.append({"id": number, "image_id": key, "category_id": 1, "segmentation": mask.at(0, 0), "area": area, "iscrowd": 0})
        order = sorted(range(len(masks)), key=lambda i: scores[i])[-1:] if mode == "top1" else range(len(masks))
        detections += [
            {"image_id": key, "category_id": 1, "segmentation": rle(masks[i][None]).at(0, 0), "score": scores[i]} for i in order
        ]
    truth.dataset = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "dummy_class"}], "info": {}}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(detections), iouType="segm")
        run.params.useCats = 0
        run.evaluate()
        run.accumulate()
        run.summarize()
    return float(run.stats[0])


def plain_iou(samples: list[Sample]) -> tuple[list[float], float, float]:
    """`calculate_precision_at_k_and_iou_metrics` and `compute_iou` of MTTR; unlike there, no mask is an empty mask."""
    counters = dict.fromkeys([0.5, 0.6, 0.7, 0.8, 0.9], 0)
    total_inter = total_union = 0.0
    ious = []
    for _, masks, scores, truth in samples:
        best = sorted(range(len(masks)), key=lambda i: scores[i])[-1:]
        mask = masks[best[0]] if best else np.zeros_like(truth)
        outputs, labels = (torch.tensor(m.astype(np.uint8))[None] for m in (mask, truth))
        outputs = outputs.int()
        inter = (outputs & labels).float().sum((1, 2))
        union = (outputs | labels).float().sum((1, 2))
        iou = ((inter + 1e-6) / (union + 1e-6)).item()
        for threshold in counters:
            counters[threshold] += iou > threshold
        total_inter += inter.item()
        total_union += union.item()
        ious.append(iou)
    return [c / len(ious) for c in counters.values()], total_inter / total_union, float(np.mean(ious))


@pytest.mark.parametrize(("seed", "queries"), list(itertools.product(range(6), (1, 3, 8))))
def test_equal_to_coco_and_to_mttr(seed: int, queries: int) -> None:
    samples = random_samples(np.random.default_rng(seed), 60, queries)
    precision, overall, mean = plain_iou(samples)
    for mode in ("all-queries", "top1"):
        table = scored(samples, mode)
        assert table["map"] == pytest.approx(plain_map(samples, mode), abs=1e-12)
        assert list(table["precision"].values()) == precision
        assert (table["overall_iou"], table["mean_iou"]) == pytest.approx((overall, mean), abs=1e-12)


def test_only_a_hundred_masks_count() -> None:
    """The 101st by score is the only right one: COCO does not see it, mean IoU does not choose it."""
    masks = np.stack([PIXEL] * 100 + [SQUARE])
    for best in (0.0, 1.0):
        sample = [("a", masks, np.append(np.linspace(0.2, 0.8, 100), best), SQUARE)]
        assert plain_map(sample, "all-queries") == pytest.approx(best)
        assert scored(sample)["map"] == pytest.approx(best)


@pytest.mark.parametrize("top", [1, 2, 5, 10, 1000, 76800])
def test_iou_is_single_precision(top: int) -> None:
    for inter in {0, 1, top // 2, top * 3 // 5, top * 7 // 10, top * 9 // 10, top}:
        expected = ((torch.tensor(float(inter)) + 1e-6) / (torch.tensor(float(top)) + 1e-6)).item()
        assert smooth_iou(inter, top) == expected


def test_without_any_mask_map_is_zero() -> None:
    assert mean_average_precision([(np.zeros(0), np.zeros(0))] * 3) == 0


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(bool, hnp.array_shapes(min_dims=4, max_dims=4, max_side=6)),
    st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=6, max_size=6),
)
def test_runs_and_pixels_agree(masks: np.ndarray, scores: list[float]) -> None:
    """Every mask (Q, T, H, W) in every frame, the first as the truth."""
    runs, values = RleMasks.from_dense(masks), np.array(scores[: len(masks)])
    for t in range(masks.shape[1]):
        detections = Detections.count(runs, values, runs.select([0]), t)
        truth = masks[0, t]
        dense = Detections(values, (masks[:, t] & truth).sum((1, 2)), masks[:, t].sum((1, 2)), int(truth.sum()))
        assert np.array_equal(detections.inter, dense.inter) and np.array_equal(detections.area, dense.area)
        assert detections.truth == dense.truth
        assert np.array_equal(detections.union, (masks[:, t] | truth).sum((1, 2)))
        tables = []
        for part in (detections, dense):
            out = ImageScores()
            out.add("x", part)
            tables.append(out.table())
        assert tables[0] == tables[1]
