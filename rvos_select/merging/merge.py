"""Selected tracks to masks: their OR as PNGs, one per frame, as the benchmarks read them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rvos_cache.differences import differences
from rvos_cache.errors import InputError
from rvos_cache.mask_runs import MaskRuns
from rvos_cache.masks import RleMasks
from rvos_cache.media.mask_png import encode_mask_png
from rvos_cache.store import PROVENANCE_FIELDS, SelectionCache
from rvos_cache.system.files import new_folder, restore, write_text
from rvos_cache.system.locks import folder_lock, is_unwritten
from rvos_cache.system.progress import tracked
from rvos_cache.types import Selection
from rvos_select.data.bound import check_cards, check_same_tracks
from rvos_select.data.caches import TrackSource
from rvos_select.merging.hints import warn_if_empty
from rvos_select.merging.policy import DEFAULT_POLICY, PolicyOptions, SelectionPolicy, resolve_policy
from rvos_select.merging.tracks_by_frame import ByFrame, by_frame, check_track_count
from rvos_select.paths import PathLike, Paths

RECORD = ".merge.json"
"""The record of what the masks of a folder were made from, so that a later run continues only with the same: the card of the
selections and the selection policy, and the digest of the selections of each video, since predict may add videos later."""


def merge_masks(selection: Selection, masks: RleMasks, policy: SelectionPolicy) -> RleMasks:
    """The OR of the selected tracks or queries, RleMasks (1, T). masks: (N, T) of the tracks; not read where it has its own.

    Raises InputError when the selection is of another number of tracks.
    """
    check_track_count(selection, masks.shape[0])
    source = masks if selection.masks is None else selection.masks
    return source.union_by_frame(by_frame(policy(selection), selection.parts, source.shape[1]))


def _grouped(
    selections: Sequence[Selection], source: TrackSource, video_id: str, policy: SelectionPolicy
) -> Iterator[tuple[list[Selection], MaskRuns, ByFrame]]:
    """Groups of selections with equal masks: the selections, mask runs, and in each frame the indices in these whose OR is the mask.

    The expressions of a video name few objects, so many have the same mask. Masks of tracks that are not selected are not read.
    """
    info = source.info(video_id)
    by_tracks: dict[ByFrame, list[Selection]] = {}
    for selection in selections:
        check_track_count(selection, info.tracks)
        selected = by_frame(policy(selection), selection.parts, info.frames)
        if selection.masks is None:
            by_tracks.setdefault(selected, []).append(selection)
        else:
            yield [selection], selection.masks.runs(), selected
    if by_tracks:
        needed = sorted({track for selected in by_tracks for own in set(selected) for track in own})
        position = {track: i for i, track in enumerate(needed)}
        runs = source.runs(video_id, needed)
        for tracks_of_group, group in by_tracks.items():
            yield group, runs, tuple(tuple(position[track] for track in own) for own in tracks_of_group)


def merge(selections: PathLike, caches: Paths, out: PathLike, policy: PolicyOptions = DEFAULT_POLICY) -> Path:
    """Write `<out>/<video>/<expression>/<frame>.png` (0 and 255) for every selection; returns `out`.

    The folder of an expression appears by one rename, so a later run skips an existing one, unless masks were removed from it.
    Raises InputError when `out` has masks made from other selections or settings, is being written by another process, or cannot
    be written, and at the end for damaged videos; the others are written all the same.
    """
    source, cache, out = TrackSource(caches), SelectionCache(Path(selections)), Path(out)
    check_cards(cache, source)
    failed: dict[str, InputError] = {}
    resolved = resolve_policy(cache, policy)
    digests: dict[str, str] = {}
    for video_id in cache.require_videos():
        try:
            digests[video_id] = cache.content(video_id)
        except InputError as error:
            failed[video_id] = error
    try:
        card = cache.card.model_dump(mode="json", exclude=set(PROVENANCE_FIELDS))
        with folder_lock(out, "merge"):
            _claim(out, {"selections": card, **resolved.record()}, digests)
            for video_id in tracked(digests, "merge"):
                try:
                    _merge_video(cache, source, video_id, resolved, out)
                except InputError as error:
                    failed[video_id] = error
    except OSError as error:
        raise InputError(
            f"{error.filename or out}: cannot write the masks ({error.strerror}); free space there, or choose another --out"
        ) from error
    warn_if_empty(cache, resolved, [video_id for video_id in digests if video_id not in failed])
    if failed:
        video_id, first = next(iter(failed.items()))
        raise InputError(f"{out}: {len(failed)} videos have no masks, first {video_id}: {first}; then run the same command again")
    return out


def _merge_video(cache: SelectionCache, source: TrackSource, video_id: str, policy: SelectionPolicy, out: Path) -> None:
    """Write the masks of the expressions of a video that have no folder yet, or one that has lost a mask since."""
    check_same_tracks(cache, source, video_id)
    frame_names = cache.info(video_id).frame_names
    selections = [s for s in cache.selections(video_id) if not _is_complete(out / video_id / s.expression_id, frame_names)]
    for group, runs, selected in _grouped(selections, source, video_id, policy):
        pictures = ((f"{name}.png", encode_mask_png(runs.union(t, selected[t]))) for t, name in enumerate(frame_names))
        _write(pictures, [out / video_id / s.expression_id for s in group])


def _is_complete(folder: Path, frame_names: Sequence[str]) -> bool:
    """Whether a folder has a mask for each frame. One that lacks some, or has empty files, is removed: it is made again."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        present = {entry.name for entry in entries if entry.is_file() and entry.stat().st_size}
    if present >= {f"{name}.png" for name in frame_names}:
        return True
    shutil.rmtree(folder)
    return False


