"""DMVS's masks: mask embeddings times mask features, their loss at sampled points, their pixels (Eq. 10, section 3.3).

Shapes: K masks, A objects, T frames, h w cells of the stride-4 map, r numbers of a cell's mask features, P points.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.media.geometry import FrameGeometry
from rvos_select.data.batch import FrameArray
from rvos_select.losses.matching import bce_costs, dice_costs
from rvos_select.losses.points import bce_loss, dice_loss, sample, uncertain_points

FULL = 16
"""Masks in memory at once as logits at the frame's size."""
PIXELS = 1 << 27
"""Pixels of masks in memory at once: the expressions of a video may have a hundred masks of two million pixels in a frame."""


class _MaskLogits(torch.autograd.Function):
    """embed (K, r) · features (T, h, w, r) -> (K, T, h, w), keeping the features as they are stored for the way back.

    Else autograd holds a float32 copy of each sample's float16 features, three times what the batch itself takes.
    """

    @staticmethod
    def forward(context: Any, embed: Tensor, features: Tensor) -> Tensor:
        context.save_for_backward(features)
        # Frame by frame, so that only one of them is in float32.
        return torch.stack([torch.einsum("kc,hwc->khw", embed, f.to(embed.dtype)) for f in features], 1)

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), (features,) = grads, context.saved_tensors
        parts = (torch.einsum("khw,hwc->kc", grad[:, t], f.to(grad.dtype)) for t, f in enumerate(features))
        return sum(parts, start=grad.new_zeros(len(grad), features.shape[-1])), None


def mask_logits(embed: Tensor, features: Tensor) -> Tensor:
    """Logits (K, T, h, w) of mask embeddings (K, r) and mask features (T, h, w, r) of any floating dtype (Eq. 10)."""
    logits: Tensor = _MaskLogits.apply(embed.float(), features)  # type: ignore[no-untyped-call]
    return logits


def in_input(masks: Tensor, geometry: FrameGeometry) -> Tensor:
    """Masks (A, T, H, W) bool as the segmenter's input has them: float32 0 and 1 (A, T, *padded), the nearest pixel's."""
    (h, w), (height, width) = geometry.resized, geometry.padded
    small = F.interpolate(masks.to(torch.uint8), (h, w), mode="nearest")
    return F.pad(small, (0, width - w, 0, height - h)).float()


@torch.no_grad()
def point_costs(embed: Tensor, features: Tensor, truth: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """BCE and Dice costs, (K, A) each, of the masks of `embed` (K, r) and objects (A, T, height, width).

    They are taken at `count` random points that all masks, objects and frames share.
    """
    logits, targets = point_values(embed, features, truth, count)
    return bce_costs(logits, targets), dice_costs(logits, targets)


@torch.no_grad()
def point_values(embed: Tensor, features: Tensor, truth: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Logits (K, T · count) of the masks and the objects' values (A, T · count) at the points of `point_costs`."""
    points = torch.rand(1, count, 2, device=embed.device)
    # One frame's logits at a time: at all points of all frames they are less than at all cells.
    values = [sample(torch.einsum("kc,hwc->khw", embed, f.to(embed.dtype))[None], points)[0] for f in features]
    targets = sample(truth.flatten(0, 1)[None], points)[0].reshape(len(truth), -1)
    return torch.cat(values, 1), targets


def pair_losses(logits: Tensor, truth: Tensor, objects: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """BCE and Dice summed over K pairs: logits (K, T, h, w) and the `objects` (K,) of truth (A, T, height, width).

    They are taken at `count` points of each mask and frame, most of them where the logits are uncertain; Dice over all frames of
    a mask together.
    """
    points = uncertain_points(logits.detach().flatten(0, 1), count)
    values = sample(logits.flatten(0, 1)[:, None], points).reshape(len(logits), -1)
    # Pair by pair: all layers match the same few objects, whose masks are large.
    points_of_pair = points.reshape(*logits.shape[:2], count, 2)
    targets = torch.stack([sample(truth[a][:, None], own).flatten() for a, own in zip(objects.tolist(), points_of_pair)])
    return bce_loss(values, targets), dice_loss(values, targets)


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
