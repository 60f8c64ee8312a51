"""Import SOLA's released tracks of a split as a cache: masks, tokens and ids unchanged, overlap counts from the masks.

The cache's producer is "sola". Its tokens stay float32. The files do not contain the prompts, so `prompt_frame` is -1 and
`prompt_box` zeros. Presence is 1 where a mask has pixels and 0 elsewhere, because SAM 2 empties the mask of an object that it
predicts to be hidden. The other fields of a track's JSON are kept in the video's provenance, for `export_sola`.
"""

from __future__ import annotations

import socket
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.datasets import Dataset, open_dataset
from rvos_cache.errors import InputError
from rvos_cache.exchange.imported import SOURCE, check_same_sources, source_digest
from rvos_cache.exchange.sola_files import CHANNELS, ORIGINS, Kind, SolaFolder, SolaTrack, object_name
from rvos_cache.extraction import ExtractReport, bound_digest, select_videos, write_videos
from rvos_cache.masks import RleMasks
from rvos_cache.media.frames import warn_of_text_order
from rvos_cache.overlap import count_overlap, frame_mean, iou
from rvos_cache.store import CacheWriter, Card, TrackCache, TrackRecord, provenance, write_tracks
from rvos_cache.types import GroundTruth, Overlap, TrackSet

PRODUCER = "sola"
LABEL_IOU = 0.7
"""SOLA's positive_threshold (configs/mevis/default.yaml)."""
UNKNOWN_FRAME = -1
"""`prompt_frame` of an imported track."""


@dataclass(frozen=True)
class IouDifference:
    """Differences between the mean IoU stored by SOLA's scripts (at 540x960, except for gt tracks) and the one at full size.

    pairs: of track and object that have both values; largest, mean: of the absolute differences; crossed: pairs whose values
    are on different sides of LABEL_IOU, so that their labels differ; unmatched: stored values of objects without annotation.
    """

    pairs: int = 0
    largest: float = 0.0
    mean: float = 0.0
    crossed: int = 0
    unmatched: int = 0

    @classmethod
    def combine(cls, parts: Sequence[IouDifference]) -> IouDifference:
        """The differences of several videos as one."""
        pairs = sum(p.pairs for p in parts)
        return cls(
            pairs,
            max((p.largest for p in parts), default=0.0),
            sum(p.mean * p.pairs for p in parts) / max(pairs, 1),
            sum(p.crossed for p in parts),
            sum(p.unmatched for p in parts),
        )


@dataclass(frozen=True)
class SolaImport:
    """The result of `import_sola`. stored_iou: over all requested videos in the cache; None if SOLA's files have no IoU."""

    report: ExtractReport
    stored_iou: IouDifference | None


def import_sola(
    directory: Path | str,
    dataset: str,
    root: Path | str,
    split: str,
    out: Path | str,
    *,
    tracks: Kind = "grid",
    videos: Iterable[str] = (),
    limit: int | None = None,
    shard: str = "1/1",
    jobs: int = 1,
) -> SolaImport:
    """Write the `tracks` of a split in `directory` (SOLA's `sam2_tracks`) to the cache `out`.

    A second run writes what is missing. There is one cache per kind of tracks, and stage two combines them: gt tracks are for
    training only, gdino tracks belong to expressions. Raises InputError for a folder or dataset that cannot be used, OSError if
    the disk is full or read-only.
    """
    source = open_dataset(dataset, root, split)
    folder = SolaFolder.find(Path(directory), tracks, source.name, split)
    card = Card(
        kind="tracks",
        dataset=dataset,
        split=source.split,
        producer=PRODUCER,
        settings={"tracks": tracks},
        expressions_digest=bound_digest(source, out) if tracks == "gdino" else None,
        channels=CHANNELS,
        dtype="float32",
        label_iou=LABEL_IOU,
        training_only=tracks == "gt",
        root=str(source.root.absolute()),
        **provenance(),
    )
    video_ids = select_videos(source, videos, limit, shard)
    foreign = sorted(folder.video_ids() - set(source.video_ids()))
    if foreign:
        message = f"{folder.path}: {len(foreign)} videos are not of split {split} and are left out; first {foreign[0]}"
        warnings.warn(message, stacklevel=2)

    def write_video(writer: CacheWriter, video_id: str) -> int:
        start = time.perf_counter()
        record, sola_fields = read_video(folder, source, video_id)
        origin = {"host": socket.gethostname(), "seconds": round(time.perf_counter() - start, 3)}
        write_tracks(writer, record, {**origin, "sola": sola_fields, SOURCE: source_digest(folder.paths_of(video_id))})
        return len(record.frame_names)

    check_same_sources(out, card, source, video_ids, folder.paths_of)
    report = write_videos(out, card, video_ids, write_video, f"sola {tracks} {split}", jobs)
    return SolaImport(report, stored_iou(TrackCache(out), [*report.done, *report.skipped]))


