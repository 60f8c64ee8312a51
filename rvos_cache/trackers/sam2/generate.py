"""Masks of one frame from points or boxes, as SAM 2's own mask generator and image predictor make them.

Letters: K masks, H W pixels of the frame, P prompts, S the side of the model's square.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.masks import RleMasks
from rvos_cache.trackers.sam2.features import Features
from rvos_cache.trackers.sam2.network import Network
from rvos_cache.trackers.sam2.preprocess import at_frame, scaled
from rvos_cache.trackers.sam2.settings import GridSettings

PIXELS = 1 << 26
"""Mask logits that are brought to the frame's size at once: 256 MB."""
BOXES = 64
"""Boxes that the mask decoder takes at once."""


def grid_points(side: int) -> NDArray[np.float64]:
    """(side * side, 2), x y in [0, 1]: the middles of equal cells, row by row."""
    middles = (np.arange(side) + 0.5) / side
    return np.stack([np.tile(middles, side), np.repeat(middles, side)], 1)


def grid_masks(network: Network, features: Features, size: tuple[int, int], settings: GridSettings) -> RleMasks:
    """Masks (K, 1) of a grid of points, those expected best first. Three masks for each point; the thresholds of `settings`;
    then non-maximum suppression by their boxes."""
    points = grid_points(settings.points_per_side) * (size[1], size[0])
    low, expected = [], []
    for start in range(0, len(points), settings.points_per_batch):
        part = scaled(points[start : start + settings.points_per_batch], size, network.side)
        logits, guess = _asked(network, features, points=part, several=True)
        likely = guess > settings.predicted_iou
        low.append(logits[likely])
        expected.append(guess[likely])
    logits, scores = torch.cat(low), torch.cat(expected)
    stable, boxes = [], []
    for large in _at_frame(logits, size):
        stable.append(stability(large, settings.stability_offset) >= settings.stability)
        boxes.append(boxes_of(large > 0))
    if not stable:
        return RleMasks.empty(0, 1, size)
    kept = torch.cat(stable).cpu().numpy().nonzero()[0]
    order = kept[_suppressed(torch.cat(boxes).cpu().numpy()[kept], scores.float().cpu().numpy()[kept], settings.nms_iou)]
    return _encoded(logits[torch.from_numpy(order).to(logits.device)], size)


def box_masks(
    network: Network, features: Features, size: tuple[int, int], boxes: NDArray[np.float32], stability_offset: float
) -> tuple[RleMasks, NDArray[np.float32]]:
    """One mask for each box (K, 4), x0 y0 x1 y1 in pixels of the frame: masks (K, 1) and their stability (K,)."""
    if not len(boxes):
        return RleMasks.empty(0, 1, size), np.zeros(0, np.float32)
    placed = scaled(boxes, size, network.side)
    parts = [placed[start : start + BOXES] for start in range(0, len(placed), BOXES)]
    logits = torch.cat([_asked(network, features, boxes=part, several=False)[0][:, 0] for part in parts])
    scores = torch.cat([stability(part, stability_offset) for part in _at_frame(logits, size)])
    return _encoded(logits, size), scores.cpu().numpy()


def stability(logits: Tensor, offset: float) -> Tensor:
    """|logit > +offset| / |logit > -offset| of each mask (K, H, W), float32 (K,); 0 where both are empty."""
    inner, outer = ((logits > cut).flatten(1).sum(1).float() for cut in (offset, -offset))
    return inner / outer.clamp(min=1)


def boxes_of(masks: Tensor) -> Tensor:
    """First and last columns and rows of masks (K, H, W) bool: x0 y0 x1 y1, float32 (K, 4), as SAM 2's suppression takes them
    (the last pixel is no part of the width); zeros where a mask is empty."""
    edges = []
    for line in (masks.any(1), masks.any(2)):
        last = line.shape[1] - 1
        found = line.to(torch.uint8)
        edges.append((found.argmax(1), last - found.flip(1).argmax(1)))
    (x0, x1), (y0, y1) = edges
    return torch.stack([x0, y0, x1, y1], 1) * masks.flatten(1).any(1)[:, None].float()


def _asked(
    network: Network,
    features: Features,
    several: bool,
    points: NDArray[np.float32] | None = None,
    boxes: NDArray[np.float32] | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits (P, M, S/4, S/4) and expected IoU (P, M) of points (P, 2) or boxes (P, 4) in pixels of the square."""
    model = network.model
    if points is not None:
        places = torch.from_numpy(points).to(model.device)[None, :, None]
        sparse, dense = model.prompt_encoder(places, torch.ones_like(places[..., 0], dtype=torch.int32), None, None)
    else:
        sparse, dense = model.prompt_encoder(None, None, torch.from_numpy(boxes).to(model.device)[None], None)
    logits, expected, _, _ = network.decode(
        features, features.top + model.no_memory_embedding.view(1, -1, 1, 1), sparse, dense, several
    )
    return logits[0], expected[0]


def _at_frame(logits: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    for part in torch.split(logits, max(1, PIXELS // (size[0] * size[1]))):
        if len(part):
            yield at_frame(part, size)


def _encoded(logits: Tensor, size: tuple[int, int]) -> RleMasks:
    parts = [RleMasks.from_dense((part > 0).cpu().numpy()[:, None]) for part in _at_frame(logits, size)]
    return RleMasks.concatenate(parts) if parts else RleMasks.empty(0, 1, size)


def _suppressed(boxes: NDArray[np.float32], scores: NDArray[np.float32], limit: float) -> NDArray[np.int64]:
    if not len(boxes):
        return np.zeros(0, np.int64)
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    return np.asarray(cv2.dnn.NMSBoxes(sides.tolist(), scores.tolist(), 0.0, limit), np.int64).reshape(-1)