def check_masks_of(folder: Path, dataset: str, split: str) -> None:
    """Raises InputError when merge wrote the masks of `folder` for another dataset or split. Masks of other programs may be any."""
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return
    card = record.get("selections") if isinstance(record, dict) else None
    for name, requested in (("dataset", dataset), ("split", split)):
        stored = card.get(name, requested) if isinstance(card, dict) else requested
        if stored != requested:
            raise InputError(f"{folder}: masks of {name} {stored}, not {requested}; give the --{name} that was predicted")


def write_masks(
    selections: SelectionCache, source: TrackSource, video_id: str, expression_id: str, policy: SelectionPolicy, folder: Path
) -> None:
    """Write `<folder>/<frame>.png` of one expression. The folder appears by one rename, and is left as it is if it is complete.

    Raises InputError for other caches than those of the selections, OSError if a write fails.
    """
    if _is_complete(folder, selections.info(video_id).frame_names):
        return
    check_same_tracks(selections, source, video_id)
    selection = next(s for s in selections.selections(video_id) if s.expression_id == expression_id)
    for _, runs, selected in _grouped([selection], source, video_id, policy):
        with new_folder(folder, durable=False) as part:
            for t, name in enumerate(selections.info(video_id).frame_names):
                (part / f"{name}.png").write_bytes(encode_mask_png(runs.union(t, selected[t])))


def _claim(out: Path, record: dict[str, object], digests: dict[str, str]) -> None:
    """Write the record of `out`, and remove what an interrupted run left unfinished.

    Only for the process that has the lock of `out`. record: of the run and the policy; digests: video -> digest of its
    selections. Raises InputError when `out` has another record.
    """
    path = out / RECORD
    restore(path)
    known: dict[str, str] = {}
    if path.exists():
        try:
            stored = json.loads(path.read_text("utf-8"))
            known = dict(stored.pop("videos"))
        except (ValueError, KeyError, TypeError, AttributeError):
            stored = None
        fix = "remove it or choose another --out"
        if stored is None:
            raise InputError(f"{path}: not a record of merge; {fix}")
        for name, old, new in differences(stored, record):
            raise InputError(f"{out}: holds masks of {name} = {old!r:.100}, now it is {new!r:.100}; {fix}")
        for video_id, own in digests.items():
            if known.get(video_id, own) != own:
                raise InputError(f"{out}: holds masks of other selections of video {video_id}; {fix}")
    elif not is_unwritten(out):
        raise InputError(f"{out}: is not empty and not written by merge; choose another --out")
    write_text(path, json.dumps({**record, "videos": {**known, **digests}}))
    for unfinished in out.glob("*/.part-*"):
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(pictures: Iterable[tuple[str, bytes]], folders: Sequence[Path]) -> None:
    """Write each picture, a name and its bytes, into every folder; a folder appears by one rename when it is complete."""
    parts = [folder.parent / f".part-{folder.name}.{os.getpid()}" for folder in folders]
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    for name, content in pictures:
        for part in parts:
            (part / name).write_bytes(content)
    for part, folder in zip(parts, folders):
        try:
            part.rename(folder)
        except OSError:
            # Another process wrote the same masks first.
            shutil.rmtree(part, ignore_errors=True)
            if not folder.is_dir():
                raise
