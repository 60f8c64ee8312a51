"""SAM 2 as a tracker, prompted with a grid of points, with the boxes of a text, or with ground truth (SOLA, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from rvos_cache.masks import RleMasks
from rvos_cache.settings import Settings
from rvos_cache.trackers.base import Tracker, part_of
from rvos_cache.trackers.sam2.backend import Backend, Prompt, Session, make_prompts
from rvos_cache.trackers.sam2.rounds import PromptTrack, track_ground_truth, track_prompts
from rvos_cache.trackers.sam2.settings import BoxSettings, GridSettings, GroundTruthSettings, PromptedSettings, Sam2Settings
from rvos_cache.types import VIDEO, Expression, GroundTruth, TrackSet, Video

PROMPTED = 0.1
"""Share of the time after which the prompts are made; by experience."""


def open_backend(settings: Sam2Settings) -> Backend:
    """The SAM 2 that `settings.backend` names. Raises InputError if it is not installed or its checkpoint cannot be loaded."""
    if settings.backend == "official":
        from rvos_cache.trackers.sam2.official import OfficialBackend

        return OfficialBackend(settings)
    from rvos_cache.trackers.sam2.transformers_backend import TransformersBackend

    return TransformersBackend(settings)


def prompt_frames(frames: int, settings: PromptedSettings) -> range:
    """The prompt frames of a video of `frames` frames, from the first."""
    every = settings.prompt_every
    return range(0, frames, max(1, frames // 2) if every == "half" else every)


S = TypeVar("S", bound=Sam2Settings)


class _Sam2(Tracker, Generic[S]):
    """Base class of the three ways of prompting."""

    label_iou = 0.7

    def __init__(self, settings: S) -> None:
        self.settings = settings
        self.backend = open_backend(settings)
        self.channels = self.backend.channels

    def weight_hashes(self) -> dict[str, str]:
        """Digest of SAM 2's weights."""
        return self.backend.weight_hashes()


class Sam2Grid(_Sam2[GridSettings]):
    """Tracks of the masks that a grid of points gives in the prompt frames: objects and background, for every expression."""

    Settings: type[Settings] = GridSettings

    def track(self, video: Video, expressions: Sequence[Expression]) -> TrackSet:
        """At most `max_tracks` tracks of one video."""
        settings = self.settings
        with self.backend.open(video) as session:
            prompts: list[Prompt] = []
            for t in prompt_frames(len(video), settings):
                self.progress(PROMPTED * t / len(video))
                prompts += make_prompts(session.whole_grid_masks(t, settings), t)
            batch, progress = batch_size(video, settings), part_of(self.progress, PROMPTED, 1.0)
            tracks = track_prompts(session, prompts, video.size, batch, settings.max_tracks, settings, progress=progress)
        return track_set(video, tracks, [VIDEO] * len(tracks), "grid", self.channels, keep_hidden=settings.rounds == "sola")


