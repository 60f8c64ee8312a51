"""Losses of ReferDINO's cached form: classes and boxes of tracks whose masks are given.

Classes and boxes are those of `referdino_losses` (Liang et al., "ReferDINO", ICCV 2025, and its released code). Masks are given, so
their losses have no gradient and are left out; in the matching the cache's pixel counts take their place: a mean XOR that of the
focal loss, and Dice. The projections have no counterpart.
Letters: B expressions, T frames, N tracks, A objects of the expression, P positives, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.media.boxes import centre_and_size, corners, last_pixel_boxes
from rvos_cache.trackers.referdino_losses import class_costs, focal, giou, l1
from rvos_cache.types import Overlap

TERMS = ("cls", "l1", "giou")
"""What weights are given for."""
COST_TERMS = (*TERMS, "mask", "dice")
"""What costs are given for."""
TargetMode = Literal["union_single", "multi_positive"]
BoxFrames = Literal["all", "visible"]


@dataclass(frozen=True)
class LossSettings:
    """What the losses are computed with.

    costs: of each of COST_TERMS; weights: of each of TERMS.
    target_mode: which tracks of an expression are positives. union_single: the one of the least cost, for the union of the objects, as
    in the released code; multi_positive: each track whose IoU with an object, its mean over the frames that show the object, is at
    least `positive_iou`, for that object; where there is none the track of the largest, the first of equal ones, and where none
    overlaps as union_single.
    box_frames: in which frames a positive's boxes count. all: also where the object is absent, with a box of zeros, as in the
    released code; visible: where it is visible.
    """

    costs: Mapping[str, float]
    weights: Mapping[str, float]
    target_mode: TargetMode = "union_single"
    positive_iou: float = 0.5
    box_frames: BoxFrames = "all"


class Objects(NamedTuple):
    """The objects of one expression in the T frames of its clip, on the CPU."""

    boxes: Tensor
    """(A, T, 4): centre x, centre y, width, height as shares of the frame; zeros where the object is not visible."""
    visible: Tensor
    """bool (A, T)."""
    pixels: int
    """H·W of a frame."""

    def union(self) -> tuple[Tensor, Tensor]:
        """The boxes (T, 4) around all objects, and where one of them is visible, bool (T,)."""
        shown, edges = self.visible[..., None], corners(self.boxes)
        low = edges[..., :2].masked_fill(~shown, torch.inf)
        high = edges[..., 2:].masked_fill(~shown, -torch.inf)
        visible = self.visible.any(0)
        if not len(self.boxes):
            return self.boxes.new_zeros(self.boxes.shape[1:]), visible
        around = centre_and_size(torch.cat([low.amin(0), high.amax(0)], -1))
        return torch.where(visible[:, None], around, 0.0), visible


class TrackOutput(NamedTuple):
    """What the losses read of B expressions."""

    logits: Tensor
    """(B, T, N), before the sigmoid."""
    boxes: Tensor
    """(B, T, N, 4) as those of `Objects`."""
    tracks: Tensor
    """bool (B, N): the candidates of each expression."""
    frames: Tensor
    """bool (B, T): False in padding of T."""


class _Positives(NamedTuple):
    """P tracks that are positives. rows: int64 (P,), their expressions; tracks: int64 (P,); boxes: (P, T, 4) of what each of them
    shows, visible: bool (P, T)."""

    rows: Tensor
    tracks: Tensor
    boxes: Tensor
    visible: Tensor


def objects_of(masks: Tensor) -> Objects:
    """The objects with the masks bool (A, T, H, W).

    Boxes end at the last pixel's index, and an object that is one pixel wide or high counts as not visible, as in the released code.
    """
    height, width = masks.shape[-2:]
    boxes = last_pixel_boxes(masks).cpu()
    visible = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    shares = centre_and_size(boxes) / boxes.new_tensor([width, height, width, height])
    return Objects(shares * visible[..., None], visible, height * width)


def normalisers(
    objects: Sequence[Objects], overlaps: Sequence[Overlap], tracks: Tensor, counted: Tensor, settings: LossSettings
) -> dict[str, float]:
    """What the losses of B expressions are divided by: num_boxes, the frames that show a positive's object, summed over positives.

    Arguments as in `track_losses`. The sums over several batches are those of all their expressions.
    """
    total = 0
    for b, (own, overlap) in enumerate(zip(objects, overlaps, strict=True)):
        real = tracks[b].cpu()
        if not bool(counted[b]) or not real.any():
            continue
        pairs = _covering(own, overlap, real, settings)
        shown = [own.visible[a] for _, a in pairs] or [own.union()[1]]
        annotated = torch.from_numpy(overlap.annotated)
        total += sum(int((visible & annotated).sum()) for visible in shown)
    return {"num_boxes": float(total)}


def track_losses(
    output: TrackOutput,
    objects: Sequence[Objects],
    overlaps: Sequence[Overlap],
    counted: Tensor,
    settings: LossSettings,
    divide_by: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """cls, l1 and giou without weights, and `loss`, their weighted sum, which is minimised.

    objects, overlaps: of each of the B expressions, in its frames before padding; counted: bool (B,), False for padding of B.
    divide_by: the `normalisers` of the whole step, by default of these expressions. Frames without annotation do not count. cls: the
    focal loss of each candidate in each frame, 1 where a positive's object is visible; l1, giou: of the positives' boxes. An
    expression that no frame shows has negatives alone.
    """
    device = output.logits.device
    logits, boxes = output.logits.float(), output.boxes.float()
    annotated = [F.pad(torch.from_numpy(o.annotated), (0, logits.shape[1] - len(o.annotated))) for o in overlaps]
    frames = output.frames & torch.stack(annotated).to(device) & counted.to(device)[:, None]
    positives = _positives(TrackOutput(logits, boxes, output.tracks, frames), objects, overlaps, settings)
    labels = torch.zeros_like(logits)
    labels[positives.rows, :, positives.tracks] = positives.visible.to(logits.dtype)
    candidates = frames[..., None] & output.tracks[:, None]
    own = boxes[positives.rows, :, positives.tracks]
    counting = positives.visible if settings.box_frames == "visible" else frames[positives.rows]
    totals = divide_by or normalisers(objects, overlaps, output.tracks, counted, settings)
    terms = {
        "cls": focal(logits, labels).masked_fill(~candidates, 0).sum(),
        "l1": l1(own, positives.boxes).masked_fill(~counting, 0).sum(),
        "giou": (1 - giou(own, positives.boxes)).masked_fill(~counting, 0).sum(),
    }
    terms = {name: value / max(totals["num_boxes"], 1.0) for name, value in terms.items()}
    return {**terms, "loss": torch.stack([settings.weights[name] * terms[name] for name in TERMS]).sum()}


@torch.no_grad()
def track_costs(output: TrackOutput, objects: Sequence[Objects], overlaps: Sequence[Overlap], settings: LossSettings) -> Tensor:
    """float32 (B, N) on the CPU: the cost of each candidate for the union of the expression's objects, infinite for other tracks.

    Classes are averaged over the frames of `output.frames` that show an object, boxes over all of them, or with box_frames=visible
    over the same.
    """
    device, length = output.logits.device, output.logits.shape[1]
    unions = [_padded(*own.union(), length) for own in objects]
    boxes, visible = (torch.stack(parts).to(device) for parts in zip(*unions))
    visible = visible & output.frames
    with_boxes = visible if settings.box_frames == "visible" else output.frames
    costs = settings.costs
    in_frames = costs["cls"] * _frame_mean(class_costs(output.logits.float()), visible)
    in_frames = in_frames + costs["l1"] * _frame_mean(l1(output.boxes.float(), boxes[:, :, None]), with_boxes)
    in_frames = in_frames - costs["giou"] * _frame_mean(giou(output.boxes.float(), boxes[:, :, None], smooth=True), with_boxes)
    total, real = in_frames.cpu(), output.tracks.cpu()
    for b, (own, overlap) in enumerate(zip(objects, overlaps, strict=True)):
        mask, dice = union_costs(overlap, own.pixels)
        total[b, : len(mask)] += torch.from_numpy(costs["mask"] * mask + costs["dice"] * dice).float()
    return total.masked_fill(~real, torch.inf)


def union_costs(overlap: Overlap, pixels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean XOR, and minus Dice with its 1 above and below, both (N,), of binary tracks and the union of all objects.

    Means and sums are over the pixels of the annotated frames, `pixels` in each. The union is taken for the sum of its objects, which
    is right where they do not overlap; what a track shares with it is capped by the track's area, the union by the frame.
    """
    at = overlap.annotated
    area = overlap.area[:, at].astype(np.int64)
    union = np.minimum(overlap.gt_area[:, at].sum(0, dtype=np.int64), pixels)
    shared = np.minimum(np.minimum(overlap.inter[:, :, at].sum(1, dtype=np.int64), area), union)
    area_sum, union_sum, shared_sum = area.sum(1), union.sum(), shared.sum(1)
    xor = (area_sum + union_sum - 2 * shared_sum) / max(1, pixels * int(at.sum()))
    return xor, -(2 * shared_sum + 1) / (area_sum + union_sum + 1)