def read_video(folder: SolaFolder, source: Dataset, video_id: str) -> tuple[TrackRecord, dict[str, Any]]:
    """One video as a record, and for its provenance "tracks", the other fields of each track, and "iou", an IouDifference.

    Raises InputError for anything missing, damaged or of another video.
    """
    video, expressions = source.video(video_id), source.expressions(video_id)
    warn_of_text_order(folder.path, video.frame_names)
    prompts: list[int] = []
    sola_tracks: list[SolaTrack] = []
    for prompt, group in folder.groups(video_id, expressions):
        for name in folder.track_names(group):
            sola_tracks.append(folder.read(group, name, len(video), video.size))
            prompts.append(prompt)
    n, t = len(sola_tracks), len(video)
    masks = RleMasks.from_bytes([track.masks for track in sola_tracks], t, video.size)
    tracks = TrackSet(
        tokens=np.stack([track.tokens for track in sola_tracks]) if n else np.zeros((0, t, CHANNELS), np.float32),
        presence=(masks.area() > 0).astype(np.float16),
        masks=masks,
        prompt=np.array(prompts, np.int32),
        origin=(ORIGINS[folder.kind],) * n,
        prompt_frame=np.full(n, UNKNOWN_FRAME, np.int32),
        prompt_box=np.zeros((n, 4), np.float32),
    )
    truth = source.ground_truth(video_id) if source.has_ground_truth else None
    overlap = None if truth is None else count_overlap(masks, truth)
    record = TrackRecord(video_id, video.frame_names, video.size, expressions, tracks, truth, overlap)
    sola_fields: dict[str, Any] = {"tracks": [dict(track.fields) for track in sola_tracks]}
    if truth is not None and overlap is not None and any("iou" in fields for fields in sola_fields["tracks"]):
        sola_fields["iou"] = asdict(compare_iou(video_id, sola_fields["tracks"], truth, overlap))
    return record, sola_fields


def compare_iou(video_id: str, fields: Sequence[Mapping[str, Any]], truth: GroundTruth, overlap: Overlap) -> IouDifference:
    """Compare the stored IoU of one video's tracks, by object, with the one computed from `overlap`. fields: of each track."""
    column = {object_name(video_id, object_id): a for a, object_id in enumerate(truth.object_ids)}
    computed = frame_mean(iou(overlap), overlap.annotated) if overlap.annotated.any() else np.zeros((len(fields), 0))
    pairs, unmatched = [], 0
    for n, track_fields in enumerate(fields):
        for name, value in track_fields.get("iou", {}).items():
            a = column.get(name)
            if a is None or a >= computed.shape[1]:
                unmatched += 1
            else:
                pairs.append((value, computed[n, a]))
    stored, own = np.array(pairs, np.float64).reshape(-1, 2).T
    distance = np.abs(stored - own)
    crossed = int(((stored > LABEL_IOU) != (own > LABEL_IOU)).sum())
    mean = float(distance.mean()) if pairs else 0.0
    return IouDifference(len(pairs), float(distance.max(initial=0.0)), mean, crossed, unmatched)


def stored_iou(cache: TrackCache, video_ids: Iterable[str]) -> IouDifference | None:
    """The differences that the import of each video recorded, combined; None if there are none. Raises InputError."""
    parts = []
    for video_id in video_ids:
        try:
            sola_fields = cache.folder(video_id).attributes["provenance"]["sola"]
        except KeyError as error:
            raise InputError(f"{cache.path}, video {video_id}: not imported from SOLA's files; import it again") from error
        if "iou" in sola_fields:
            parts.append(IouDifference(**sola_fields["iou"]))
    return IouDifference.combine(parts) if parts else None
