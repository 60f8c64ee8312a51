"""Dataset x tracker -> store, and dataset x text encoder -> store: resume, shards, failures, many processes and machines.

steps      what a user asks for: extract, extract_text, extract_all
run        every video that a cache lacks, with progress and a report
engines    who works on the videos, an engine: local_engine, ray_engine
work       what is made of one video
budget     the room it may take on disk
plan       what it will take, from a timing of a few videos
bindings   the expressions and failures that tie a cache to its dataset
"""

from rvos_cache.extraction.bindings import at_hand, bound_digest, expressions_digest, failed_videos
from rvos_cache.extraction.engine import Engine, Outcome
from rvos_cache.extraction.engines import engine_of
from rvos_cache.extraction.plan import Plan, plan
from rvos_cache.extraction.run import ExtractReport, write_videos
from rvos_cache.extraction.steps import chosen_videos, extract, extract_all, extract_text
from rvos_cache.extraction.work import Made, TrackWork, Work, extract_video

__all__ = [
    "Engine", "ExtractReport", "Made", "Outcome", "Plan", "TrackWork", "Work", "at_hand", "bound_digest", "chosen_videos",
    "engine_of", "expressions_digest", "extract", "extract_all", "extract_text", "extract_video", "failed_videos", "plan",
    "write_videos",
]  # fmt: skip