def _positives(
    output: TrackOutput, objects: Sequence[Objects], overlaps: Sequence[Overlap], settings: LossSettings
) -> _Positives:
    """Of each expression that some frame of `output.frames` shows."""
    device, length = output.logits.device, output.logits.shape[1]
    costs, frames, real = track_costs(output, objects, overlaps, settings), output.frames.cpu(), output.tracks.cpu()
    rows: list[int] = []
    tracks: list[int] = []
    targets: list[tuple[Tensor, Tensor]] = []
    for b, (own, overlap) in enumerate(zip(objects, overlaps, strict=True)):
        if not real[b].any() or not frames[b].any():
            continue
        pairs = _covering(own, overlap, real[b], settings)
        chosen = [(n, own.boxes[a], own.visible[a]) for n, a in pairs] or [(int(costs[b].argmin()), *own.union())]
        for n, boxes, visible in chosen:
            target = _padded(boxes, visible, length)
            shown = target[1] & frames[b]
            if shown.any():
                rows.append(b)
                tracks.append(n)
                targets.append((target[0], shown))
    boxes = torch.stack([boxes for boxes, _ in targets]) if targets else torch.zeros(0, length, 4)
    visible = torch.stack([visible for _, visible in targets]) if targets else torch.zeros(0, length, dtype=torch.bool)
    indices = torch.tensor([rows, tracks], dtype=torch.long).to(device)
    return _Positives(indices[0], indices[1], boxes.to(device), visible.to(device))


