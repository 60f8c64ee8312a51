"""Masks of one frame from points or boxes, as in SAM 2's own mask generator and image predictor.

Letters: K masks, H W pixels of the frame, P prompts, S the side of the model's square.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.mask_encoding import encode_masks
from rvos_cache.masks import RleMasks
from rvos_cache.system.gpu_kernels import has_triton
from rvos_cache.trackers.sam2.features import Features
from rvos_cache.trackers.sam2.network import Network
from rvos_cache.trackers.sam2.preprocess import resize_logits, scale_points
from rvos_cache.trackers.sam2.rounds import whole_masks, whole_rows
from rvos_cache.trackers.sam2.settings import GridSettings

MAX_PIXELS = 1 << 26
"""Mask logits that are resized to the frame's size at once: 256 MB."""
BOXES_PER_BATCH = 64
"""Boxes in one batch of the mask decoder."""
BATCHES_QUEUED = 16
"""Batches of points whose masks are in memory at once: 0.8 GB of 64 points at 1024 pixels."""
MAX_SHARED, LINES = 1 << 30, 64
"""Pixels of masks that are compared on a GPU, and lines of theirs that are multiplied at once."""


def grid_points(side: int) -> NDArray[np.float64]:
    """(side * side, 2), x y in [0, 1]: the centres of equal cells, row by row."""
    centres = (np.arange(side) + 0.5) / side
    return np.stack([np.tile(centres, side), np.repeat(centres, side)], 1)


def grid_masks(network: Network, features: Features, size: tuple[int, int], settings: GridSettings) -> RleMasks:
    """Masks (K, 1) of a grid of points, highest predicted IoU first: three masks for each point, the thresholds of `settings`,
    then non-maximum suppression by their boxes. Source: `SAM2AutomaticMaskGenerator`."""
    return _encode(_grid_logits(network, features, size, settings), size)


def whole_grid_masks(network: Network, features: Features, size: tuple[int, int], settings: GridSettings) -> RleMasks:
    """`whole_masks` of `grid_masks`; on a GPU the shared pixels of all pairs are one matrix product."""
    logits = _grid_logits(network, features, size, settings)
    if len(logits) and _multiplies(logits, size):
        masks = torch.cat([part > 0 for part in _resize_in_parts(logits, size)])
        shared = shared_pixels(masks).cpu().numpy()
        rows = whole_rows(shared, shared.diagonal(), settings.part)
        return _encode(logits[rows], size)
    return whole_masks(_encode(logits, size), settings.part)


def shared_pixels(masks: Tensor) -> Tensor:
    """Shared pixels of masks (K, H, W) bool, float64 (K, K)."""
    shared = torch.zeros(len(masks), len(masks), dtype=torch.float64, device=masks.device)
    for lines in torch.split(masks, LINES, 1):
        # Exact: sums of zeros and ones below 2**24 in float32, whose factors TF32 does not round.
        pixels = lines.flatten(1).float()
        shared += (pixels @ pixels.t()).double()
    return shared


def _multiplies(logits: Tensor, size: tuple[int, int]) -> bool:
    """Whether masks are compared by a matrix product: on a GPU, up to a size."""
    return logits.is_cuda and len(logits) * size[0] * size[1] <= MAX_SHARED


def _grid_logits(network: Network, features: Features, size: tuple[int, int], settings: GridSettings) -> Tensor:
    """Logits (K, S/4, S/4) of the masks of `grid_masks`."""
    points = grid_points(settings.points_per_side) * (size[1], size[0])
    starts = range(0, len(points), settings.points_per_batch)
    logit_parts: list[Tensor] = []
    iou_parts: list[Tensor] = []
    # Which masks are likely is read from a GPU when many batches are on their way.
    queued = BATCHES_QUEUED if features.top.is_cuda else 1
    for first in range(0, len(starts), queued):
        decoded = []
        for start in starts[first : first + queued]:
            batch = scale_points(points[start : start + settings.points_per_batch], size, network.side)
            decoded.append(_decode_prompts(network, features, points=batch, multimask=True))
        for low, predicted_iou in decoded:
            likely = predicted_iou > settings.predicted_iou
            logit_parts.append(low[likely])
            iou_parts.append(predicted_iou[likely])
    logits, scores = torch.cat(logit_parts), torch.cat(iou_parts)
    if not len(logits):
        return logits
    stable, boxes = _measure(logits, size, settings.stability_offset)
    # With a threshold of 0 the generator keeps masks whose stability is NaN, too.
    rows = np.arange(len(logits)) if settings.stability == 0 else (stable >= settings.stability).cpu().numpy().nonzero()[0]
    order = rows[box_nms(boxes.cpu().numpy()[rows], scores.float().cpu().numpy()[rows], settings.nms_iou)]
    return logits[torch.from_numpy(order).to(logits.device)]


