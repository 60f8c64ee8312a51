"""SOLA's released tracks of a split as a cache: masks, tokens and ids as they are, overlap counts from masks and ground truth.

The cache's producer is "sola". Its tokens stay float32. The files do not say where a prompt was, so `prompt_frame` is -1 and
`prompt_box` zeros; presence is 1 where a mask has pixels and 0 elsewhere, because SAM 2 empties the mask of an object that
it holds for hidden. What else a track's JSON holds is kept in the video's provenance, for `export_sola`.
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
from rvos_cache.exchange.sola_files import CHANNELS, ORIGINS, Kind, SolaFolder, SolaTrack, object_name
from rvos_cache.extraction import ExtractReport, bound_digest, select_videos, write_videos
from rvos_cache.masks import RleMasks
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
    """How far the mean IoU that SOLA's scripts stored, at 540x960 but for gt tracks, lies from the one counted at full size.

    pairs: of track and object that have both; largest, mean: of the absolute differences; crossed: pairs that lie on the
    other side of LABEL_IOU, so that their label differs; unmatched: stored values of objects that the split does not annotate.
    """

    pairs: int = 0
    largest: float = 0.0
    mean: float = 0.0
    crossed: int = 0
    unmatched: int = 0

    @classmethod
    def joined(cls, parts: Sequence[IouDifference]) -> IouDifference:
        """Several videos as one."""
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
    """What `import_sola` did; stored_iou: over all videos asked for that are in the cache, None where nothing was stored."""

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
    """Write the `tracks` of a split in `directory` (SOLA's `sam2_tracks`) to the cache `out`; run again, it does what is left.

    One cache per kind of tracks, joined in stage two: those of gt are for training only, those of gdino belong to expressions.
    Raises InputError for a folder or dataset that cannot be used, OSError when the disk is full or read-only.
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
        root=str(source.root),
        **provenance(),
    )
    chosen = select_videos(source, videos, limit, shard)
    foreign = sorted(folder.video_ids() - set(source.video_ids()))
    if foreign:
        said = f"{folder.path}: {len(foreign)} videos are not of split {split} and are left out; first {foreign[0]}"
        warnings.warn(said, stacklevel=2)

    def one(writer: CacheWriter, video_id: str) -> int:
        began = time.perf_counter()
        record, held = read_video(folder, source, video_id)
        spent = {"host": socket.gethostname(), "seconds": round(time.perf_counter() - began, 3)}
        write_tracks(writer, record, {**spent, "sola": held})
        return len(record.frame_names)

    report = write_videos(out, card, chosen, one, f"sola {tracks} {split}", jobs)
    return SolaImport(report, stored_iou(TrackCache(out), [*report.done, *report.skipped]))


def read_video(folder: SolaFolder, source: Dataset, video_id: str) -> tuple[TrackRecord, dict[str, Any]]:
    """One video as a record, and for its provenance "tracks", the other fields of each track, and "iou", the difference.

    Raises InputError for anything missing, damaged or of another video.
    """
    video, expressions = source.video(video_id), source.expressions(video_id)
    prompts: list[int] = []
    found: list[SolaTrack] = []
    for prompt, group in folder.groups(video_id, expressions):
        for name in folder.track_names(group):
            found.append(folder.read(group, name, len(video), video.size))
            prompts.append(prompt)
    n, t = len(found), len(video)
    masks = RleMasks.from_bytes([track.masks for track in found], t, video.size)
    tracks = TrackSet(
        tokens=np.stack([track.tokens for track in found]) if found else np.zeros((0, t, CHANNELS), np.float32),
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
    held: dict[str, Any] = {"tracks": [dict(track.fields) for track in found]}
    if truth is not None and overlap is not None and any("iou" in fields for fields in held["tracks"]):
        held["iou"] = asdict(compared(video_id, held["tracks"], truth, overlap))
    return record, held


def compared(video_id: str, fields: Sequence[Mapping[str, Any]], truth: GroundTruth, overlap: Overlap) -> IouDifference:
    """The stored IoU of one video's tracks, by object, beside the counted one."""
    column = {object_name(video_id, object_id): a for a, object_id in enumerate(truth.object_ids)}
    counted = frame_mean(iou(overlap), overlap.annotated) if overlap.annotated.any() else np.zeros((len(fields), 0))
    pairs, unmatched = [], 0
    for n, held in enumerate(fields):
        for name, value in held.get("iou", {}).items():
            a = column.get(name)
            if a is None or a >= counted.shape[1]:
                unmatched += 1
            else:
                pairs.append((value, counted[n, a]))
    stored, own = np.array(pairs, np.float64).reshape(-1, 2).T
    away = np.abs(stored - own)
    crossed = int(((stored > LABEL_IOU) != (own > LABEL_IOU)).sum())
    return IouDifference(len(pairs), float(away.max(initial=0.0)), float(away.mean()) if pairs else 0.0, crossed, unmatched)


def stored_iou(cache: TrackCache, video_ids: Iterable[str]) -> IouDifference | None:
    """The differences that the import of each video recorded, as one; None where none was stored. Raises InputError."""
    parts = []
    for video_id in video_ids:
        try:
            held = cache.folder(video_id).attributes["provenance"]["sola"]
        except KeyError as error:
            raise InputError(f"{cache.path}, video {video_id}: not imported from SOLA's files; import it again") from error
        if "iou" in held:
            parts.append(IouDifference(**held["iou"]))
    return IouDifference.joined(parts) if parts else None