def _covering(objects: Objects, overlap: Overlap, real: Tensor, settings: LossSettings) -> list[tuple[int, int]]:
    """With multi_positive the tracks among `real`, bool (N,), and the object that each covers; none: the union is to be matched."""
    if settings.target_mode == "union_single":
        return []
    quality = visible_iou(overlap, objects.visible.numpy())
    quality = np.where(real[: len(quality), None].numpy(), quality, 0.0)
    if not quality.size or not quality.max() > 0:
        return []
    nearest, best = quality.argmax(1), quality.max(1)
    positive = np.flatnonzero(best >= settings.positive_iou)
    return [(int(n), int(nearest[n])) for n in (positive if len(positive) else [best.argmax()])]


def visible_iou(overlap: Overlap, visible: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(N, A): the IoU of each track and object, its mean over the annotated frames in which the object is visible, bool (A, T); 0 of
    an object that none shows."""
    shown = visible & overlap.annotated
    union = overlap.area[:, None] + overlap.gt_area[None] - overlap.inter
    iou = overlap.inter / np.maximum(union, 1)
    return (iou * shown).sum(-1) / np.maximum(shown.sum(-1), 1)


def _frame_mean(values: Tensor, frames: Tensor) -> Tensor:
    """(B, N): the mean of values (B, T, N) over the frames, bool (B, T); 0 of none."""
    return values.masked_fill(~frames[..., None], 0).sum(1) / frames.sum(1).clamp(min=1)[:, None]


def _padded(boxes: Tensor, visible: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """boxes (t, 4) and visible (t,) with zeros up to T = length."""
    more = length - len(visible)
    return F.pad(boxes, (0, 0, 0, more)), F.pad(visible, (0, more))
