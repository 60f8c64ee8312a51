"""Label a cache again: the same tracks, with the sentences and the ground truth that the dataset has now.

Datasets are corrected after their release. Tracks depend on the frames alone (unless their tracker reads sentences or ground
truth), so hours of tracking need not be repeated for a corrected mask; overlap counts take milliseconds.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

from rvos_cache.datasets import open_dataset
from rvos_cache.errors import InputError
from rvos_cache.extraction import ExtractReport, check_unchanged, write_videos
from rvos_cache.identity import frames_difference, frames_digest
from rvos_cache.overlap import count_overlap
from rvos_cache.store import CacheWriter, TrackCache, provenance, write_tracks


def relabel(cache: Path | str, out: Path | str, root: Path | str | None = None, jobs: int = 1) -> ExtractReport:
    """Write the tracks of `cache` to the cache `out` with the dataset's sentences, masks and overlap counts of now.

    root: of the dataset, by default that of the card. Run again, it does what is left. A video whose frames have changed fails:
    it needs new tracks. Raises InputError for tracks that depend on sentences or ground truth or are measured against it, for a
    dataset that is not there, or if `out` is another cache.
    """
    source = TrackCache(cache)
    card = source.card
    if Path(out).resolve() == Path(cache).resolve():
        raise InputError(f"{out}: is the cache to label again; give another --out, a cache is never changed in place")
    for depends, reason in (
        (card.expressions_digest is not None, "depend on the sentences"),
        (card.training_only, "were prompted with the ground truth"),
        (bool(card.measurement_specs), "were measured against the ground truth"),
    ):
        if depends:
            raise InputError(f"{cache}: its tracks {reason}, so they cannot be labelled again; extract into another path")
    dataset = open_dataset(card.dataset, Path(root or card.root), card.split)

    def write_video(writer: CacheWriter, video_id: str) -> int:
        record, video = source.read(video_id), dataset.video(video_id)
        difference = frames_difference((record.frame_names, record.size), (video.frame_names, video.size))
        if difference is None and record.frames_digest not in (None, frames_digest(video)):
            difference = "its frames are other pictures"
        if difference is not None:
            raise InputError(f"{cache}, video {video_id}: {difference}; extract it again")
        truth = dataset.ground_truth(video_id) if dataset.has_ground_truth else None
        overlap = None if truth is None else count_overlap(record.tracks.masks, truth)
        expressions = dataset.expressions(video_id)
        changed = replace(record, expressions=expressions, ground_truth=truth, overlap=overlap)
        write_tracks(writer, changed, {"host": socket.gethostname()})
        return len(video)

    labelled = card.model_copy(update={"root": str(dataset.root.absolute()), **provenance()})
    check_unchanged(out, labelled, dataset, source.video_ids())
    return write_videos(out, labelled, source.video_ids(), write_video, f"{card.producer} {card.split}", jobs)
