"""Tracks of a split: tokens, masks, overlap counts and ground truth, one record per video.

Layout of `videos/<video>/` (letters as in rvos_cache.types):
    tokens f2 [N,T,C] · presence f2 [N,T] · mask_rle u1 [bytes] (mask_codec.py: N masks over T frames)
    if the split has its ground truth: gt_rle u1 [bytes] (A masks) · overlap i4 [N+1,A+1,T], a table of tracks and objects:
    inter, with area as its last column, gt_area as its last row, and annotated (0 or 1) where those two meet
    features/<name> and, where the split has its ground truth, measured/<name>, as the tracker declares them
Attributes: sizes, frame names, object ids (null: hidden), expressions (id, text, targets) in file order, and of each track
origin, prompt, prompt_frame and prompt_box (each number as the shortest decimal text that reads back as the same float32);
frames_digest.
A file costs more than the few bytes of a small array, so small arrays are stored in the attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.mask_runs import MaskRuns
from rvos_cache.masks import RleMasks
from rvos_cache.store.card import Card
from rvos_cache.store.declared import DeclaredArrays
from rvos_cache.store.mask_codec import decode_masks, encode_masks
from rvos_cache.store.reader import Cache
from rvos_cache.store.writer import CacheWriter
from rvos_cache.types import VIDEO, Expression, GroundTruth, Overlap, TrackSet


@dataclass(frozen=True)
class TrackRecord:
    """One video of a tracks cache.

    ground_truth, overlap: None if the split hides its ground truth, and then measurements is empty; measurements: arrays that
    the tracker measured against the ground truth, by name; frames_digest: of the frames (`rvos_cache.identity.frames_digest`),
    None where they were not read.
    """

    video_id: str
    frame_names: tuple[str, ...]
    size: tuple[int, int]
    expressions: tuple[Expression, ...]
    tracks: TrackSet
    ground_truth: GroundTruth | None
    overlap: Overlap | None
    measurements: Mapping[str, Any] = field(default_factory=dict)
    frames_digest: str | None = None

    def __post_init__(self) -> None:
        if (self.ground_truth is None) != (self.overlap is None):
            raise ValueError("ground truth and overlap counts come together or not at all")
        if self.ground_truth is None and self.measurements:
            raise ValueError(f"measurements {sorted(self.measurements)} of a video whose split hides its ground truth")
        if self.ground_truth and self.overlap and (self.ground_truth.annotated != self.overlap.annotated).any():
            raise ValueError("ground truth and overlap counts differ in the annotated frames")
        if self.tracks.masks.shape[1] != len(self.frame_names) or self.tracks.masks.size != self.size:
            raise ValueError(
                f"tracks {self.tracks.masks.shape} {self.tracks.masks.size}, video {len(self.frame_names)} {self.size}"
            )


@dataclass(frozen=True)
class TrackInfo:
    """A video without its large arrays. object_ids: None if the split hides its ground truth; frames_digest: as in TrackRecord."""

    video_id: str
    frame_names: tuple[str, ...]
    size: tuple[int, int]
    expressions: tuple[Expression, ...]
    object_ids: tuple[str, ...] | None
    tracks: int
    origin: tuple[str, ...]
    prompt: NDArray[np.int32]
    prompt_frame: NDArray[np.int32]
    prompt_box: NDArray[np.float32]
    frames_digest: str | None = None

    @property
    def frames(self) -> int:
        """T."""
        return len(self.frame_names)


def expressions_to_json(expressions: tuple[Expression, ...]) -> list[dict[str, Any]]:
    """Expressions in the form of the attributes; hidden targets are null."""
    return [
        {"id": e.expression_id, "text": e.text, "targets": None if e.targets is None else list(e.targets)} for e in expressions
    ]


def expressions_from_json(video_id: str, stored: list[Mapping[str, Any]]) -> tuple[Expression, ...]:
    """The inverse of `expressions_to_json`."""
    return tuple(Expression(video_id, e["id"], e["text"], None if e["targets"] is None else tuple(e["targets"])) for e in stored)


def write_tracks(writer: CacheWriter, record: TrackRecord, provenance: Mapping[str, Any] | None = None) -> bool:
    """Publish one video; False when another writer was first.

    Raises InputError if tokens, features or measurements are not as the card declares them.
    """
    tracks, truth, overlap = record.tracks, record.ground_truth, record.overlap
    declared = check_declared(writer.card, record)
    arrays: dict[str, Any] = {
        "tokens": tracks.tokens,
        "presence": tracks.presence,
        "mask_rle": encode_masks(tracks.masks),
    }
    if truth is not None and overlap is not None:
        arrays |= {"gt_rle": encode_masks(truth.masks), "overlap": _overlap_table(overlap)}
    arrays |= declared
    attributes = {
        "video": record.video_id,
        "size": list(record.size),
        "frame_names": list(record.frame_names),
        "tracks": len(tracks.origin),
        "origin": list(tracks.origin),
        "prompt": tracks.prompt.tolist(),
        "prompt_frame": tracks.prompt_frame.tolist(),
        "prompt_box": [[float(str(x)) for x in box] for box in tracks.prompt_box.astype(np.float32)],
        "object_ids": None if truth is None else list(truth.object_ids),
        "expressions": expressions_to_json(record.expressions),
        **({} if record.frames_digest is None else {"frames_digest": record.frames_digest}),
    }
    return writer.publish(record.video_id, arrays, attributes, provenance)


def check_declared(card: Card, record: TrackRecord) -> dict[str, Any]:
    """Features and measurements of a video as `CacheWriter.publish` takes them: "features/<name>" and "measured/<name>".

    Raises InputError, naming the tracker and the array, if tokens, features or measurements are not as `card` declares them.
    """
    tracks, truth = record.tracks, record.ground_truth
    tokens, title = tracks.tokens, f"tracker {card.producer}: tokens"
    if tokens.dtype != np.dtype(card.dtype):
        raise InputError(f"{title} are {tokens.dtype}, declared {card.dtype}")
    if tokens.shape[2] != card.channels:
        raise InputError(f"{title} have {tokens.shape[2]} channels, declared {card.channels}")
    if not card.channels and len(tokens):
        raise InputError(f"tracker {card.producer}: declared channels = 0, which is for no tracks, and returned {len(tokens)}")
    if tracks.presence.dtype != np.float16 or not ((tracks.presence >= 0) & (tracks.presence <= 1)).all():
        raise InputError(f"tracker {card.producer}: presence is not float16 in [0, 1]")
    if not ((tracks.prompt >= VIDEO) & (tracks.prompt < len(record.expressions))).all():
        count = len(record.expressions)
        raise InputError(f"tracker {card.producer}: prompt is neither {VIDEO} (video) nor an index of the {count} expressions")
    sizes = {"N": tokens.shape[0], "T": tokens.shape[1], "E": len(record.expressions)}
    if truth is not None:
        sizes["A"] = len(truth.object_ids)
    declared = DeclaredArrays(card.producer, sizes)
    # Measurements first: they are whole arrays, and the frames of a feature are computed while they are written.
    specs = [] if truth is None else card.measurement_specs
    measured = declared.check("measurement", specs, record.measurements)
    features = declared.check("feature", card.feature_specs, tracks.features)
    return {**_prefixed("features", features), **_prefixed("measured", measured)}


def _prefixed(group: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{group}/{name}": value for name, value in arrays.items()}


def _overlap_table(overlap: Overlap) -> NDArray[np.int32]:
    """All counts of a video in one array, in the layout given at the top of this file."""
    n, a, t = overlap.inter.shape
    table = np.empty((n + 1, a + 1, t), np.int32)
    table[:-1, :-1], table[:-1, -1] = overlap.inter, overlap.area
    table[-1, :-1], table[-1, -1] = overlap.gt_area, overlap.annotated
    return table


def _overlap_from(table: NDArray[np.int32]) -> Overlap:
    return Overlap(table[:-1, :-1], table[:-1, -1], table[-1, :-1], table[-1, -1] != 0)


def _is_finite(values: NDArray[Any]) -> bool:
    if values.dtype != np.float16:
        return bool(np.isfinite(values).all())
    # NumPy's isfinite takes longer on float16 than all the rest of a read. Read as integers, infinities and NaN are the
    # largest: from 0x7C00 as int16 (the positive ones), from 0xFC00 as uint16 (the negative ones).
    return values.view(np.int16).max(initial=0) < 0x7C00 and values.view(np.uint16).max(initial=0) < 0xFC00


class TrackCache(Cache):
    """A tracks cache, open for reading."""

    kind = "tracks"

    def info(self, video_id: str) -> TrackInfo:
        """Names, sizes, expressions and prompts of a video."""
        attributes = self.folder(video_id).attributes
        return TrackInfo(
            video_id=video_id,
            frame_names=tuple(attributes["frame_names"]),
            size=(attributes["size"][0], attributes["size"][1]),
            expressions=expressions_from_json(video_id, attributes["expressions"]),
            object_ids=None if attributes["object_ids"] is None else tuple(attributes["object_ids"]),
            tracks=attributes["tracks"],
            origin=tuple(attributes["origin"]),
            prompt=np.array(attributes["prompt"], np.int32),
            prompt_frame=np.array(attributes["prompt_frame"], np.int32),
            prompt_box=np.array(attributes["prompt_box"], np.float32).reshape(-1, 4),
            frames_digest=attributes.get("frames_digest"),
        )

    def tokens(self, video_id: str) -> NDArray[Any]:
        """(N, T, C) in the card's dtype."""
        tokens = self.folder(video_id).array("tokens")
        if not _is_finite(tokens):
            raise InputError(f"{self.path}, video {video_id}: tokens hold NaN or infinite values; extract it again")
        return tokens

    def presence(self, video_id: str) -> NDArray[np.float16]:
        """(N, T) probabilities."""
        return self.folder(video_id).array("presence")

    def masks(self, video_id: str, tracks: Iterable[int] | None = None) -> RleMasks:
        """Masks (N, T), or those of the given tracks only, in that order. Raises IndexError for a track beyond the last."""
        return RleMasks.from_runs(self.runs(video_id, tracks))

    def runs(self, video_id: str, tracks: Iterable[int] | None = None) -> MaskRuns:
        """The same masks as the ends of their runs, the form from which pixels are decoded fastest."""
        return self._runs(video_id, "mask_rle", self.folder(video_id).attributes["tracks"], tracks)

    def overlap(self, video_id: str) -> Overlap:
        """Overlap counts. Raises InputError if the split hides its ground truth."""
        return _overlap_from(self._overlap_table(video_id))

    def ground_truth(self, video_id: str) -> GroundTruth:
        """The annotated objects. Raises InputError if the split hides its ground truth."""
        return self._ground_truth(video_id, self._overlap_table(video_id))

    def feature(self, video_id: str, name: str, frames: slice | None = None) -> NDArray[Any]:
        """The extra array `name`, or some of its frames; only their chunks are read if the array is stored by frame."""
        return self.folder(video_id).array(f"features/{name}", frames)

    def measurement(self, video_id: str, name: str) -> NDArray[Any]:
        """The measurement `name`. Raises InputError if the split hides its ground truth, or the tracker does not declare it."""
        names = [str(spec["name"]) for spec in self.card.measurement_specs]
        if name not in names:
            raise InputError(
                f"{self.path}: no measurement {name!r}; tracker {self.card.producer} declares: {', '.join(names) or 'none'}"
            )
        self._check_ground_truth(video_id)
        return self.folder(video_id).array(f"measured/{name}")

    def frames(self, video_id: str, name: str) -> Iterator[NDArray[Any]]:
        """The feature `name`, which is stored by frame, frame by frame: one is in memory at a time."""
        for t in range(self.folder(video_id).shape(f"features/{name}")[0]):
            yield self.feature(video_id, name, slice(t, t + 1))[0]

    def read(self, video_id: str, by_frame: bool = False) -> TrackRecord:
        """Everything of a video. by_frame: features that are stored by frame are iterators of frames, to be read once."""
        info = self.info(video_id)
        features: dict[str, Any] = {}
        for spec in self.card.feature_specs:
            name = spec["name"]
            streamed = by_frame and spec.get("by_frame") and self.folder(video_id).shape(f"features/{name}")[0]
            features[name] = self.frames(video_id, name) if streamed else self.feature(video_id, name)
        tracks = TrackSet(
            tokens=self.tokens(video_id),
            presence=self.presence(video_id),
            masks=self.masks(video_id),
            prompt=info.prompt,
            origin=info.origin,
            prompt_frame=info.prompt_frame,
            prompt_box=info.prompt_box,
            features=features,
        )
        if info.object_ids is None:
            return TrackRecord(
                video_id, info.frame_names, info.size, info.expressions, tracks, None, None, frames_digest=info.frames_digest
            )
        table = self._overlap_table(video_id)
        truth, overlap = self._ground_truth(video_id, table), _overlap_from(table)
        measured = {spec["name"]: self.measurement(video_id, spec["name"]) for spec in self.card.measurement_specs}
        return TrackRecord(
            video_id, info.frame_names, info.size, info.expressions, tracks, truth, overlap, measured, info.frames_digest
        )

    def _check_ground_truth(self, video_id: str) -> None:
        if self.folder(video_id).attributes["object_ids"] is None:
            raise InputError(
                f"{self.path}, video {video_id}: the split {self.card.split!r} hides its ground truth; use a split that has it"
            )

    def _overlap_table(self, video_id: str) -> NDArray[np.int32]:
        self._check_ground_truth(video_id)
        return self.folder(video_id).array("overlap")

    def _ground_truth(self, video_id: str, table: NDArray[np.int32]) -> GroundTruth:
        ids = tuple(self.folder(video_id).attributes["object_ids"])
        return GroundTruth(ids, RleMasks.from_runs(self._runs(video_id, "gt_rle", len(ids))), table[-1, -1] != 0)

    def _runs(self, video_id: str, name: str, count: int, indices: Iterable[int] | None = None) -> MaskRuns:
        folder = self.folder(video_id)
        shape = (count, len(folder.attributes["frame_names"]))
        size = (folder.attributes["size"][0], folder.attributes["size"][1])
        return decode_masks(folder.array(name), shape, size, indices)
