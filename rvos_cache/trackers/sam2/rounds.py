"""Prompts to tracks, by rounds of propagating and filtering (SOLA, section 4.2 and appendix), and from ground truth.

What is already followed is not prompted again. Nothing here knows which SAM 2 runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rvos_cache.masks import Rle, RleMasks, encode, shared_pixels
from rvos_cache.trackers.sam2.backend import Prompt, Propagated, Session
from rvos_cache.trackers.sam2.settings import PromptedSettings
from rvos_cache.types import GroundTruth

SMALL = (540, 960)
"""(height, width) in which SOLA's released code compares masks."""


@dataclass(frozen=True)
class Followed:
    """A prompt and its track: tokens float32 (T, C), scores float32 (T,), masks RleMasks (1, T)."""

    prompt: Prompt
    tokens: NDArray[np.float32]
    scores: NDArray[np.float32]
    masks: RleMasks


def followed(prompts: Sequence[Prompt], tracks: Propagated) -> list[Followed]:
    """Each prompt with its track, in order."""
    return [Followed(p, tracks.tokens[i], tracks.scores[i], tracks.masks.select([i])) for i, p in enumerate(prompts)]


def rounds(
    session: Session, prompts: Sequence[Prompt], size: tuple[int, int], batch: int, limit: int, settings: PromptedSettings
) -> list[Followed]:
    """At most `limit` tracks of distinct objects, the largest prompts first, whatever the order of `prompts`.

    A round follows up to `batch` prompts of one frame and drops every other prompt that one of the new tracks meets, in the
    prompt's own frame, by an IoU above `settings.same_iou`. size: (H, W) of the frames.
    """
    compared = size if settings.iou_size == "video" else SMALL
    left = sorted(prompts, key=lambda p: (-p.area, p.frame, p.mask))
    views = {id(p): _resized([p.rle(size)], compared)[0] for p in left}
    found: list[Followed] = []
    while left and len(found) < limit:
        chosen = _next(left, views, min(batch, limit - len(found)), settings.same_iou)
        tracks = session.propagate(chosen[0].frame, chosen)
        found += followed(chosen, tracks)
        taken = set(map(id, chosen))
        left = _unlike([p for p in left if id(p) not in taken], views, tracks.masks, compared, settings.same_iou)
    return found


def _next(left: list[Prompt], views: dict[int, Rle], batch: int, limit: float) -> list[Prompt]:
    # A track is its prompt in the prompt's frame. So two prompts that are the same there are not followed side by side: the
    # smaller one would have been dropped in a batch of one.
    chosen: list[Prompt] = []
    for prompt in left:
        if prompt.frame != left[0].frame:
            continue
        if not chosen or _iou([views[id(p)] for p in chosen], [views[id(prompt)]]).max() <= limit:
            chosen.append(prompt)
        if len(chosen) == batch:
            break
    return chosen


def _unlike(left: list[Prompt], views: dict[int, Rle], tracks: RleMasks, compared: tuple[int, int], limit: float) -> list[Prompt]:
    kept: dict[int, bool] = {}
    for t in {p.frame for p in left}:
        here = [p for p in left if p.frame == t]
        best = _iou(_resized(tracks.column(t), compared), [views[id(p)] for p in here]).max(0)
        kept.update({id(p): iou <= limit for p, iou in zip(here, best.tolist())})
    return [p for p in left if kept[id(p)]]


def _iou(a: list[Rle], b: list[Rle]) -> NDArray[np.float64]:
    """IoU (len(a), len(b)) of masks of one frame; 0 where both are empty."""
    inter, first, second = shared_pixels(a, b, (a[0]["size"][0], a[0]["size"][1]))
    return inter / np.maximum(first[:, None] + second[None] - inter, 1)


def _resized(rles: list[Rle], size: tuple[int, int]) -> list[Rle]:
    if not rles or tuple(rles[0]["size"]) == size:
        return rles
    held = RleMasks.from_bytes([[r["counts"]] for r in rles], 1, tuple(rles[0]["size"]))
    pixels = (held.decode(k, 0).view(np.uint8) for k in range(len(rles)))
    small = (cv2.resize(p, (size[1], size[0]), interpolation=cv2.INTER_NEAREST) for p in pixels)
    return [{"size": list(size), "counts": encode(p)} for p in small]


def whole_masks(masks: RleMasks, part: float) -> RleMasks:
    """Masks (K, 1) without those that are part of a larger one that is kept: more than the share `part` of theirs lies inside.

    The largest comes first.
    """
    if not masks.shape[0]:
        return masks
    inter, area, _ = shared_pixels(masks.column(0), masks.column(0), masks.size)
    kept: list[int] = []
    for k in np.argsort(-area, kind="stable").tolist():
        if area[k] and all(inter[k, full] <= part * area[k] for full in kept):
            kept.append(k)
    return masks.select(kept)


def answers(session: Session, truth: GroundTruth, batch: int, again_iou: float) -> list[Followed]:
    """Tracks of annotated objects, prompted in the frame where most of each is visible; objects in order.

    Where such a track meets the annotation of the object's first visible frame by an IoU below `again_iou`, the object has a
    second track, prompted there. An object that no annotated frame shows has none.
    """
    areas = truth.masks.area() * truth.annotated
    shown = [a for a in range(len(areas)) if areas[a].any()]
    best = {a: int(areas[a].argmax()) for a in shown}
    first = {a: int((areas[a] > 0).argmax()) for a in shown}
    tracks = _prompted(session, truth.masks, best, batch)
    again = {
        a: t
        for a, t in first.items()
        if t != best[a] and _iou(tracks[a].masks.column(t), [truth.masks.at(a, t)])[0, 0] < again_iou
    }
    more = _prompted(session, truth.masks, again, batch)
    return [track for a in shown for track in (tracks[a], more.get(a)) if track is not None]


def _prompted(session: Session, masks: RleMasks, frames: dict[int, int], batch: int) -> dict[int, Followed]:
    """Object -> its track, prompted in the frame that `frames` gives it; objects of one frame in batches."""
    found: dict[int, Followed] = {}
    boxes, areas = masks.boxes(), masks.area()
    for t in sorted(set(frames.values())):
        here = [a for a, s in frames.items() if s == t]
        for start in range(0, len(here), batch):
            part = here[start : start + batch]
            prompts = []
            for a in part:
                x, y, w, h = boxes[a, t].tolist()
                prompts.append(Prompt(t, masks.bytes_at(a, t), int(areas[a, t]), (x, y, x + w, y + h)))
            found.update(zip(part, followed(prompts, session.propagate(t, prompts))))
    return found
