"""DMVS's masks: mask embeddings times mask features, their loss at sampled points, their pixels (Eq. 10, section 3.3).

Shapes: K masks, A objects, T frames, h w cells of the stride-4 map, r numbers of a cell's mask features, P points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.media.geometry import FrameGeometry
from rvos_select.data.batch import FrameArray
from rvos_select.losses.matching import bce_costs, dice_costs
from rvos_select.losses.points import bce_loss, dice_loss, grid_of, sample_grid, uncertain_points

FULL = 16
"""Masks in memory at once as logits at the frame's size."""
PIXELS = 1 << 27
"""Pixels of masks in memory at once: the expressions of a video may have a hundred masks of two million pixels in a frame."""

PART = {"cpu": 1 << 22, "cuda": 1 << 23}
"""Mask features in memory at once in float32: a frame of 96 × 160 cells of 256, or two on a GPU, where kernels are fewer then."""


class _MaskLogits(torch.autograd.Function):
    """embed (K, r) · features (T, h, w, r) -> (K, T, h, w), keeping the features as they are stored for the way back.

    Else autograd holds a float32 copy of each sample's float16 features, three times what the batch itself takes.
    """

    @staticmethod
    def forward(context: Any, embed: Tensor, features: Tensor) -> Tensor:
        context.save_for_backward(features)
        return _joined([torch.einsum("kc,thwc->kthw", embed, f.to(embed.dtype)) for f in _parts(features)])

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), (features,) = grads, context.saved_tensors
        out, first = None, 0
        for f in _parts(features):
            part = torch.einsum("kthw,thwc->kc", grad[:, first : first + len(f)], f.to(grad.dtype))
            out, first = part if out is None else out + part, first + len(f)
        return grad.new_zeros(len(grad), features.shape[-1]) if out is None else out, None


def _parts(features: Tensor) -> tuple[Tensor, ...]:
    """Mask features of a few frames after another, so that only these are in float32."""
    return features.split(max(1, PART[features.device.type] // max(1, features[0].numel()))) if len(features) else ()


def _joined(parts: list[Tensor]) -> Tensor:
    """Parts along the second axis."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def mask_logits(embed: Tensor, features: Tensor) -> Tensor:
    """Logits (K, T, h, w) of mask embeddings (K, r) and mask features (T, h, w, r) of any floating dtype (Eq. 10)."""
    logits: Tensor = _MaskLogits.apply(embed.float(), features)  # type: ignore[no-untyped-call]
    return logits


def in_input(masks: Tensor, geometry: FrameGeometry) -> Tensor:
    """Masks (A, T, H, W) bool as the segmenter's input has them: float32 0 and 1 (A, T, *padded), the nearest pixel's."""
    return bytes_in_input(masks, geometry).float()


def bytes_in_input(masks: Tensor, geometry: FrameGeometry) -> Tensor:
    """As `in_input`, in uint8."""
    (h, w), (height, width) = geometry.resized, geometry.padded
    small = F.interpolate(masks.view(torch.uint8), (h, w), mode="nearest")
    return F.pad(small, (0, width - w, 0, height - h))


@torch.no_grad()
def point_costs(embed: Tensor, features: Tensor, truth: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """BCE and Dice costs, (K, A) each, of the masks of `embed` (K, r) and objects (A, T, height, width) of any dtype.

    They are taken at `count` random points that all masks, objects and frames share.
    """
    logits, targets = point_values(embed, features, truth, count)
    return bce_costs(logits, targets), dice_costs(logits, targets)


@torch.no_grad()
def point_values(embed: Tensor, features: Tensor, truth: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Logits (K, T · count) of the masks and the objects' values (A, T · count) at the points of `point_costs`."""
    grid = grid_of(torch.rand(1, count, 2, device=embed.device))
    # A few frames' logits at a time: at all points of all frames they are less than at all cells.
    maps = (torch.einsum("kc,thwc->kthw", embed, f.to(embed.dtype)) for f in _parts(features))
    values = [sample_grid(part.flatten(0, 1)[None], grid)[0].reshape(len(embed), -1) for part in maps]
    targets = sample_grid(truth.float().flatten(0, 1)[None], grid)[0].reshape(len(truth), -1)
    return _joined(values), targets


def pair_losses(logits: Tensor, truth: Tensor, objects: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
    """BCE and Dice summed over K pairs: logits (K, T, h, w) and the K `objects` of truth (A, T, height, width).

    They are taken at `count` points of each mask and frame, most of them where the logits are uncertain; Dice over all frames of
    a mask together.
    """
    grid = grid_of(uncertain_points(logits.detach().flatten(0, 1), count))
    values = sample_grid(logits.flatten(0, 1)[:, None], grid).reshape(len(logits), -1)
    # Object by object: all layers match the same few objects, whose masks are large.
    targets: dict[int, Tensor] = {}
    grids = grid.reshape(*logits.shape[:2], count, 2).unbind()
    for a in dict.fromkeys(objects):
        pairs = [pair for pair, own in enumerate(objects) if own == a]
        own_grid = torch.stack([grids[pair] for pair in pairs], 1).flatten(1, 2)
        sampled = sample_grid(truth[a].float()[:, None], own_grid).reshape(-1, len(pairs), count)
        targets.update(zip(pairs, sampled.unbind(1)))
    at_pairs = torch.stack([targets[pair] for pair in range(len(objects))]).flatten(1)
    return bce_loss(values, at_pairs), dice_loss(values, at_pairs)


def predict_masks(embed: Tensor, features: FrameArray, geometry: FrameGeometry, frames: int) -> Iterator[Tensor]:
    """The masks of mask embeddings (K, r): bool (K, t, H, W), a few frames after another.

    Mask features of at most `frames` frames are in memory at a time, and PIXELS of the masks, or those of one frame.
    """
    per_part = max(1, min(frames, PIXELS // max(1, len(embed) * geometry.size[0] * geometry.size[1])))
    for start in range(0, len(features), frames):
        chunk = features[start : start + frames].to(embed.device)
        for part in (chunk[first : first + per_part] for first in range(0, len(chunk), per_part)):
            out = torch.zeros(len(embed), len(part), *geometry.size, dtype=torch.bool, device=embed.device)
            for t, maps in enumerate(part):
                logits = torch.einsum("kc,hwc->khw", embed.float(), maps.float())
                for k in range(0, len(embed), FULL):
                    out[k : k + FULL, t] = geometry.enlarge(logits[k : k + FULL]) > 0
            yield out
