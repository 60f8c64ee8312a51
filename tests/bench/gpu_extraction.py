"""Rates of SAM 2: ours, a plain session of transformers, and Meta's package where it is installed; and the limit of attention."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sam2_bench
import torch
from gpu_training import wait
from plain_sam2 import plain_tracks
from torch.nn.attention import SDPBackend

from rvos_cache.masks import RleMasks
from rvos_cache.system.device import device
from rvos_cache.trackers.sam2.backend import Backend, make_prompts
from rvos_cache.trackers.sam2.official import OfficialBackend
from rvos_cache.trackers.sam2.precision import inference_precision
from rvos_cache.trackers.sam2.settings import GridSettings, Sam2Settings
from rvos_cache.trackers.sam2.tracker import Sam2Grid
from rvos_cache.trackers.sam2.transformers_backend import TransformersBackend


@dataclass(frozen=True)
class Sizes:
    """model: name in sam2_bench.SHAPES; runs, long: (frames, tracks, batch) of ours and of a long video; mevis, batch: frames and
    tracks of a video of sam2-grid, and its batch; peers: (frames, tracks); points: per side of a grid; keys, head: of SDPA."""

    model: str
    size: tuple[int, int]
    runs: tuple[tuple[int, int, int], ...]
    mevis: tuple[int, int]
    batch: int
    long: tuple[int, int, int]
    peers: tuple[int, int]
    points: int
    keys: tuple[int, int]
    head: int


LARGE = Sizes(
    "large", (720, 1280), ((24, 8, 4), (32, 16, 16), (60, 16, 16), (300, 16, 16)), (79, 40), 16, (2000, 16, 16), (24, 8),
    32, (4096, 28672), 256,
)  # fmt: skip
TINY = Sizes("tiny", (60, 80), ((4, 2, 2),), (5, 3), 2, (8, 2, 2), (4, 2), 2, (16, 112), 32)
WARM = 20
"""Frames of the video before: enough for every number of maps that a frame attends to."""
MEVIS_VIDEOS = 1662
"""Of MeViS train; they have 79 frames and, by sam2-grid, 40 tracks in the mean."""


def seconds(run: Callable[[], object]) -> float:
    """Wall clock, until the GPU has finished."""
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def prompts_of(sizes: Sizes, frames: int, tracks: int) -> list[Any]:
    """Mask prompts of the middle frame."""
    return make_prompts(RleMasks.from_dense(sam2_bench.prompt_masks(tracks, sizes.size)[:, None]), frames // 2)


def measure_ours(backend: TransformersBackend, sizes: Sizes, frames: int, tracks: int, batch: int) -> dict[str, float]:
    """Seconds and rates of encoding and of following in both directions, and the peak memory, after a short video; how long that
    took, with its compilation."""
    first = seconds(lambda: run_video(backend, sizes, min(frames, WARM), min(tracks, batch), batch))
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    encode, follow = run_video(backend, sizes, frames, tracks, batch)
    out = {"seconds": encode + follow, "encoded_frames_per_s": frames / encode, "track_frames_per_s": frames * tracks / follow}
    memory = {"peak_gb": torch.cuda.max_memory_allocated() / 1e9} if device().type == "cuda" else {}
    return out | memory | {"first_video_seconds": first}


def run_video(backend: TransformersBackend, sizes: Sizes, frames: int, tracks: int, batch: int) -> tuple[float, float]:
    """Seconds of encoding a video and of following in both directions."""
    video, prompts, t = sam2_bench.moving(frames, sizes.size), prompts_of(sizes, frames, tracks), frames // 2
    with backend.open(video) as session, sam2_bench.outlined():
        encode = seconds(lambda: session.features)
        return encode, seconds(lambda: [session.propagate(t, prompts[i : i + batch]) for i in range(0, tracks, batch)])


def measure_grid(backend: TransformersBackend, sizes: Sizes) -> dict[str, float]:
    """Seconds of the grid of one prompt frame, with an encoding of its own."""
    settings = GridSettings(points_per_side=sizes.points)
    with backend.open(sam2_bench.moving(4, sizes.size)) as session, sam2_bench.outlined_grid():
        masks = session.grid_masks(0, settings).shape[0]
        session.whole_grid_masks(0, settings)
        return {"seconds": seconds(lambda: [session.whole_grid_masks(t, settings) for t in (1, 2, 3)]) / 3, "masks": masks}


def measure_plain(backend: TransformersBackend, sizes: Sizes) -> dict[str, float]:
    """Seconds of a session of transformers for each batch of 4 prompts, in the same precision."""
    frames, tracks = sizes.peers
    pictures, masks = list(sam2_bench.scene(frames, sizes.size)), sam2_bench.prompt_masks(tracks, sizes.size)
    with inference_precision(backend.device, backend.dtype):
        taken = seconds(
            lambda: [plain_tracks(backend.network.model, pictures, frames // 2, masks[i : i + 4]) for i in range(0, tracks, 4)]
        )
    return {"seconds": taken}


def measure_meta(folder: Path, sizes: Sizes) -> dict[str, float]:
    """Seconds of Meta's predictor on the same prompts. Raises InputError where it is not installed."""
    frames, tracks = sizes.peers
    backend: Backend = OfficialBackend(Sam2Settings(checkpoint=str(folder), backend="official"))
    prompts = prompts_of(sizes, frames, tracks)
    with backend.open(sam2_bench.moving(frames, sizes.size)) as session:
        return {"seconds": seconds(lambda: [session.propagate(frames // 2, prompts[i : i + 4]) for i in range(0, tracks, 4)])}


def attention_limit(sizes: Sizes, repeats: int = 5) -> dict[str, Any]:
    """Track-frames per second that attention alone would allow: four layers, each over a frame and over the maps in memory.

    Of a whole batch: one object takes a quarter of a GPU. With the kernel that torch chooses, which is that of tracking.
    """
    where = device()
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    query, total = torch.randn(sizes.batch, 1, sizes.keys[0], sizes.head, device=where, dtype=dtype), 0.0
    for count in sizes.keys:
        keys = torch.randn(sizes.batch, 1, count, sizes.head, device=where, dtype=dtype)

        def attend(keys: torch.Tensor = keys) -> None:
            for _ in range(repeats):
                torch.nn.functional.scaled_dot_product_attention(query, keys, keys)

        attend()
        total += seconds(attend) / repeats
    kind = torch._fused_sdp_choice(query, keys, keys)
    return {"track_frames_per_s": sizes.batch / (4 * total), "backend": SDPBackend(kind).name}


def measure_tracker(backend: TransformersBackend, sizes: Sizes) -> dict[str, float]:
    """Seconds of `sam2-grid` on a video of MeViS's mean length, and the hours of MeViS train by them, as `rvos-cache plan` reckons:
    grids with encodings of their own, rounds, tracks; without decoding JPEGs, which threads do beside it."""
    frames, tracks = sizes.mevis
    settings = GridSettings(points_per_side=sizes.points, max_tracks=tracks, batch=sizes.batch)
    with patch("rvos_cache.trackers.sam2.tracker.open_backend", lambda settings: backend):
        tracker = Sam2Grid(settings)
    video = sam2_bench.moving(frames, sizes.size)
    with sam2_bench.outlined(), sam2_bench.outlined_grid():
        first = seconds(lambda: tracker.track(video, []))
        start = time.perf_counter()
        tracks = len(tracker.track(video, []).tokens)
        taken = time.perf_counter() - start
    return {"tracks": tracks, "seconds": taken, "hours": MEVIS_VIDEOS * taken / 3600, "first_video_seconds": first}
