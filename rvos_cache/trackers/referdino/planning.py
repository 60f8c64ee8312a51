"""The bytes of a cache of `gdino-queries` and the memory that making it takes, before anything runs.

Letters: E expressions, T frames, Q queries of an expression, W tokens of all texts, C channels, S cells of the levels of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rvos_cache.trackers.planned import PlannedBytes, Size, VideoSize
from rvos_cache.trackers.referdino import frame_maps
from rvos_cache.trackers.referdino.settings import GdinoQueriesSettings

MASK_BYTES = {"head": 104, "sam2": 104, "box": 13, "none": 1}
"""Bytes of a stored mask in a frame, by what draws it: the mean of objects' masks; of boxes and of nothing, measured."""
STRIDES = (8, 16, 32, 64)
"""Strides of the levels."""
EXPRESSIONS, WORDS = 14, 13
"""Expressions of a video and tokens of each (MeViS), for the memory of the tracks themselves."""


def planned_bytes(
    videos: Iterable[Size], queries: int, channels: int, kind: str, tokens_of: Callable[[str], int]
) -> PlannedBytes | None:
    """Bytes of a cache of `videos` with `queries` tracks of each expression; None if the texts of one are not known.

    kind: the value of the setting `masks`; tokens_of: number of tokens of a text.
    """
    sizes = dict.fromkeys(MASK_BYTES, 0)
    for video in videos:
        texts = video.texts if isinstance(video, VideoSize) else None
        if texts is None:
            return None
        tracks = video[1] * len(texts) * queries
        # tokens, presence, reference, raw; then the words of the tracks, and the text of the frames.
        fixed = tracks * (2 * channels + 2 + 16 + 2) + 8 * queries * len(texts)
        fixed += 2 * channels * video[1] * sum(map(tokens_of, texts))
        for name, mask in MASK_BYTES.items():
            sizes[name] += fixed + mask * tracks
    # What nothing and boxes take was measured; masks depend on what is drawn.
    estimate = f"{MASK_BYTES[kind]} bytes a mask" if kind in ("head", "sam2") else ""
    return PlannedBytes("masks", kind, sizes, estimate)


def planned_memory(
    size: tuple[int, int], frames: int, settings: GdinoQueriesSettings, queries: int, channels: int, width: int, encoded: int
) -> int:
    """About how many bytes of memory a video of `frames` frames of `size` (H, W) takes, without the weights.

    width: channels of the backbone's first stage; encoded: bytes of encoded frames that stay in memory. Without a GPU one pass of
    the model is in the same memory.
    """
    h, w = frame_maps.input_sizes(size, settings.short_side, settings.resizing)[1]
    cells = sum(-(-h // stride) * -(-w // stride) for stride in STRIDES)
    fine = -(-h // 4) * -(-w // 4)
    with_head = settings.masks == "head"
    maps = 4 * (channels * cells + width * fine * with_head)
    kept = min(frame_maps.IN_MEMORY, frames * maps)
    kept += min(encoded, frames * 4 * channels * cells) * with_head
    # Measured without a GPU (Swin-T, 360x640): 0.32 GB per frame in the encoder, whose deformable attention takes 16 samples a cell.
    pass_bytes = min(frames, settings.frames_per_pass) * 4 * channels * 64 * cells
    tracks = EXPRESSIONS * frames * (queries * (2 * channels + 20 + MASK_BYTES[settings.masks]) + 2 * channels * WORDS)
    # Tracks are copied when they are put in one array.
    return kept + pass_bytes + 2 * tracks + 3 * size[0] * size[1] * settings.frames_per_pass
