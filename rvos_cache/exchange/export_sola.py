"""Export a tracks cache as the files of SOLA's released scripts, for its training and evaluation code."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.errors import InputError, naming
from rvos_cache.exchange.sola_files import MASKLETS, METRICS, TOKENS, Kind, SolaTrack, object_name, split_folder, write_track
from rvos_cache.extraction import find_dataset
from rvos_cache.overlap import frame_mean, iou, precision, recall
from rvos_cache.store import TrackCache, TrackInfo
from rvos_cache.system.files import new_folder
from rvos_cache.system.progress import tracked
from rvos_cache.types import VIDEO

PROMPT_TYPES: dict[Kind, str] = {"grid": "SAM2 AMG MASK", "gdino": "SAM2 AMG MASK", "gt": "GT MASK"}
"""The `prompt_type` that SOLA's scripts write for each kind of tracks; its loader only tests it for equality."""


def export_sola(cache: Path | str, out: Path | str) -> list[Path]:
    """Write `sam2_tracks/<kind>_tracks/<dataset>/<split>` below `out`, and return these folders.

    Training-only tracks become gt_tracks; of the others, tracks of the video become grid_tracks and tracks prompted by an
    expression gdino_tracks, from any tracker. Fields that an import kept of SOLA's JSON are written unchanged; other tracks get
    their index in the folder as anno_id and, if the split has its ground truth, precision, recall and IoU from the counts of
    the annotated frames, at full size.
    Raises InputError if a folder exists already, OSError if a write fails; nothing is left then.
    """
    source, out = TrackCache(cache), Path(out)
    dataset = find_dataset(source.card)
    name = source.card.dataset.rpartition(":")[2] if dataset is None else dataset.name
    folders = {kind: out / "sam2_tracks" / split_folder(kind, name, source.card.split) for kind in track_kinds(source)}
    for folder in folders.values():
        if folder.exists():
            raise InputError(f"{folder}: is there already; choose another --out, or remove it to export again")
    video_ids = source.require_videos()
    missing = [] if dataset is None else sorted(set(dataset.video_ids()) - set(video_ids))
    if missing:
        message = f"{cache}: {len(missing)} videos of the split are not in it and are left out; first {missing[0]}"
        warnings.warn(message, stacklevel=2)
    with naming(out), ExitStack() as stack:
        temporary = {kind: stack.enter_context(new_folder(folder, durable=False)) for kind, folder in folders.items()}
        for folder in temporary.values():
            (folder / MASKLETS).mkdir()
            (folder / TOKENS).mkdir()
        for video_id in tracked(video_ids, "export"):
            _write_video(temporary, source, video_id)
    return list(folders.values())


def track_kinds(source: TrackCache) -> list[Kind]:
    """The kinds of folders of a cache's tracks; a tracker that reads expressions has gdino folders, even empty ones."""
    if source.card.training_only:
        return ["gt"]
    prompts = [source.info(video_id).prompt for video_id in source.video_ids()]
    prompted = source.card.expressions_digest is not None or any((p != VIDEO).any() for p in prompts)
    unprompted = source.card.expressions_digest is None or any((p == VIDEO).any() for p in prompts)
    present: list[tuple[Kind, bool]] = [("grid", unprompted), ("gdino", prompted)]
    return [kind for kind, is_present in present if is_present]


def _write_video(folders: Mapping[Kind, Path], source: TrackCache, video_id: str) -> None:
    """Write each track of a video to the folder of its kind."""
    info, tokens, masks = source.info(video_id), source.tokens(video_id), source.masks(video_id)
    imported: list[dict[str, Any]] | None = source.folder(video_id).attributes["provenance"].get("sola", {}).get("tracks")
    labels = _labels(source, info) if imported is None else []
    for kind, folder in folders.items():
        for group, tracks in _groups(kind, info):
            for name in (MASKLETS, TOKENS):
                (folder / name / group).mkdir(parents=True)
            for anno_id, n in enumerate(tracks):
                computed = {"anno_id": anno_id, "prompt_type": PROMPT_TYPES[kind]}
                fields = {**computed, **labels[n]} if imported is None else imported[n]
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
    """SOLA's precision, recall and IoU of each track by object; none if the split hides its ground truth."""
    overlap = None if info.object_ids is None else source.overlap(info.video_id)
    if info.object_ids is None or overlap is None or not overlap.annotated.any():
        return [{}] * info.tracks
    names = [object_name(info.video_id, object_id) for object_id in info.object_ids]
    means = {m: frame_mean(measure(overlap), overlap.annotated) for m, measure in zip(METRICS, (precision, recall, iou))}
    return [{metric: dict(zip(names, values[n].tolist())) for metric, values in means.items()} for n in range(info.tracks)]
