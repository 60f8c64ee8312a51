"""Prompts to tracks, in rounds of propagating and filtering (SOLA, section 4.2 and appendix), and tracks of ground truth.

An object that is already tracked is not prompted again. Nothing here depends on the backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from rvos_cache.masks import Rle, RleMasks, encode, shared_pixels
from rvos_cache.trackers.base import ShareDone, no_progress
from rvos_cache.trackers.sam2.backend import Prompt, Propagated, Session
from rvos_cache.trackers.sam2.settings import PromptedSettings
from rvos_cache.types import GroundTruth


@dataclass(frozen=True)
class PromptTrack:
    """A prompt and its track: tokens float32 (T, C), scores float32 (T,), masks RleMasks (1, T)."""

    prompt: Prompt
    tokens: NDArray[np.float32]
    scores: NDArray[np.float32]
    masks: RleMasks


def pair(prompts: Sequence[Prompt], tracks: Propagated) -> list[PromptTrack]:
    """Each prompt with its track, in order."""
    return [PromptTrack(p, tracks.tokens[i], tracks.scores[i], tracks.masks.select([i])) for i, p in enumerate(prompts)]


def track_prompts(
    session: Session,
    prompts: Sequence[Prompt],
    size: tuple[int, int],
    batch: int,
    limit: int,
    settings: PromptedSettings,
    by_box: bool = False,
    progress: ShareDone = no_progress,
) -> list[PromptTrack]:
    """At most `limit` tracks of distinct objects, largest prompts first.

    A round propagates up to `batch` prompts of one frame, then drops every remaining prompt whose IoU with one of the new tracks,
    in the prompt's own frame, is above `settings.same_iou`. size: (H, W) of the frames; by_box: the prompts are masks of boxes,
    which `settings.rounds` = "sola" groups in another way.
    """
    released = settings.rounds == "sola"
    compare = _Compare(size, settings.iou_size == "540x960", 1.0 if released else 0.0)
    # Equal areas stay in the order of `prompts`, as in the released code; else the order does not depend on it.
    rest = sorted(prompts, key=(lambda p: -p.area) if released else (lambda p: (-p.area, p.frame, p.mask)))
    views = {id(p): compare.prompt(p) for p in rest}
    tracks: list[PromptTrack] = []
    while rest and len(tracks) < limit:
        room = limit - len(tracks)
        if released:
            chosen = _released_batch(rest, batch, room, by_box)
        else:
            chosen = _distinct_batch(rest, views, min(batch, room), settings.same_iou, compare)
        propagated = session.propagate(chosen[0].frame, chosen)
        tracks += pair(chosen, propagated)
        chosen_ids = set(map(id, chosen))
        rest = [p for p in rest if id(p) not in chosen_ids]
        rest = _distinct(rest, views, propagated.masks, settings.same_iou, compare)
        progress(max(len(tracks) / limit, 1 - len(rest) / len(prompts)))
    return tracks


def _released_batch(rest: list[Prompt], batch: int, room: int, by_box: bool) -> list[Prompt]:
    """The next batch of SOLA's generate_tokens_grid.py, or with `by_box` of its generate_tokens_gdino.py."""
    chosen = [rest[0]]
    # The script for boxes adds the batch to a count that already contains it, so its last batches are smaller.
    weight = 2 if by_box else 1
    for prompt in rest[1:]:
        if len(chosen) >= batch or weight * len(chosen) >= room:
            break
        if prompt.frame == chosen[0].frame:
            chosen.append(prompt)
        elif by_box:
            break
    return chosen


def _distinct_batch(rest: list[Prompt], views: dict[int, Rle], batch: int, max_iou: float, compare: _Compare) -> list[Prompt]:
    """The next prompts of one frame, without those that an earlier one of the batch would drop if it were tracked first."""
    chosen: list[Prompt] = []
    for prompt in rest:
        if prompt.frame != rest[0].frame:
            continue
        if not chosen or compare.iou([views[id(p)] for p in chosen], [views[id(prompt)]]).max() <= max_iou:
            chosen.append(prompt)
        if len(chosen) == batch:
            break
    return chosen


def _distinct(rest: list[Prompt], views: dict[int, Rle], tracks: RleMasks, max_iou: float, compare: _Compare) -> list[Prompt]:
    """The prompts whose IoU with each of the tracks, in the prompt's frame, is at most `max_iou`."""
    is_distinct: dict[int, bool] = {}
    for t in {p.frame for p in rest}:
        prompts = [p for p in rest if p.frame == t]
        best = compare.iou(compare.tracks(tracks, t), [views[id(p)] for p in prompts]).max(0)
        is_distinct.update({id(p): iou <= max_iou for p, iou in zip(prompts, best.tolist())})
    return [p for p in rest if is_distinct[id(p)]]


