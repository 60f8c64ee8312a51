"""Masks of points and boxes against transformers' Sam2Model, and the steps of SAM 2's mask generator carried out one by one.

Equality with Meta's own generator and predictor is tested with recorded values in test_sam2_golden.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import tiny_sam2
import torch
from numpy.typing import NDArray
from plain_sam2 import image_values
from torch.nn.functional import interpolate

from rvos_cache.masks import RleMasks
from rvos_cache.trackers.sam2 import generate
from rvos_cache.trackers.sam2.generate import box_nms, boxes_of, grid_points, stability
from rvos_cache.trackers.sam2.rounds import whole_masks, whole_rows
from rvos_cache.trackers.sam2.settings import BoxSettings, GridSettings
from rvos_cache.trackers.sam2.transformers_backend import TransformersBackend
from rvos_cache.types import Video

SIZE = (50, 90)


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    with tiny_sam2.without_gpu():
        yield


@lru_cache
def checkpoint() -> str:
    """One whose masks have many locations and sizes."""
    return str(tiny_sam2.tiny_sam2(tiny_sam2.fresh_folder(), seed=0, present=2, gain=2.5))


def frame() -> NDArray[np.uint8]:
    picture = np.full((*SIZE, 3), 90, np.uint8)
    picture[10:30, 10:40], picture[25:45, 50:80] = (220, 40, 40), (30, 220, 60)
    picture[:, 60:] += np.arange(30, dtype=np.uint8)[None, :, None]
    return picture


def video() -> Video:
    return Video("v", ("0",), SIZE, lambda t: frame())


def our_grid(**settings: Any) -> RleMasks:
    backend = TransformersBackend(GridSettings(checkpoint=checkpoint(), **settings))
    with backend.open(video()) as session:
        return session.grid_masks(0, backend.settings)


def library(**prompts: Any) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Logits (P, M, H, W) at the frame's size, predicted IoU (P, M) and low-resolution logits (P, M, h, w) of the image model of
    the same checkpoint."""
    from transformers import Sam2Model

    model = Sam2Model.from_pretrained(checkpoint()).eval()
    with torch.inference_mode():
        output = model(pixel_values=image_values(frame(), tiny_sam2.SIDE)[None], **prompts)
    low = output.pred_masks[0]
    logits = interpolate(low, SIZE, mode="bilinear", align_corners=False)
    return logits.numpy(), output.iou_scores[0].numpy(), low.numpy()


def points(side: int) -> torch.Tensor:
    """The grid in pixels of the model's square, (1, P, 1, 2)."""
    centres = [(i + 0.5) / side * tiny_sam2.SIDE for i in range(side)]
    return torch.tensor([[[[x, y]] for y in centres for x in centres]])


def plain_grid(side: int, predicted_iou: float, min_stability: float, offset: float, nms_iou: float) -> list[NDArray[np.bool_]]:
    """Masks by the generator's published steps, highest predicted IoU first: one point, one mask and one pair at a time."""
    logits, expected, _ = library(input_points=points(side), multimask_output=True)
    candidates: list[tuple[float, NDArray[np.bool_]]] = []
    for point in range(len(logits)):
        for logit, iou in zip(logits[point], expected[point]):
            inner, outer = (logit > offset).sum(), (logit > -offset).sum()
            if iou > predicted_iou and (min_stability == 0 or (outer and inner / outer >= min_stability)):
                candidates.append((float(iou), logit > 0))
    candidates.sort(key=lambda pair: -pair[0])
    out: list[NDArray[np.bool_]] = []
    for _, mask in candidates:
        if all(not box_iou(mask, other) > nms_iou for other in out):
            out.append(mask)
    return out


def box_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """IoU of the boxes from first to last pixel, as the generator measures them."""
    edges = []
    for mask in (a, b):
        y, x = np.nonzero(mask) if mask.any() else (np.zeros(1), np.zeros(1))
        edges.append((x.min(), y.min(), x.max(), y.max()))
    (ax, ay, aX, aY), (bx, by, bX, bY) = edges
    shared = max(0, min(aX, bX) - max(ax, bx)) * max(0, min(aY, bY) - max(ay, by))
    union = (aX - ax) * (aY - ay) + (bX - bx) * (bY - by) - shared
    return shared / union if union else float("nan")


@pytest.mark.parametrize(
    ("side", "predicted_iou", "min_stability", "offset", "nms_iou"),
    [(5, 0.0, 0.3, 1.0, 0.7), (5, 0.4, 0.0, 1.0, 0.7), (4, 0.0, 0.5, 0.2, 0.3), (4, 0.0, 0.3, 1.0, 0.95)],
)
def test_a_grid_gives_the_masks_of_the_published_steps(
    side: int, predicted_iou: float, min_stability: float, offset: float, nms_iou: float
) -> None:
    expected = plain_grid(side, predicted_iou, min_stability, offset, nms_iou)
    masks = our_grid(
        points_per_side=side, predicted_iou=predicted_iou, stability=min_stability, stability_offset=offset, nms_iou=nms_iou,
        points_per_batch=7,
    )  # fmt: skip
    assert 1 < len(expected) < 3 * side * side
    # A logit near zero may fall on either side.
    pixels = masks.dense()[:, 0]
    assert pixels.shape[0] == len(expected) and (pixels != np.stack(expected)).mean() < 1e-3


