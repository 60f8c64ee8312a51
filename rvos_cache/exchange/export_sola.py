"""A tracks cache as the files that SOLA's released scripts write, for its training and evaluation code."""

from __future__ import annotations

import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.errors import InputError, naming
from rvos_cache.exchange.sola_files import MASKLETS, METRICS, TOKENS, Kind, SolaTrack, object_name, split_folder, write_track
from rvos_cache.extraction import find_dataset
from rvos_cache.overlap import frame_mean, iou, precision, recall
from rvos_cache.store import TrackCache, TrackInfo
from rvos_cache.types import VIDEO

PROMPT_TYPES: dict[Kind, str] = {"grid": "SAM2 AMG MASK", "gdino": "SAM2 AMG MASK", "gt": "GT MASK"}
"""What SOLA's scripts write for each kind; its loader only compares it with itself."""


def export_sola(cache: Path | str, out: Path | str, progress: Callable[[int], None] = lambda total: None) -> list[Path]:
    """Write `sam2_tracks/<kind>_tracks/<dataset>/<split>` below `out`, and return these folders.

    Training-only tracks become gt_tracks; of the others those of the video grid_tracks and those that an expression asked
    for gdino_tracks, whatever tracker made them. What an import kept of SOLA's JSON is written as it was; other tracks get
    their place in the folder as anno_id, and precision, recall and IoU from the counts of the annotated frames, at full
    size, where the split shows its answers. progress: called after each video with the number of videos.
    Raises InputError for a folder that is there already, OSError when the disk refuses; nothing is left then.
    """
    source, out = TrackCache(cache), Path(out)
    dataset = find_dataset(source.card)
    name = source.card.dataset.rpartition(":")[2] if dataset is None else dataset.name
    targets = {kind: out / "sam2_tracks" / split_folder(kind, name, source.card.split) for kind in kinds(source)}
    for target in targets.values():
        if target.exists():
            raise InputError(f"{target}: is there already; choose another --out, or remove it to export again")
    lost = [] if dataset is None else sorted(set(dataset.video_ids()) - set(source.video_ids()))
    if lost:
        warnings.warn(f"{cache}: {len(lost)} videos of the split are not in it and are left out; first {lost[0]}", stacklevel=2)
    aside = {kind: target.with_name(f".{target.name}.{uuid.uuid4().hex}") for kind, target in targets.items()}
    try:
        with naming(out):
            for folder in aside.values():
                (folder / MASKLETS).mkdir(parents=True)
                (folder / TOKENS).mkdir()
            for video_id in source.video_ids():
                _write_video(aside, source, video_id)
                progress(len(source.video_ids()))
            for kind, folder in aside.items():
                os.rename(folder, targets[kind])
    finally:
        for folder in aside.values():
            shutil.rmtree(folder, ignore_errors=True)
    return list(targets.values())


def kinds(source: TrackCache) -> list[Kind]:
    """The kinds of folders that a cache's tracks belong to; one that could hold boxes has their folders, also empty ones."""
    if source.card.training_only:
        return ["gt"]
    prompts = [source.info(video_id).prompt for video_id in source.video_ids()]
    asked = source.card.expressions_digest is not None or any((p != VIDEO).any() for p in prompts)
    unasked = source.card.expressions_digest is None or any((p == VIDEO).any() for p in prompts)
    found: list[tuple[Kind, bool]] = [("grid", unasked), ("gdino", asked)]
    return [kind for kind, there in found if there]


def _write_video(folders: Mapping[Kind, Path], source: TrackCache, video_id: str) -> None:
    """The tracks of a video, each in the folder of its kind."""
    info, tokens, masks = source.info(video_id), source.tokens(video_id), source.masks(video_id)
    kept: list[dict[str, Any]] | None = source.folder(video_id).attributes["provenance"].get("sola", {}).get("tracks")
    labels = _labels(source, info) if kept is None else []
    for kind, folder in folders.items():
        for group, chosen in _groups(kind, info):
            for name in (MASKLETS, TOKENS):
                (folder / name / group).mkdir(parents=True)
            for place, n in enumerate(chosen):
                fields = {"anno_id": place, "prompt_type": PROMPT_TYPES[kind], **labels[n]} if kept is None else kept[n]
                row = tuple(masks.bytes_at(n, t) for t in range(info.frames))
                write_track(folder, group, SolaTrack(row, tokens[n], fields), info.size)


def _groups(kind: Kind, info: TrackInfo) -> Iterator[tuple[str, list[int]]]:
    """Folder below masklets and tokens -> its tracks."""
    if kind == "gdino":
        for i, expression in enumerate(info.expressions):
            yield expression.key, np.flatnonzero(info.prompt == i).tolist()
    else:
        yield info.video_id, list(range(info.tracks)) if kind == "gt" else np.flatnonzero(info.prompt == VIDEO).tolist()


def _labels(source: TrackCache, info: TrackInfo) -> list[dict[str, Any]]:
    """SOLA's precision, recall and IoU of each track by object; none where the split hides its answers."""
    overlap = None if info.object_ids is None else source.overlap(info.video_id)
    if info.object_ids is None or overlap is None or not overlap.annotated.any():
        return [{}] * info.tracks
    names = [object_name(info.video_id, object_id) for object_id in info.object_ids]
    means = {m: frame_mean(measure(overlap), overlap.annotated) for m, measure in zip(METRICS, (precision, recall, iou))}
    return [{metric: dict(zip(names, values[n].tolist())) for metric, values in means.items()} for n in range(info.tracks)]
