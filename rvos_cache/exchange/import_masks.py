"""Import the masks of any tracker as a cache. The directory contains each video in one of two forms:

    <video>/<track>/<frame>.png    one image per frame of the video, with the frame's name; the mask is where it is not black
    <video>.json                   {"<track>": [mask, ...], ...}, one mask per frame of the video in order: COCO RLE
                                   {"size": [H, W], "counts": ...} or null, which is a mask without a pixel

Tracks are in the order of their names, or of the file. A video without a track is an empty folder or object. Tokens and
presence are computed from these masks as by the flow tracker; so the cache's producer is "flow", with the setting
masks = "imported" in addition to the flow tracker's.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.datasets import Dataset, open_dataset
from rvos_cache.errors import InputError
from rvos_cache.exchange.imported import SOURCE, check_same_sources, source_digest
from rvos_cache.extraction import ExtractReport, select_videos, write_videos
from rvos_cache.identity import frames_digest
from rvos_cache.masks import RleMasks, encode, from_coco
from rvos_cache.media.frames import warn_of_text_order
from rvos_cache.media.mask_png import read_grey_png
from rvos_cache.overlap import count_overlap
from rvos_cache.settings import build
from rvos_cache.store import CacheWriter, Card, TrackRecord, provenance, write_tracks
from rvos_cache.trackers.flow import FlowSettings, FlowTracker, motion, tokens, working_step
from rvos_cache.types import VIDEO, TrackSet, Video, check_id

ORIGIN = "import"
IMPORTED = {"masks": "imported"}
"""Added to the flow tracker's settings in the card: its tokens, of another tracker's masks."""


def import_masks(
    directory: Path | str,
    dataset: str,
    root: Path | str,
    split: str,
    out: Path | str,
    *,
    videos: Iterable[str] = (),
    limit: int | None = None,
    shard: str = "1/1",
    jobs: int = 1,
) -> ExtractReport:
    """Write the tracks of a split in `directory` to the cache `out`. A second run writes what is missing.

    Raises InputError for a folder or dataset that cannot be used, OSError if the disk is full or read-only.
    """
    source, settings = open_dataset(dataset, root, split), build(FlowSettings, {}, "tracker flow")
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: not found; give the folder that contains <video>/<track>/<frame>.png or <video>.json")
    card = Card(
        kind="tracks",
        dataset=dataset,
        split=source.split,
        producer="flow",
        settings=settings.model_dump(mode="json") | IMPORTED,
        channels=FlowTracker.channels,
        label_iou=FlowTracker.label_iou,
        root=str(source.root.absolute()),
        **provenance(),
    )

    def paths_of(video_id: str) -> list[Path]:
        return [directory / video_id, directory / f"{video_id}.json"]

    def write_video(writer: CacheWriter, video_id: str) -> int:
        start = time.perf_counter()
        record, names = read_video(directory, source, video_id, settings)
        origin = {"host": socket.gethostname(), "seconds": round(time.perf_counter() - start, 3)}
        write_tracks(writer, record, {**origin, "tracks": names, SOURCE: source_digest(paths_of(video_id))})
        return len(record.frame_names)

    video_ids = select_videos(source, videos, limit, shard)
    check_same_sources(out, card, source, video_ids, paths_of)
    return write_videos(out, card, video_ids, write_video, f"masks {split}", jobs)


def read_video(directory: Path, source: Dataset, video_id: str, settings: FlowSettings) -> tuple[TrackRecord, list[str]]:
    """One video as a record, and the names of its tracks. Raises InputError for anything missing or damaged."""
    video = source.video(video_id)
    folder, file = directory / video_id, directory / f"{video_id}.json"
    if folder.is_dir() and file.exists():
        raise InputError(f"{file}: {folder} is there too, and only one of them can be this video; remove the other")
    if folder.is_dir():
        rows = _from_pngs(folder, video)
    elif file.exists():
        rows = _from_json(file, video)
    else:
        raise InputError(f"{folder}: not found, and no {file.name}; a video without a track is an empty folder")
    masks = RleMasks.from_bytes(list(rows.values()), len(video), video.size)
    truth = source.ground_truth(video_id) if source.has_ground_truth else None
    overlap = None if truth is None else count_overlap(masks, truth)
    expressions, tracks = source.expressions(video_id), describe_tracks(video, masks, settings)
    record = TrackRecord(
        video_id, video.frame_names, video.size, expressions, tracks, truth, overlap, frames_digest=frames_digest(video)
    )
    return record, list(rows)


def describe_tracks(video: Video, masks: RleMasks, settings: FlowSettings) -> TrackSet:
    """Masks (N, T) of a video with the flow tracker's tokens and presence. The prompt of a track is its largest mask."""
    n, t = masks.shape
    measured = motion.measure(video.read, t, working_step(video.size, settings)) if n else None
    track_tokens, presence = tokens.describe(video.read, masks, measured)
    frames = masks.area().argmax(1).astype(np.int32)
    boxes = masks.boxes()[np.arange(n), frames].astype(np.float32).reshape(n, 4)
    boxes[:, 2:] += boxes[:, :2]
    return TrackSet(track_tokens, presence, masks, np.full(n, VIDEO, np.int32), (ORIGIN,) * n, frames, boxes)


def _from_pngs(folder: Path, video: Video) -> dict[str, list[bytes]]:
    """Track -> T compressed masks."""
    rows = {}
    for track in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        if not track.is_dir():
            raise InputError(f"{track}: expected a folder per track with a PNG per frame; move it there or remove it")
        check_id(track.name, f"{folder}, track")
        names = {p.name for p in track.iterdir() if not p.name.startswith(".")}
        expected = [f"{name}.png" for name in video.frame_names]
        missing, foreign = [name for name in expected if name not in names], sorted(names - set(expected))
        if missing:
            raise InputError(
                f"{track / missing[0]}: not found ({len(missing)} of {len(expected)} frames lack one); write a black PNG "
                "for a frame in which the track is not visible"
            )
        if foreign:
            raise InputError(f"{track / foreign[0]}: the video has no such frame; remove it, or give it the name of its frame")
        rows[track.name] = [encode(read_grey_png(track / name, video.size, "write it again") != 0) for name in expected]
    return rows


def _from_json(path: Path, video: Video) -> dict[str, list[bytes]]:
    """Track -> T compressed masks."""

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            raise ValueError("a key is there twice in one object")
        return content

    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not whole JSON ({error}); write it again") from error
    if not isinstance(content, dict):
        expected = '{"<track>": [COCO RLE or null for each frame]}'
        raise InputError(f"{path}: expected {expected}, found {type(content).__name__}; write it again")
    warn_of_text_order(path, video.frame_names)
    rows = {}
    for track, masks in content.items():
        location = f"{path}, track {track!r}"
        check_id(track, f"{path}, track")
        if not isinstance(masks, list) or len(masks) != len(video):
            description = f"{len(masks)} masks" if isinstance(masks, list) else type(masks).__name__
            raise InputError(f"{location}: expected a list of {len(video)} masks, found {description}; write one per frame")
        rows[track] = [from_coco(mask, video.size, f"{location}, frame {t}") for t, mask in enumerate(masks)]
    return rows
