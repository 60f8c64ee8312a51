"""How masks lie on disk: where the pixels of each column turn, told from the column before.

Letters as in rvos_cache.types; a turn is a place where a run ends and the next begins, counted down a column as COCO's
runs are, so a mask is its turns. Turn i of a column mostly stands within a pixel or two of turn i of the column before; zstd
packs these differences into little more than half of what it makes of the run-length bytes.

One array of bytes: the length of each mask's part, uint32 (K,) · the parts, each packed by zstd for itself, so that a few
masks of many are read alone. A part: turns in each frame, uint32 (T,) · bytes of a column's count, uint32 (1,) · turns of each
column, uint8 or uint16 (T, W+1), the last for turns beyond the last pixel · the low bytes of all differences, uint8 · their
high bytes, uint8. Numbers are little-endian, turns in their order, frame after frame. A difference is to turn i of the column
before, where that has so many, else to the turn above in the same column, else to row 0; as unsigned number 2d or, where
d < 0, -2d - 1.
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
HIGHEST = (1 << 15) - 1
"""Rows whose differences fit in 16 bits."""


def pack(masks: RleMasks) -> NDArray[np.uint8]:
    """The bytes of (K, T) masks. Raises ValueError when runs do not fill their frame or it has more than 32767 rows."""
    if masks.size[0] > HIGHEST:
        raise ValueError(f"frames of {masks.size[0]} rows; at most {HIGHEST} fit")
    # One at a time: the columns of all frames of all masks of a long video would fill a gigabyte.
    parts = [_packed(masks.select([k])) for k in range(masks.shape[0])]
    return np.frombuffer(b"".join([np.array([len(part) for part in parts], "<u4").tobytes(), *parts]), np.uint8)


def _packed(masks: RleMasks) -> bytes:
    """The part of one mask, (1, T)."""
    (height, width), count, columns = masks.size, masks.shape[1], masks.size[1] + 1
    ends, stops = run_ends(masks.rle, masks.offsets)
    runs = np.diff(stops, prepend=0)
    inner = np.ones(len(ends), bool)
    inner[stops - 1] = False
    rises = np.diff(ends, prepend=0)
    rises[stops[:-1]] = ends[stops[:-1]]
    if (ends[stops - 1] != height * width).any() or (rises < 0).any():
        raise ValueError(f"the runs of a mask do not fill its {height}x{width} pixels")
    column, row = np.divmod(ends[inner], height)
    column += np.repeat(np.arange(count) * columns, runs - 1)
    counts = np.bincount(column, minlength=count * columns)
    before = np.where(np.arange(count * columns) % columns, np.concatenate([counts[:0], [0], counts[:-1]])[: len(counts)], 0)
    first = np.cumsum(counts) - counts
    place = np.arange(len(row)) - first[column]
    # Turn i of the column before stands as many turns earlier as that column has.
    above = np.where(place > 0, np.concatenate([row[:0], [0], row[:-1]])[: len(row)], 0)
    steps = row - np.where(place < before[column], row[np.arange(len(row)) - before[column]], above)
    numbers = np.where(steps < 0, -2 * steps - 1, 2 * steps)
    wide = 2 if counts.max(initial=0) > 255 else 1
    pieces = [(runs - 1).astype("<u4"), np.array([wide], "<u4"), counts.astype(f"<u{wide}")]
    pieces += [(numbers & 255).astype(np.uint8), (numbers >> 8).astype(np.uint8)]
    return bytes(Zstd(LEVEL).encode(b"".join(piece.tobytes() for piece in pieces)))


def unpack(
    raw: NDArray[np.uint8], shape: tuple[int, int], size: tuple[int, int], chosen: Iterable[int] | None = None
) -> MaskRuns:
    """The masks (K, T) of `size` (H, W) that `pack` wrote, or those at `chosen` alone, in that order.

    Raises ValueError when the bytes do not fit the shape, IndexError for a mask beyond the last.
    """
    frames, (height, width) = shape[1], size
    head = raw[: 4 * shape[0]].tobytes()
    lengths = np.frombuffer(head, "<u4") if len(head) == 4 * shape[0] else np.zeros(0, "<u4")
    stops = 4 * shape[0] + np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    if len(lengths) != shape[0] or len(raw) != stops[-1]:
        raise ValueError(f"{len(raw)} bytes are no {shape[0]} masks")
    picked = [range(shape[0])[int(k)] for k in (range(shape[0]) if chosen is None else chosen)]
    parts = [_part(raw[stops[k] : stops[k + 1]], frames, width + 1) for k in picked]
    none = np.zeros(0, np.int64)
    turns, counts, numbers = (np.concatenate(of) for of in zip(*parts)) if parts else (none, none, none)
    columns = width + 1
    column = np.flatnonzero(counts)
    held = counts[column].astype(np.int64)
    if held.sum() != len(numbers):
        raise ValueError(f"{held.sum()} turns in the columns, {len(numbers)} in the masks")
    ends = _rows(numbers, column, held, columns) + np.repeat(column % columns * height, held)
    # The last run of a mask ends with the frame.
    whole = np.full(len(ends) + len(turns), height * width, np.int64)
    whole[np.arange(len(ends)) + np.repeat(np.arange(len(turns)), turns)] = ends
    return MaskRuns(whole, np.cumsum(turns + 1), (len(picked), frames), size)


def _part(raw: NDArray[np.uint8], frames: int, columns: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Turns of each frame, int64 (T,), of each column, uint8 or uint16, and the differences, int64, of one mask."""
    try:
        body = np.frombuffer(Zstd().decode(raw), np.uint8)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"a mask cannot be decoded ({error})") from error
    start = 4 * frames + 4
    head = np.frombuffer(body[:start].tobytes(), "<u4") if len(body) >= start else np.zeros(1, "<u4")
    turns, wide = head[:-1].astype(np.int64), int(head[-1])
    low, total = start + wide * frames * columns, int(turns.sum())
    if wide not in (1, 2) or len(body) != low + 2 * total:
        raise ValueError(f"{len(body)} bytes are no mask of {frames} frames and {columns - 1} columns")
    counts = np.frombuffer(body[start:low].tobytes(), f"<u{wide}")
    return turns, counts, body[low : low + total] | body[low + total :].astype(np.int64) << 8


def _rows(numbers: NDArray[np.int64], column: NDArray[np.int64], held: NDArray[np.int64], columns: int) -> NDArray[np.int64]:
    """The row of each turn. column: those with a turn; held: how many each has."""
    steps = (numbers >> 1) ^ -(numbers & 1)
    follows = (np.diff(column, prepend=-2) == 1) & (column % columns != 0)
    before = np.where(follows, np.concatenate([held[:0], [0], held[:-1]])[: len(held)], 0)
    first, rows = np.cumsum(held) - held, np.empty_like(steps)
    # All columns at once, turn by turn: those that begin a chain need the turn above, which is known by then.
    for place in range(int(held.max(initial=0))):
        which = np.flatnonzero(held > place)
        at = first[which] + place
        step, begins = steps[at], before[which] <= place
        if place:
            step[begins] += rows[at[begins] - 1]
        total = np.cumsum(step)
        rows[at] = total - (total[begins] - step[begins])[np.cumsum(begins) - 1]
    return rows
