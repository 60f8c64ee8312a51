"""SAM 2 as a tracker, prompted with a grid of points, with the boxes of a text, or with ground truth (SOLA, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from rvos_cache.masks import RleMasks
from rvos_cache.settings import Settings
from rvos_cache.trackers.base import Tracker
from rvos_cache.trackers.sam2.backend import Backend, Prompt, Session, prompts_of
from rvos_cache.trackers.sam2.rounds import Followed, answers, rounds, whole_masks
from rvos_cache.trackers.sam2.settings import BoxSettings, GridSettings, GroundTruthSettings, PromptedSettings, Sam2Settings
from rvos_cache.types import VIDEO, Expression, GroundTruth, TrackSet, Video


def open_backend(settings: Sam2Settings) -> Backend:
    """The SAM 2 that `settings.backend` names. Raises InputError when it is not installed or its checkpoint cannot be loaded."""
    if settings.backend == "official":
        from rvos_cache.trackers.sam2.official import OfficialBackend

        return OfficialBackend(settings)
    from rvos_cache.trackers.sam2.transformers_backend import TransformersBackend

    return TransformersBackend(settings)


def prompt_frames(frames: int, settings: PromptedSettings) -> range:
    """The frames that are prompted, from the first."""
    every = settings.prompt_every
    return range(0, frames, max(1, frames // 2) if every == "half" else every)


S = TypeVar("S", bound=Sam2Settings)


class _Sam2(Tracker, Generic[S]):
    """What the three ways of prompting share."""

    label_iou = 0.7

    def __init__(self, settings: S) -> None:
        self.settings = settings
        self.backend = open_backend(settings)
        self.channels = self.backend.channels

    def weight_hashes(self) -> dict[str, str]:
        """Digest of SAM 2's weights."""
        return self.backend.weight_hashes()


class Sam2Grid(_Sam2[GridSettings]):
    """Everything a grid of points finds in the prompt frames: objects and background, for every expression of the video."""

    Settings: type[Settings] = GridSettings

    def track(self, video: Video, expressions: Sequence[Expression]) -> TrackSet:
        """At most `max_tracks` tracks of one video."""
        settings = self.settings
        with self.backend.open(video) as session:
            prompts: list[Prompt] = []
            for t in prompt_frames(len(video), settings):
                prompts += prompts_of(whole_masks(session.grid_masks(t, settings), settings.part), t)
            found = rounds(session, prompts, video.size, batch_size(video, settings), settings.max_tracks, settings)
        return track_set(video, found, [VIDEO] * len(found), "grid", self.channels)


class Sam2Box(_Sam2[BoxSettings]):
    """What GroundingDINO finds for each expression in the prompt frames; its tracks are candidates of that expression alone."""

    Settings: type[Settings] = BoxSettings
    reads_expressions = True

    def __init__(self, settings: BoxSettings) -> None:
        from rvos_cache.trackers.grounding_dino import BoxFinder

        super().__init__(settings)
        self.finder: Any = BoxFinder(settings.grounding_checkpoint, settings.box_threshold, settings.text_threshold)

    def weight_hashes(self) -> dict[str, str]:
        """Digests of SAM 2's and GroundingDINO's weights."""
        # Two folders may have one name.
        parts = {"sam2": super().weight_hashes(), "grounding": self.finder.weight_hashes()}
        return {f"{part}/{name}": digest for part, hashes in parts.items() for name, digest in hashes.items()}

    def track(self, video: Video, expressions: Sequence[Expression]) -> TrackSet:
        """At most `tracks_per_expression` tracks for each expression, in the order of the expressions."""
        settings, batch = self.settings, batch_size(video, self.settings)
        found: list[Followed] = []
        asked: list[int] = []
        with self.backend.open(video) as session:
            for e, prompts in enumerate(self._prompts(session, video, expressions)):
                tracks = rounds(session, prompts, video.size, batch, settings.tracks_per_expression, settings)
                found += tracks
                asked += [e] * len(tracks)
        return track_set(video, found, asked, "box", self.channels)

    def _prompts(self, session: Session, video: Video, expressions: Sequence[Expression]) -> list[list[Prompt]]:
        prompts: list[list[Prompt]] = [[] for _ in expressions]
        for t in prompt_frames(len(video), self.settings):
            boxes = [_inside(boxes, video.size) for boxes, _ in self.finder.find(video.read(t), [e.text for e in expressions])]
            if not sum(map(len, boxes)):
                continue
            masks, stable = session.box_masks(t, np.concatenate(boxes), self.settings.stability_offset)
            ends = np.cumsum([len(part) for part in boxes])
            for e, (part, end) in enumerate(zip(boxes, ends.tolist())):
                rows = np.arange(end - len(part), end)
                rows = rows[stable[rows] >= self.settings.stability]
                prompts[e] += prompts_of(masks.select(rows), t, part[rows - (end - len(part))])
        return prompts


class Sam2GroundTruth(_Sam2[GroundTruthSettings]):
    """Annotated objects as prompts, for training alone: `extract` gives this tracker the ground truth."""

    Settings: type[Settings] = GroundTruthSettings
    wants_ground_truth = True

    def track(  # type: ignore[override]
        self, video: Video, expressions: Sequence[Expression], ground_truth: GroundTruth
    ) -> TrackSet:
        """One or two tracks of each annotated object."""
        with self.backend.open(video) as session:
            found = answers(session, ground_truth, batch_size(video, self.settings), self.settings.again_iou)
        return track_set(video, found, [VIDEO] * len(found), "gt", self.channels)


def batch_size(video: Video, settings: Sam2Settings) -> int:
    """Prompts that are propagated together."""
    return settings.batch if len(video) <= settings.long_frames else settings.long_batch


def _inside(boxes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Those of the boxes (K, 4) that show anything of a frame of `size` (H, W)."""
    x0, y0, x1, y1 = np.clip(boxes, 0, (size[1], size[0], size[1], size[0])).T
    return boxes[(x1 > x0) & (y1 > y0)]


def track_set(video: Video, found: Sequence[Followed], asked: Sequence[int], origin: str, channels: int) -> TrackSet:
    """Tracks as the cache holds them; those without a pixel in any frame are left out.

    asked: of each track the index of its expression, or VIDEO. presence: the probability that the object is visible, and 0
    where nothing of it is.
    """
    shown = [i for i, track in enumerate(found) if track.masks.area().any()]
    if not shown:
        none = RleMasks.empty(0, len(video), video.size)
        tokens, presence = np.zeros((0, len(video), channels), np.float16), np.zeros((0, len(video)), np.float16)
        return TrackSet(tokens, presence, none, np.zeros(0, np.int32), (), np.zeros(0, np.int32), np.zeros((0, 4), np.float32))
    masks = RleMasks.concatenate([found[i].masks for i in shown])
    scores = np.stack([found[i].scores for i in shown]).astype(np.float64)
    presence = (1 / (1 + np.exp(-scores))).astype(np.float16)
    presence[masks.area() == 0] = 0
    return TrackSet(
        tokens=np.stack([found[i].tokens for i in shown]).astype(np.float16),
        presence=presence,
        masks=masks,
        prompt=np.array([asked[i] for i in shown], np.int32),
        origin=(origin,) * len(shown),
        prompt_frame=np.array([found[i].prompt.frame for i in shown], np.int32),
        prompt_box=np.array([found[i].prompt.box for i in shown], np.float32),
    )
