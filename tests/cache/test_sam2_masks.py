"""Masks of points and boxes against transformers' Sam2Model, and the steps of SAM 2's mask generator done one by one."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import tiny_sam2
import torch
from numpy.typing import NDArray
from plain_sam2 import pixel_values
from torch.nn.functional import interpolate

from rvos_cache.masks import RleMasks
from rvos_cache.trackers.sam2.generate import boxes_of, grid_points, stability
from rvos_cache.trackers.sam2.settings import GridSettings
from rvos_cache.trackers.sam2.transformers_backend import TransformersBackend
from rvos_cache.types import Video

SIZE = (50, 90)


@lru_cache
def checkpoint() -> str:
    """One whose masks are of many places and sizes."""
    return str(tiny_sam2.tiny_sam2(tiny_sam2.fresh_folder(), seed=0, present=2, gain=2.5))


def frame() -> NDArray[np.uint8]:
    picture = np.full((*SIZE, 3), 90, np.uint8)
    picture[10:30, 10:40], picture[25:45, 50:80] = (220, 40, 40), (30, 220, 60)
    picture[:, 60:] += np.arange(30, dtype=np.uint8)[None, :, None]
    return picture


def found(**settings: Any) -> RleMasks:
    made = TransformersBackend(GridSettings(checkpoint=checkpoint(), **settings))
    with made.open(Video("v", ("0",), SIZE, lambda t: frame())) as session:
        return session.grid_masks(0, made.settings)


def library(**given: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits (P, M, H, W) at the frame's size and expected IoU (P, M), from the image model of the same checkpoint."""
    from transformers import Sam2Model

    model = Sam2Model.from_pretrained(checkpoint()).eval()
    with torch.inference_mode():
        answer = model(pixel_values=pixel_values(frame(), tiny_sam2.SIDE)[None], **given)
    logits = interpolate(answer.pred_masks[0], SIZE, mode="bilinear", align_corners=False)
    return logits.numpy(), answer.iou_scores[0].numpy()


def places(side: int) -> torch.Tensor:
    """The grid in pixels of the model's square, (1, P, 1, 2)."""
    middles = [(i + 0.5) / side * tiny_sam2.SIDE for i in range(side)]
    return torch.tensor([[[[x, y]] for y in middles for x in middles]])


def generated(side: int, predicted_iou: float, least: float, offset: float, nms_iou: float) -> list[NDArray[np.bool_]]:
    """Masks as the generator's published steps give them, best first: one point, one mask and one pair at a time."""
    logits, expected = library(input_points=places(side), multimask_output=True)
    kept: list[tuple[float, NDArray[np.bool_]]] = []
    for point in range(len(logits)):
        for logit, iou in zip(logits[point], expected[point]):
            inner, outer = (logit > offset).sum(), (logit > -offset).sum()
            if iou > predicted_iou and outer and inner / outer >= least:
                kept.append((float(iou), logit > 0))
    kept.sort(key=lambda pair: -pair[0])
    out: list[NDArray[np.bool_]] = []
    for _, mask in kept:
        if all(box_iou(mask, other) <= nms_iou for other in out):
            out.append(mask)
    return out


def box_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Of the boxes from first to last pixel, as the generator measures them."""
    edges = []
    for mask in (a, b):
        y, x = np.nonzero(mask) if mask.any() else (np.zeros(1), np.zeros(1))
        edges.append((x.min(), y.min(), x.max(), y.max()))
    (ax, ay, aX, aY), (bx, by, bX, bY) = edges
    inter = max(0, min(aX, bX) - max(ax, bx)) * max(0, min(aY, bY) - max(ay, by))
    union = (aX - ax) * (aY - ay) + (bX - bx) * (bY - by) - inter
    return inter / union if union else 0.0


@pytest.mark.parametrize(
    ("side", "predicted_iou", "least", "offset", "nms_iou"),
    [(5, 0.0, 0.3, 1.0, 0.7), (5, 0.4, 0.0, 1.0, 0.7), (4, 0.0, 0.5, 0.2, 0.3), (4, 0.0, 0.3, 1.0, 0.95)],
)
def test_a_grid_gives_what_the_published_steps_give(
    side: int, predicted_iou: float, least: float, offset: float, nms_iou: float
) -> None:
    wanted = generated(side, predicted_iou, least, offset, nms_iou)
    masks = found(
        points_per_side=side, predicted_iou=predicted_iou, stability=least, stability_offset=offset, nms_iou=nms_iou,
        points_per_batch=7,
    )  # fmt: skip
    assert 1 < len(wanted) < 3 * side * side
    # A logit that is zero up to 1e-6 may fall on either side.
    drawn = masks.dense()[:, 0]
    assert drawn.shape[0] == len(wanted) and (drawn != np.stack(wanted)).sum() <= 2


def test_points_that_are_asked_in_other_batches_give_the_same_masks() -> None:
    settings = {"points_per_side": 4, "predicted_iou": 0, "stability": 0.3}
    assert found(**settings, points_per_batch=5) == found(**settings, points_per_batch=64)


def test_a_box_gives_the_library_s_mask() -> None:
    boxes = np.array([[8, 8, 42, 32], [48, 20, 83, 48], [-5, -3, 20, 60]], np.float32)
    square = boxes * np.array([tiny_sam2.SIDE / SIZE[1], tiny_sam2.SIDE / SIZE[0]] * 2, np.float32)
    logits, _ = library(input_boxes=torch.tensor(square)[None], multimask_output=False)
    made = TransformersBackend(GridSettings(checkpoint=checkpoint()))
    with made.open(Video("v", ("0",), SIZE, lambda t: frame())) as session:
        masks, stable = session.box_masks(0, boxes, 0.5)
        none, nothing = session.box_masks(0, boxes[:0], 0.5)
        first, _ = session.box_masks(0, boxes[:1], 0.5)
    assert (masks.dense()[:, 0] != (logits[:, 0] > 0)).sum() <= 2 and (logits > 0).any((1, 2, 3)).all()
    wanted = (logits > 0.5).sum((1, 2, 3)) / (logits > -0.5).sum((1, 2, 3))
    np.testing.assert_allclose(stable, wanted, atol=1e-3)
    assert none.shape == (0, 1) and nothing.shape == (0,) and first == masks.select([0])


def test_a_threshold_that_nothing_passes_gives_no_mask() -> None:
    assert found(points_per_side=2, predicted_iou=1).shape == (0, 1)
    assert found(points_per_side=2, predicted_iou=0, stability=1, stability_offset=50).shape == (0, 1)


def test_points_are_the_middles_of_equal_cells() -> None:
    assert grid_points(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]


def test_stability_is_a_ratio_of_areas() -> None:
    logits = torch.tensor([[[2.0, 2.0, 0.5, -0.5]], [[-3.0, -3.0, -3.0, -3.0]], [[1.0, 1.5, -1.0, -0.9]]])
    assert stability(logits, 1.0).tolist() == [0.5, 0.0, pytest.approx(1 / 3)]


def test_boxes_run_from_first_to_last_pixel() -> None:
    masks = torch.zeros(3, 6, 9, dtype=torch.bool)
    masks[0, 2:5, 3:8] = masks[1, 5, 8] = True
    assert boxes_of(masks).tolist() == [[3, 2, 7, 4], [8, 5, 8, 5], [0, 0, 0, 0]]