def _measure(logits: Tensor, size: tuple[int, int], offset: float) -> tuple[Tensor, Tensor]:
    """`stability` (K,) and `boxes_of` (K, 4) of masks at the frame's size."""
    if logits.is_cuda and logits.dtype == torch.float32 and has_triton():
        from rvos_cache.trackers.sam2 import mask_kernels

        counts, corners = mask_kernels.measure(logits, size, offset)
        return counts[:, 0].float() / counts[:, 1].float(), corners.float() * (corners[:, 2:3] >= 0)
    parts = [(stability(part, offset), boxes_of(part > 0)) for part in _resize_in_parts(logits, size)]
    stable, boxes = zip(*parts)
    return torch.cat(stable), torch.cat(boxes)


def box_masks(
    network: Network, features: Features, size: tuple[int, int], boxes: NDArray[np.float32], stability_offset: float
) -> tuple[RleMasks, NDArray[np.float32]]:
    """One mask for each box (K, 4), x0 y0 x1 y1 in pixels of the frame: masks (K, 1) and the stability (K,) of their
    low-resolution logits. Source: `SAM2ImagePredictor.predict`, and SOLA's prompt_generator.py."""
    if not len(boxes):
        return RleMasks.empty(0, 1, size), np.zeros(0, np.float32)
    scaled = scale_points(boxes, size, network.side)
    parts = [scaled[start : start + BOXES_PER_BATCH] for start in range(0, len(scaled), BOXES_PER_BATCH)]
    logits = torch.cat([_decode_prompts(network, features, boxes=part, multimask=False)[0][:, 0] for part in parts])
    return _encode(logits, size), stability(logits, stability_offset).cpu().numpy()


def stability(logits: Tensor, offset: float) -> Tensor:
    """|logit > +offset| / |logit > -offset| of each mask (K, H, W), float32 (K,); NaN where no logit is above -offset."""
    inner, outer = ((logits > cut).flatten(1).sum(1).float() for cut in (offset, -offset))
    return inner / outer


def boxes_of(masks: Tensor) -> Tensor:
    """First and last columns and rows of masks (K, H, W) bool: x0 y0 x1 y1, float32 (K, 4), as SAM 2's suppression takes them
    (the last pixel does not count to the width); zeros where a mask is empty."""
    edges = []
    for line in (masks.any(1), masks.any(2)):
        last = line.shape[1] - 1
        pixels = line.to(torch.uint8)
        edges.append((pixels.argmax(1), last - pixels.flip(1).argmax(1)))
    (x0, x1), (y0, y1) = edges
    return torch.stack([x0, y0, x1, y1], 1) * masks.flatten(1).any(1)[:, None].float()


def box_nms(boxes: NDArray[np.float32], scores: NDArray[np.float32], max_iou: float) -> NDArray[np.int64]:
    """Indices of boxes (K, 4), x0 y0 x1 y1, after non-maximum suppression, highest score (K,) first.

    A box is dropped when its IoU with a kept one is above `max_iou`; the IoU of two boxes without area is NaN, which drops none.
    Equal to `torchvision.ops.nms`.
    """
    x0, y0, x1, y1 = boxes.T
    area = (x1 - x0) * (y1 - y0)
    rest = np.argsort(-scores, kind="stable")
    keep: list[int] = []
    while len(rest):
        best, rest = rest[0], rest[1:]
        keep.append(int(best))
        width = np.minimum(x1[best], x1[rest]) - np.maximum(x0[best], x0[rest])
        height = np.minimum(y1[best], y1[rest]) - np.maximum(y0[best], y0[rest])
        shared = width.clip(0) * height.clip(0)
        with np.errstate(invalid="ignore"):
            iou = shared / (area[best] + area[rest] - shared)
        rest = rest[~(iou > max_iou)]
    return np.array(keep, np.int64)


def _decode_prompts(
    network: Network,
    features: Features,
    multimask: bool,
    points: NDArray[np.float32] | None = None,
    boxes: NDArray[np.float32] | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits (P, M, S/4, S/4) and predicted IoU (P, M) of points (P, 2) or boxes (P, 4) in pixels of the square."""
    device = network.model.device
    prompts = {"points": points, "boxes": boxes}
    sparse, dense = network.embed_prompts(**{name: _upload(v, device) for name, v in prompts.items() if v is not None})
    logits, predicted_iou, _, _ = network.decode(features, network.without_memory(features), sparse[0], dense, multimask)
    return logits, predicted_iou


def _upload(values: NDArray[np.float32], device: Any) -> Tensor:
    """An array on the device, without waiting for a GPU."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _resize_in_parts(logits: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    for part in torch.split(logits, max(1, MAX_PIXELS // (size[0] * size[1]))):
        yield resize_logits(part, size)


def _encode(logits: Tensor, size: tuple[int, int]) -> RleMasks:
    if not len(logits):
        return RleMasks.empty(0, 1, size)
    return RleMasks.concatenate([encode_masks(part) for part in _resize_in_parts(logits, size)])
