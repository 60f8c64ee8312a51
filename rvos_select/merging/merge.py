"""Selected tracks to masks: OR, PNGs as the benchmarks take them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rvos_cache.errors import InputError
from rvos_cache.files import write_text
from rvos_cache.mask_png import encode_mask_png
from rvos_cache.mask_runs import MaskRuns
from rvos_cache.masks import RleMasks
from rvos_cache.store import PROVENANCE_FIELDS, SelectionCache, canonical, digest, video_digest
from rvos_cache.types import Selection
from rvos_select.data.caches import TrackSource
from rvos_select.merging.policy import DEFAULT_POLICY, PolicyOptions, SelectionPolicy, completed, resolve_policy

RECORD = ".merge.json"
"""What the masks of a folder were made from, so that a later run only goes on with the same: run and settings as a whole,
and the selections of each video, since predict may add videos that failed before."""


def merge_masks(selection: Selection, masks: RleMasks, rule: SelectionPolicy) -> RleMasks:
    """The OR of the selected tracks, RleMasks (1, T). masks: (N, T) of the video; not read where the selector drew its own.

    Raises InputError when the selection is of another number of tracks.
    """
    source = masks if selection.masks is None else selection.masks
    check_width(selection, source.shape[0])
    return source.union(rule(selection))


def check_width(selection: Selection, tracks: int) -> None:
    """Raises InputError unless the selection scores that many `tracks`."""
    if len(selection.scores) != tracks:
        raise InputError(
            f"the selection of expression {selection.expression_id} scores {len(selection.scores)} tracks, the caches hold "
            f"{tracks}; give --cache as predict was given it"
        )


def _merged(
    todo: Sequence[Selection], source: TrackSource, video_id: str, rule: SelectionPolicy
) -> Iterator[tuple[list[Selection], MaskRuns, list[int]]]:
    """Selections that chose the same, with the masks of the video and those among them whose OR they mean.

    A video's sentences mean few objects, so what is drawn for one is mostly drawn for several. The masks of tracks that
    nobody chose are not read.
    """
    tracks = source.info(video_id).tracks
    same: dict[tuple[int, ...], list[Selection]] = {}
    for selection in todo:
        check_width(selection, tracks if selection.masks is None else selection.masks.shape[0])
        picked = rule(selection).tolist()
        if selection.masks is None:
            same.setdefault(tuple(picked), []).append(selection)
        else:
            yield [selection], selection.masks.runs(), picked
    if same:
        wanted = sorted({track for picked in same for track in picked})
        runs = source.runs(video_id, wanted)
        for picked, selections in same.items():
            yield selections, runs, [wanted.index(track) for track in picked]


def check_pair(selections: SelectionCache, tracks: TrackSource, video_id: str) -> None:
    """Raises InputError when the caches hold other frames of the video than the selections were made of."""
    said, held = selections.info(video_id), tracks.info(video_id)
    if (said.frame_names, said.size) != (held.frame_names, held.size):
        raise InputError(
            f"{selections.path}, video {video_id}: made of {len(said.frame_names)} frames of {said.size}, "
            f"{tracks.caches[0].path} holds {held.frames} of {held.size}; predict again"
        )


def check_cards(selections: SelectionCache, tracks: TrackSource) -> None:
    """Raises InputError, naming the field, when the selections were made of other caches than these, or in another order."""
    made = selections.card.extra.get("tracks")
    if made is None:
        return
    remedy = "give --cache as predict was given it"
    if len(made) != len(tracks.caches):
        raise InputError(f"{selections.path}: made of {len(made)} caches, {len(tracks.caches)} were given; {remedy}")
    for wanted, cache in zip(made, tracks.caches):
        for field, value in wanted.items():
            have = getattr(cache.card, field)
            if have != value:
                raise InputError(f"{selections.path}: made of tracks with {field} {value}, {cache.path} has {have}; {remedy}")


def merge(selections: Path, caches: Sequence[Path], out: Path, policy: PolicyOptions = DEFAULT_POLICY) -> Path:
    """Write `<out>/<video>/<expression>/<frame>.png` (0 and 255) for every selection; returns `out`.

    An expression's folder appears by one rename, so one that is there is complete and a later run goes on after it.
    Raises InputError when `out` holds masks made from other selections or settings, or cannot be written, and in the end
    for videos that are damaged, which stop no other.
    """
    source, said, out = TrackSource(caches), SelectionCache(selections), Path(out)
    check_cards(said, source)
    failed: dict[str, InputError] = {}
    rule = resolve_policy(said, policy)
    digests: dict[str, str] = {}
    for video_id in said.video_ids():
        try:
            digests[video_id] = video_digest(said, video_id)
        except InputError as error:
            failed[video_id] = error
    try:
        whole = {"selections": digest(canonical(said.card.model_dump(exclude=set(PROVENANCE_FIELDS))))}
        _claim(out, {**whole, **rule.record()}, digests)
        for video_id in digests:
            try:
                check_pair(said, source, video_id)
                todo = [s for s in said.selections(video_id) if not (out / video_id / s.expression_id).is_dir()]
                names = said.info(video_id).frame_names
                for selections_alike, runs, picked in _merged(todo, source, video_id, rule):
                    pictures = ((f"{name}.png", encode_mask_png(runs.union(t, picked))) for t, name in enumerate(names))
                    _write(pictures, [out / video_id / s.expression_id for s in selections_alike])
            except InputError as error:
                failed[video_id] = error
    except OSError as error:
        raise InputError(f"{error.filename or out}: the masks cannot be written ({error.strerror}); free or change it") from error
    if failed:
        video_id, first = next(iter(failed.items()))
        raise InputError(f"{out}: {len(failed)} videos have no masks, first {video_id}: {first}; then run the same command again")
    return out


def _claim(out: Path, record: dict[str, object], digests: dict[str, str]) -> None:
    """Bind `out` to what its masks are made from; sweep what an interrupted run left half written.

    record: of the run and the settings; digests: video -> of its selections. Raises InputError when `out` is bound to others.
    """
    path = out / RECORD
    known: dict[str, str] = {}
    if path.exists():
        try:
            held = json.loads(path.read_text("utf-8"))
            known = dict(held.pop("videos"))
            held = completed(held)
        except (ValueError, KeyError, TypeError, AttributeError):
            held = None
        if held != record or any(known.get(video_id, own) != own for video_id, own in digests.items()):
            raise InputError(f"{out}: holds masks of other selections or settings; remove it or choose another --out")
    elif out.exists() and any(RECORD not in path.name for path in out.iterdir()):
        raise InputError(f"{out}: is not empty and not written by merge; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({**record, "videos": {**known, **digests}}))
    for left in out.glob("*/.part-*"):
        shutil.rmtree(left, ignore_errors=True)


def _write(pictures: Iterable[tuple[str, bytes]], folders: Sequence[Path]) -> None:
    """Each picture, a name and its bytes, in every folder; a folder appears by one rename when it is whole."""
    parts = [folder.parent / f".part-{folder.name}.{os.getpid()}" for folder in folders]
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    for name, raw in pictures:
        for part in parts:
            (part / name).write_bytes(raw)
    for part, folder in zip(parts, folders):
        try:
            part.rename(folder)
        except OSError:
            # Another process wrote the same masks first.
            shutil.rmtree(part, ignore_errors=True)
            if not folder.is_dir():
                raise