def test_the_batches_of_points_do_not_change_the_masks() -> None:
    settings = {"points_per_side": 4, "predicted_iou": 0, "stability": 0.3}
    small, large = (our_grid(**settings, points_per_batch=size).dense() for size in (5, 64))
    assert small.shape == large.shape and (small != large).mean() < 1e-3


def test_a_box_gives_the_library_s_mask_and_the_stability_of_its_low_resolution_logits() -> None:
    boxes = np.array([[8, 8, 42, 32], [48, 20, 83, 48], [-5, -3, 20, 60], [100, 60, 120, 70]], np.float32)
    square = boxes * np.array([tiny_sam2.SIDE / SIZE[1], tiny_sam2.SIDE / SIZE[0]] * 2, np.float32)
    logits, _, low = library(input_boxes=torch.tensor(square)[None], multimask_output=False)
    settings = BoxSettings(checkpoint=checkpoint(), stability_offset=0.5)
    with TransformersBackend(settings).open(video()) as session:
        masks, scores = session.box_masks(0, boxes, settings)
        no_masks, no_scores = session.box_masks(0, boxes[:0], settings)
        first, _ = session.box_masks(0, boxes[:1], settings)
    assert (masks.dense()[:, 0] != (logits[:, 0] > 0)).mean() < 1e-3 and (logits > 0).any((1, 2, 3)).sum() >= 3
    expected, large = ((x > 0.5).sum((1, 2, 3)) / (x > -0.5).sum((1, 2, 3)) for x in (low, logits))
    np.testing.assert_allclose(scores, expected, atol=2e-3)
    assert np.abs(expected - large).max() > 5e-3
    assert no_masks.shape == (0, 1) and no_scores.shape == (0,)
    assert (first.dense() != masks.select([0]).dense()).mean() < 1e-3


def test_a_threshold_that_no_mask_passes_gives_none() -> None:
    assert our_grid(points_per_side=2, predicted_iou=1).shape == (0, 1)
    assert our_grid(points_per_side=2, predicted_iou=0, stability=1, stability_offset=50).shape == (0, 1)


def test_points_are_the_centres_of_equal_cells() -> None:
    assert grid_points(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]


def test_stability_is_a_ratio_of_areas_and_nan_without_any() -> None:
    logits = torch.tensor([[[2.0, 2.0, 0.5, -0.5]], [[-3.0, -3.0, -3.0, -3.0]], [[1.0, 1.5, -1.0, -0.9]]])
    assert stability(logits, 1.0).tolist() == [0.5, pytest.approx(float("nan"), nan_ok=True), pytest.approx(1 / 3)]


def test_boxes_run_from_first_to_last_pixel() -> None:
    masks = torch.zeros(3, 6, 9, dtype=torch.bool)
    masks[0, 2:5, 3:8] = masks[1, 5, 8] = True
    assert boxes_of(masks).tolist() == [[3, 2, 7, 4], [8, 5, 8, 5], [0, 0, 0, 0]]


def test_suppression_keeps_the_best_of_boxes_that_overlap() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 7], [30, 0, 40, 10], [5, 5, 5, 5], [5, 5, 5, 5]], np.float32)
    scores = np.array([0.5, 0.9, 0.4, 0.9, 0.1, 0.2], np.float32)
    # IoU 0.8 is above the limit, 0.875 too; boxes without area drop none, and equal scores keep their order.
    assert box_nms(boxes, scores, 0.79).tolist() == [1, 3, 5, 4]
    assert box_nms(boxes, scores, 0.8).tolist() == [1, 3, 0, 5, 4]
    assert box_nms(boxes[:0], scores[:0], 0.5).tolist() == []


def test_parts_found_by_a_matrix_product_are_those_of_runs() -> None:
    """As on a GPU."""
    generator = np.random.default_rng(0)
    masks = np.zeros((12, 90, 70), bool)
    for mask in masks[1:]:
        y, x, height, width = generator.integers(0, 45), generator.integers(0, 40), *generator.integers(5, 45, 2)
        mask[y : y + height, x : x + width] = True
    runs = RleMasks.from_dense(masks[:, None])
    shared = generate.shared_pixels(torch.from_numpy(masks)).numpy()
    assert (shared == (masks[:, None] & masks[None]).sum((2, 3))).all()
    rows = whole_rows(shared, shared.diagonal(), 0.4)
    assert runs.select(rows) == whole_masks(runs, 0.4) and 1 < len(rows) < 11


@pytest.mark.parametrize("part", [0.5, 0.98])
def test_whole_masks_of_a_grid_on_a_gpu_are_those_of_runs(monkeypatch: pytest.MonkeyPatch, part: float) -> None:
    values: dict[str, Any] = {"points_per_side": 6, "predicted_iou": 0, "stability": 0, "nms_iou": 1, "part": part}
    backend = TransformersBackend(GridSettings(checkpoint=checkpoint(), **values))
    with backend.open(video()) as session:
        every = session.grid_masks(0, backend.settings)
        monkeypatch.setattr(generate, "_multiplies", lambda logits, size: True)
        whole = session.whole_grid_masks(0, backend.settings)
    assert whole == whole_masks(every, part) and 1 < whole.shape[0] < every.shape[0]
