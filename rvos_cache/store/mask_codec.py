"""The stored form of masks: the rows where the pixels of each column change, predicted from the column before.

Letters as in rvos_cache.types. A transition is a pixel, counted down the columns as in COCO's runs, where one run ends and the
next begins; the transitions of a mask determine it. Transition i of a column is mostly within a pixel or two of transition i
of the column before, so zstd compresses the differences to little more than half the size of the compressed run-length bytes.

The array of bytes: the length of each mask's part, uint32 (K,) · the parts, each compressed by zstd on its own, so that some of
many masks can be read alone. A part: transitions in each frame, uint32 (T,) · bytes of a column's count, uint32 (1,) ·
transitions in each column, uint8 or uint16 (T, W+1), the last column for transitions beyond the last pixel · the low bytes of
all differences, uint8 · their high bytes, uint8. Numbers are little-endian; transitions are in order, frame after frame. A
difference d is to transition i of the column before if that column has one, else to the transition above in the same column,
else to row 0. It is stored as the unsigned number 2d, or -2d - 1 if d < 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numcodecs import Zstd  # type: ignore[import-untyped]
from numpy.typing import NDArray

from rvos_cache.mask_runs import MaskRuns
from rvos_cache.masks import RleMasks, run_ends

LEVEL = 7
"""Compression level of zstd."""
MAX_HEIGHT = (1 << 15) - 1
"""The most rows of a frame: differences must fit in 16 bits."""


def encode_masks(masks: RleMasks) -> NDArray[np.uint8]:
    """The bytes of masks (K, T), uint8 (bytes,).

    Raises ValueError if the runs of a mask do not fill its frame, or a frame has more than 32767 rows.
    """
    if masks.size[0] > MAX_HEIGHT:
        raise ValueError(f"frames of {masks.size[0]} rows; at most {MAX_HEIGHT} can be stored")
    # One mask at a time: the columns of all frames of all masks of a long video would take a gigabyte.
    parts = [_encode_mask(masks.select([k])) for k in range(masks.shape[0])]
    return np.frombuffer(b"".join([np.array([len(part) for part in parts], "<u4").tobytes(), *parts]), np.uint8)


def _encode_mask(masks: RleMasks) -> bytes:
    """The part of one mask, (1, T)."""
    (height, width), frames, columns = masks.size, masks.shape[1], masks.size[1] + 1
    ends, stops = run_ends(masks.rle, masks.offsets)
    runs = np.diff(stops, prepend=0)
    is_transition = np.ones(len(ends), bool)
    is_transition[stops - 1] = False
    lengths = np.diff(ends, prepend=0)
    lengths[stops[:-1]] = ends[stops[:-1]]
    if (ends[stops - 1] != height * width).any() or (lengths < 0).any():
        raise ValueError(f"the runs of a mask do not fill its {height}x{width} pixels")
    column, row = np.divmod(ends[is_transition], height)
    column += np.repeat(np.arange(frames) * columns, runs - 1)
    counts = np.bincount(column, minlength=frames * columns)
    previous = np.where(np.arange(frames * columns) % columns, _shift(counts), 0)
    first = np.cumsum(counts) - counts
    index = np.arange(len(row)) - first[column]
    above = np.where(index > 0, _shift(row), 0)
    # Transition i of the previous column is as many transitions earlier as that column has.
    left = row[np.arange(len(row)) - previous[column]]
    differences = row - np.where(index < previous[column], left, above)
    numbers = np.where(differences < 0, -2 * differences - 1, 2 * differences)
    count_bytes = 2 if counts.max(initial=0) > 255 else 1
    pieces = [(runs - 1).astype("<u4"), np.array([count_bytes], "<u4"), counts.astype(f"<u{count_bytes}")]
    pieces += [(numbers & 255).astype(np.uint8), (numbers >> 8).astype(np.uint8)]
    return bytes(Zstd(LEVEL).encode(b"".join(piece.tobytes() for piece in pieces)))


def decode_masks(
    raw: NDArray[np.uint8], shape: tuple[int, int], size: tuple[int, int], indices: Iterable[int] | None = None
) -> MaskRuns:
    """The masks (K, T) = `shape` of `size` (H, W) that `encode_masks` wrote, or those at `indices` only, in that order.

    Raises ValueError if the bytes do not fit the shape, IndexError for a mask beyond the last.
    """
    (count, frames), (height, width), columns = shape, size, size[1] + 1
    head = raw[: 4 * count].tobytes()
    lengths = np.frombuffer(head, "<u4") if len(head) == 4 * count else np.zeros(0, "<u4")
    stops = 4 * count + np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    if len(lengths) != count or len(raw) != stops[-1]:
        raise ValueError(f"{len(raw)} bytes are not {count} masks")
    selected = [range(count)[int(k)] for k in (range(count) if indices is None else indices)]
    parts = [_decode_part(raw[stops[k] : stops[k + 1]], frames, columns) for k in selected]
    empty = np.zeros(0, np.int64)
    per_frame, per_column, numbers = (np.concatenate(arrays) for arrays in zip(*parts)) if parts else (empty, empty, empty)
    column = np.flatnonzero(per_column)
    counts = per_column[column].astype(np.int64)
    if counts.sum() != len(numbers):
        raise ValueError(f"{counts.sum()} transitions in the columns, {len(numbers)} in the masks")
    transitions = _decode_rows(numbers, column, counts, columns) + np.repeat(column % columns * height, counts)
    # The last run of a mask ends with the frame.
    ends = np.full(len(transitions) + len(per_frame), height * width, np.int64)
    ends[np.arange(len(transitions)) + np.repeat(np.arange(len(per_frame)), per_frame)] = transitions
    return MaskRuns(ends, np.cumsum(per_frame + 1), (len(selected), frames), size)


def _decode_part(raw: NDArray[np.uint8], frames: int, columns: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of one mask, transitions in each frame, int64 (T,), in each column, uint8 or uint16 (T * (W+1),), and numbers, int64."""
    try:
        body = np.frombuffer(Zstd().decode(raw), np.uint8)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"a mask cannot be decoded ({error})") from error
    start = 4 * frames + 4
    head = np.frombuffer(body[:start].tobytes(), "<u4") if len(body) >= start else np.zeros(1, "<u4")
    per_frame, count_bytes = head[:-1].astype(np.int64), int(head[-1])
    low, total = start + count_bytes * frames * columns, int(per_frame.sum())
    if count_bytes not in (1, 2) or len(body) != low + 2 * total:
        raise ValueError(f"{len(body)} bytes are not a mask of {frames} frames and {columns - 1} columns")
    per_column = np.frombuffer(body[start:low].tobytes(), f"<u{count_bytes}")
    return per_frame, per_column, body[low : low + total] | body[low + total :].astype(np.int64) << 8


