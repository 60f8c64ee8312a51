"""The data that a run has seen: the content of every video that it trains on or validates with, in `<run>/data.json`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from rvos_cache.errors import InputError
from rvos_cache.system.files import write_json
from rvos_select.data.caches import TrackSource
from rvos_select.runs.checkpoint import read_json

DATA = "data.json"
Contents = Mapping[str, Sequence[Mapping[str, str]]]
"""Kind of caches ("tracks", "text", "valid_tracks", "valid_text") -> for each cache, video -> its content
(`rvos_cache.store.content`)."""
TITLES = {"tracks": "tracks", "text": "words", "valid_tracks": "tracks to validate with", "valid_text": "words to validate with"}


def write_data(run: Path, contents: Contents) -> None:
    """Write data.json of a new run."""
    write_json(run / DATA, {kind: [dict(cache) for cache in caches] for kind, caches in contents.items()})


def check_data(run: Path, contents: Contents) -> None:
    """Raises InputError, naming the first video, when a run that is resumed was started with other data.

    Writes data.json where the run was killed before it did.
    """
    if not (run / DATA).exists() and not (run / "last").exists():
        # Killed before its first epoch, between two files.
        write_data(run, contents)
    stored = read_json(run / DATA, "an older version started this run; train again into another --out")
    for kind, caches in contents.items():
        for old, new in zip(stored.get(kind, []), caches):
            changed = [v for v in old if new.get(v, old[v]) != old[v]]
            added, removed = sorted(new.keys() - old), sorted(old.keys() - new)
            for videos, what in ((changed, "changed"), (removed, "gone"), (added, "new")):
                if videos:
                    raise InputError(
                        f"{run}: was started with other {TITLES[kind]}: those of {len(videos)} videos are {what}, first {videos[0]}; "
                        "bring the caches back, or train into another --out"
                    )


def seen_videos(run: Path, tracks: TrackSource) -> list[str]:
    """The videos of `tracks` that the run was trained on, by their content; none for a run that does not know its data."""
    if not (run / DATA).exists():
        return []
    trained: dict[str, set[str]] = {}
    for cache in read_json(run / DATA, "train again into another --out").get("tracks", []):
        for video_id, content in cache.items():
            trained.setdefault(video_id, set()).add(content)
    return [v for v in tracks.video_ids() if not trained.get(v, set()).isdisjoint(tracks.contents(v))]


def warn_of_seen_videos(run: Path, tracks: TrackSource) -> None:
    """Warns where videos to predict were trained on: their scores say little about others."""
    videos = seen_videos(run, tracks)
    if videos:
        total = len(tracks.video_ids())
        warnings.warn(
            f"{len(videos)} of {total} videos were trained on by {run}, first {videos[0]}: their scores will flatter",
            stacklevel=4,
        )
