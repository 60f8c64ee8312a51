"""The masks of any tracker as a cache. DIR holds each video in one of two forms:

    <video>/<track>/<frame>.png    one picture per frame of the video, under the frame's name; any pixel but 0 is the track
    <video>.json                   {"<track>": [mask, ...], ...}, one per frame of the video in order: COCO RLE
                                   {"size": [H, W], "counts": ...} or null, which is a mask without a pixel

Tracks come in the order of their names, or of the file. A video without a track is an empty folder or object. Tokens and
presence are the flow tracker's, measured on these masks; the cache's producer is therefore "flow", with the setting
masks = "imported" beside those that say how tokens are measured.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rvos_cache.datasets import Dataset, open_dataset
from rvos_cache.errors import InputError
from rvos_cache.extraction import ExtractReport, select_videos, write_videos
from rvos_cache.frames import BROKEN
from rvos_cache.masks import RleMasks, encode, from_coco
from rvos_cache.overlap import count_overlap
from rvos_cache.settings import build
from rvos_cache.store import CacheWriter, Card, TrackRecord, provenance, write_tracks
from rvos_cache.trackers.flow import FlowSettings, FlowTracker, motion, tokens, working_step
from rvos_cache.types import VIDEO, TrackSet, Video, check_id

ORIGIN = "import"
IMPORTED = {"masks": "imported"}
"""Beside the flow tracker's settings in a card: its tokens, of tracks that it did not find."""
MODES = ("1", "L", "P", "I;16", "I")
"""Pillow's names of one number per pixel."""


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
    """Write the tracks of a split in `directory` to the cache `out`; run again, it does what is left.

    Raises InputError for a folder or dataset that cannot be used, OSError when the disk is full or read-only.
    """
    source, settings = open_dataset(dataset, root, split), build(FlowSettings, {}, "tracker flow")
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: not found; give the folder that holds <video>/<track>/<frame>.png or <video>.json")
    card = Card(
        kind="tracks",
        dataset=dataset,
        split=source.split,
        producer="flow",
        settings=settings.model_dump(mode="json") | IMPORTED,
        channels=FlowTracker.channels,
        label_iou=FlowTracker.label_iou,
        root=str(source.root),
        **provenance(),
    )

    def one(writer: CacheWriter, video_id: str) -> int:
        began = time.perf_counter()
        record, names = read_video(directory, source, video_id, settings)
        spent = {"host": socket.gethostname(), "seconds": round(time.perf_counter() - began, 3)}
        write_tracks(writer, record, {**spent, "tracks": names})
        return len(record.frame_names)

    return write_videos(out, card, select_videos(source, videos, limit, shard), one, f"masks {split}", jobs)


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
    expressions, tracks = source.expressions(video_id), described(video, masks, settings)
    return TrackRecord(video_id, video.frame_names, video.size, expressions, tracks, truth, overlap), list(rows)


def described(video: Video, masks: RleMasks, settings: FlowSettings) -> TrackSet:
    """Masks (N, T) of a video with the flow tracker's tokens and presence; the prompt is a track's largest mask."""
    n, t = masks.shape
    moved = motion.measure(video.read, t, working_step(video.size, settings)) if n else None
    codes, presence = tokens.describe(video.read, masks, moved)
    frames = masks.area().argmax(1).astype(np.int32)
    boxes = masks.boxes()[np.arange(n), frames].astype(np.float32).reshape(n, 4)
    boxes[:, 2:] += boxes[:, :2]
    return TrackSet(codes, presence, masks, np.full(n, VIDEO, np.int32), (ORIGIN,) * n, frames, boxes)


def _from_pngs(folder: Path, video: Video) -> dict[str, list[bytes]]:
    """Track -> T compressed masks."""
    rows = {}
    for track in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        if not track.is_dir():
            raise InputError(f"{track}: wanted a folder per track with a PNG per frame; move it there or remove it")
        files = {p.name for p in track.iterdir() if not p.name.startswith(".")}
        wanted = [f"{name}.png" for name in video.frame_names]
        lost, foreign = [name for name in wanted if name not in files], sorted(files - set(wanted))
        if lost:
            raise InputError(f"{track / lost[0]}: not found ({len(lost)} of {len(wanted)} frames lack one); write a black PNG "
                             "where the track is not seen")  # fmt: skip
        if foreign:
            raise InputError(f"{track / foreign[0]}: the video has no such frame; remove it, or name it as the frame is named")
        rows[track.name] = [encode(_read_png(track / name, video.size)) for name in wanted]
    return rows


def _read_png(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask (H, W)."""
    try:
        with Image.open(path) as image:
            found = (image.height, image.width)
            if image.mode not in MODES:
                raise InputError(f"{path}: wanted one number per pixel, 0 for the ground, found {image.mode}; write a grey PNG")
            if found != tuple(size):
                raise InputError(f"{path}: {found} pixels (height, width), its frame has {tuple(size)}; write it at that size")
            return np.asarray(image) != 0
    except BROKEN as error:
        raise InputError(f"{path}: not a whole PNG ({error}); write it again") from error


def _from_json(path: Path, video: Video) -> dict[str, list[bytes]]:
    """Track -> T compressed masks."""
    wanted = '{"<track>": [COCO RLE or null for each frame]}'

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name stands twice in one object")
        return found

    try:
        held = json.loads(path.read_bytes(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not whole JSON ({error}); write it again") from error
    if not isinstance(held, dict):
        raise InputError(f"{path}: wanted {wanted}, found {type(held).__name__}; write it again")
    rows = {}
    for track, row in held.items():
        check_id(track, f"{path}, track")
        if not isinstance(row, list) or len(row) != len(video):
            found = f"{len(row)} masks" if isinstance(row, list) else type(row).__name__
            raise InputError(f"{path}, track {track!r}: wanted a list of {len(video)} masks, found {found}; write one per frame")
        rows[track] = [from_coco(mask, video.size, f"{path}, track {track!r}, frame {t}") for t, mask in enumerate(row)]
    return rows
