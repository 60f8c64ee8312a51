"""Dataset x tracker -> tracks cache, and dataset x text encoder -> text cache, with resume, shards and many machines.

steps      the functions of the Python API: extract, extract_text, extract_all
run        process every video that a cache lacks, with progress and a report
engines    run the videos on this machine or on a cluster: local_engine, ray_engine
work       process one video
budget     limit of the bytes on disk
plan       estimate time and bytes from a few videos
bindings   the expressions and the failures that connect a cache with its dataset
"""

from rvos_cache.extraction.bindings import (
    bound_digest,
    changes,
    check_unchanged,
    expressions_digest,
    failed_videos,
    find_dataset,
    video_difference,
)
from rvos_cache.extraction.engine import Engine, Outcome
from rvos_cache.extraction.engines import engine_of
from rvos_cache.extraction.plan import Plan, plan, plan_work
from rvos_cache.extraction.run import ExtractReport, write_videos
from rvos_cache.extraction.steps import Check, extract, extract_all, extract_text, select_videos, shard_of, tracker_card
from rvos_cache.extraction.work import Pending, TrackWork, Work, extract_video

__all__ = [
    "Check", "Engine", "ExtractReport", "Outcome", "Pending", "Plan", "TrackWork", "Work", "bound_digest", "changes", "check_unchanged",
    "engine_of", "expressions_digest", "extract", "extract_all", "extract_text", "extract_video", "failed_videos",
    "find_dataset", "plan", "plan_work", "select_videos", "shard_of", "tracker_card", "video_difference", "write_videos",
]  # fmt: skip