class Sam2Box(_Sam2[BoxSettings]):
    """Tracks of GroundingDINO's boxes for each expression in the prompt frames; candidates of that expression alone."""

    Settings: type[Settings] = BoxSettings
    reads_expressions = True

    def __init__(self, settings: BoxSettings) -> None:
        from rvos_cache.trackers.grounding_dino import BoxFinder

        super().__init__(settings)
        self.finder: Any = BoxFinder(settings.grounding_checkpoint, settings.box_threshold, settings.text_threshold)

    def weight_hashes(self) -> dict[str, str]:
        """Digests of SAM 2's and GroundingDINO's weights."""
        # The two folders may have the same name.
        parts = {"sam2": super().weight_hashes(), "grounding": self.finder.weight_hashes()}
        return {f"{part}/{name}": digest for part, hashes in parts.items() for name, digest in hashes.items()}

    def track(self, video: Video, expressions: Sequence[Expression]) -> TrackSet:
        """At most `tracks_per_expression` tracks for each expression, in the order of the expressions."""
        settings, batch = self.settings, batch_size(video, self.settings)
        tracks: list[PromptTrack] = []
        prompted_by: list[int] = []
        with self.backend.open(video) as session:
            for e, prompts in enumerate(self._prompts(session, video, expressions)):
                limit, step = settings.tracks_per_expression, (1 - PROMPTED) / len(expressions)
                progress = part_of(self.progress, PROMPTED + e * step, PROMPTED + (e + 1) * step)
                new = track_prompts(session, prompts, video.size, batch, limit, settings, by_box=True, progress=progress)
                tracks += new
                prompted_by += [e] * len(new)
        # SOLA's scripts also store tracks that are never visible, as of an empty mask.
        return track_set(video, tracks, prompted_by, "box", self.channels, keep_hidden=settings.rounds == "sola")

    def _prompts(self, session: Session, video: Video, expressions: Sequence[Expression]) -> list[list[Prompt]]:
        settings = self.settings
        released = settings.rounds == "sola"
        prompts: list[list[Prompt]] = [[] for _ in expressions]
        for t in prompt_frames(len(video), settings):
            self.progress(PROMPTED * t / len(video))
            boxes = [part for part, _ in self.finder.find(video.read(t), [e.text for e in expressions])]
            if not sum(map(len, boxes)):
                continue
            masks, stability = session.box_masks(t, np.concatenate(boxes), settings)
            # A stability of NaN, of a mask without pixels, is below no threshold.
            keep = ~(stability < settings.stability) if released else stability >= settings.stability
            start = 0
            for e, part in enumerate(boxes):
                rows = start + np.flatnonzero(keep[start : start + len(part)])
                prompts[e] += make_prompts(masks.select(rows), t, part[rows - start], keep_empty=released)
                start += len(part)
        return prompts


class Sam2GroundTruth(_Sam2[GroundTruthSettings]):
    """Tracks of the annotated objects, for training only: `extract` gives this tracker the ground truth."""

    Settings: type[Settings] = GroundTruthSettings
    wants_ground_truth = True

    def track(  # type: ignore[override]
        self, video: Video, expressions: Sequence[Expression], ground_truth: GroundTruth
    ) -> TrackSet:
        """One or two tracks of each annotated object."""
        with self.backend.open(video) as session:
            tracks = track_ground_truth(session, ground_truth, batch_size(video, self.settings), self.settings.again_iou)
        return track_set(video, tracks, [VIDEO] * len(tracks), "gt", self.channels)


def batch_size(video: Video, settings: Sam2Settings) -> int:
    """Prompts that are propagated together."""
    return settings.batch if len(video) <= settings.long_frames else settings.long_batch


def track_set(
    video: Video,
    tracks: Sequence[PromptTrack],
    prompted_by: Sequence[int],
    origin: str,
    channels: int,
    keep_hidden: bool = False,
) -> TrackSet:
    """Tracks in the form that a cache stores; presence is the probability that the object is visible, 0 where its mask is empty.

    prompted_by: of each track the index of its expression, or VIDEO; keep_hidden: keep tracks whose masks are all empty.
    """
    rows = [i for i, track in enumerate(tracks) if keep_hidden or track.masks.area().any()]
    if not rows:
        masks = RleMasks.empty(0, len(video), video.size)
        tokens, presence = np.zeros((0, len(video), channels), np.float16), np.zeros((0, len(video)), np.float16)
        return TrackSet(tokens, presence, masks, np.zeros(0, np.int32), (), np.zeros(0, np.int32), np.zeros((0, 4), np.float32))
    masks = RleMasks.concatenate([tracks[i].masks for i in rows])
    scores = np.stack([tracks[i].scores for i in rows]).astype(np.float64)
    presence = (1 / (1 + np.exp(-scores))).astype(np.float16)
    presence[masks.area() == 0] = 0
    return TrackSet(
        tokens=np.stack([tracks[i].tokens for i in rows]).astype(np.float16),
        presence=presence,
        masks=masks,
        prompt=np.array([prompted_by[i] for i in rows], np.int32),
        origin=(origin,) * len(rows),
        prompt_frame=np.array([tracks[i].prompt.frame for i in rows], np.int32),
        prompt_box=np.array([tracks[i].prompt.box for i in rows], np.float32),
    )