class _Compare:
    """Masks at the size at which they are compared, and their IoU.

    size: (H, W) of the frames; resize: to 540x960, or 960x540 for frames that are not wider than high (SOLA's seg_utils.py);
    both_empty: the IoU of two masks without pixels.
    """

    def __init__(self, size: tuple[int, int], resize: bool, both_empty: float) -> None:
        self.size, self.both_empty = size, both_empty
        self.target = size if not resize else (540, 960) if size[0] < size[1] else (960, 540)

    def prompt(self, prompt: Prompt) -> Rle:
        """The mask of a prompt; resized by nearest pixels."""
        rle = prompt.rle(self.size)
        if self.target == self.size:
            return rle
        pixels = RleMasks.from_bytes([[prompt.mask]], 1, self.size).decode(0, 0)
        resized = interpolate(torch.from_numpy(pixels).float()[None, None], self.target, mode="nearest")
        return {"size": list(self.target), "counts": encode(resized[0, 0].numpy() > 0)}

    def tracks(self, masks: RleMasks, t: int) -> list[Rle]:
        """The masks of frame t; resized bilinearly and cut at 0.5."""
        if self.target == self.size:
            return masks.column(t)
        resized = []
        for k in range(masks.shape[0]):
            pixels = torch.from_numpy(masks.decode(k, t)).float()[None, None]
            larger = interpolate(pixels, self.target, mode="bilinear", align_corners=False)[0, 0] > 0.5
            resized.append({"size": list(self.target), "counts": encode(larger.numpy())})
        return resized

    def iou(self, a: list[Rle], b: list[Rle]) -> NDArray[np.float64]:
        """IoU (len(a), len(b)) of masks of one frame."""
        return _iou(a, b, self.both_empty)


def _iou(a: list[Rle], b: list[Rle], both_empty: float = 0.0) -> NDArray[np.float64]:
    """IoU (len(a), len(b)) of masks of one frame; `both_empty` where neither has pixels."""
    shared, first, second = shared_pixels(a, b, (a[0]["size"][0], a[0]["size"][1]))
    union = first[:, None] + second[None] - shared
    return np.where(union == 0, both_empty, shared / np.maximum(union, 1))


def whole_masks(masks: RleMasks, part: float) -> RleMasks:
    """Masks (K, 1), largest first, without parts: masks of which more than the share `part` lies inside a larger one.

    Masks without pixels are left out.
    """
    if not masks.shape[0]:
        return masks
    shared, area, _ = shared_pixels(masks.column(0), masks.column(0), masks.size)
    return masks.select(whole_rows(shared, area, part))


def whole_rows(shared: NDArray[Any], area: NDArray[Any], part: float) -> list[int]:
    """The rows of `whole_masks`. shared: (K, K) pixels; area: (K,)."""
    whole: list[int] = []
    for k in np.argsort(-area, kind="stable").tolist():
        if area[k] and (shared[k, whole] <= part * area[k]).all():
            whole.append(k)
    return whole


def track_ground_truth(session: Session, ground_truth: GroundTruth, batch: int, again_iou: float) -> list[PromptTrack]:
    """Tracks of annotated objects, each prompted in the frame where most of it is visible; in the order of the objects.

    An object whose track has an IoU below `again_iou` in the object's first visible frame has a second track, prompted there. An
    object that is visible in no annotated frame has none.
    """
    areas = ground_truth.masks.area() * ground_truth.annotated
    visible = [a for a in range(len(areas)) if areas[a].any()]
    best = {a: int(areas[a].argmax()) for a in visible}
    first = {a: int((areas[a] > 0).argmax()) for a in visible}
    tracks = _track_objects(session, ground_truth.masks, best, batch)
    again = {
        a: t
        for a, t in first.items()
        if t != best[a] and _iou(tracks[a].masks.column(t), [ground_truth.masks.at(a, t)])[0, 0] < again_iou
    }
    second = _track_objects(session, ground_truth.masks, again, batch)
    return [track for a in visible for track in (tracks[a], second.get(a)) if track is not None]


def _track_objects(session: Session, masks: RleMasks, frames: dict[int, int], batch: int) -> dict[int, PromptTrack]:
    """Object -> its track, prompted in its frame of `frames`; objects of one frame in batches."""
    tracks: dict[int, PromptTrack] = {}
    boxes, areas = masks.boxes(), masks.area()
    for t in sorted(set(frames.values())):
        objects = [a for a, s in frames.items() if s == t]
        for start in range(0, len(objects), batch):
            part = objects[start : start + batch]
            prompts = []
            for a in part:
                x, y, w, h = boxes[a, t].tolist()
                prompts.append(Prompt(t, masks.bytes_at(a, t), int(areas[a, t]), (x, y, x + w, y + h)))
            tracks.update(zip(part, pair(prompts, session.propagate(t, prompts))))
    return tracks