def _decode_rows(
    numbers: NDArray[np.int64], column: NDArray[np.int64], counts: NDArray[np.int64], columns: int
) -> NDArray[np.int64]:
    """The row of each transition. column: those that have transitions; counts: how many each has."""
    differences = (numbers >> 1) ^ -(numbers & 1)
    is_next = (np.diff(column, prepend=-2) == 1) & (column % columns != 0)
    previous = np.where(is_next, _shift(counts), 0)
    first, rows = np.cumsum(counts) - counts, np.empty_like(differences)
    # Transition i of all columns at once. A chain of columns starts where the previous column has no transition i; its first
    # row is relative to the transition above, which is known by then.
    for i in range(int(counts.max(initial=0))):
        has_transition = np.flatnonzero(counts > i)
        position = first[has_transition] + i
        step, starts_chain = differences[position], previous[has_transition] <= i
        if i:
            step[starts_chain] += rows[position[starts_chain] - 1]
        total = np.cumsum(step)
        rows[position] = total - (total[starts_chain] - step[starts_chain])[np.cumsum(starts_chain) - 1]
    return rows


def _shift(values: NDArray[Any]) -> NDArray[Any]:
    """0 and all values but the last: the value before each."""
    return np.concatenate([values[:0], [0], values[:-1]])[: len(values)]
