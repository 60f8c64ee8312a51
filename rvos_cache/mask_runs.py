"""Masks as the positions where their runs end: the form between COCO's bytes, the stored form and pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

WORD = 64
"""Pixels in an unsigned integer."""


@dataclass(frozen=True, eq=False)
class MaskRuns:
    """K masks over T frames of size (H, W).

    ends: int64 (runs of all masks,), the end of each run, in pixels counted column by column; the first run of a mask is
    background; stops: int64 (K*T,), the end of each mask's part of `ends`, mask-major and frame-minor;
    shape: (K, T); size: (H, W). K = 0 is legal. Raises ValueError if the parts do not fit together.
    """

    ends: NDArray[np.int64]
    stops: NDArray[np.int64]
    shape: tuple[int, int]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if self.stops.shape != (self.shape[0] * self.shape[1],) or (self.stops[-1:] != len(self.ends)).any():
            raise ValueError(f"{len(self.ends)} runs and {self.stops.shape} stops are not masks {self.shape}")

    @classmethod
    def concatenate(cls, parts: Sequence[MaskRuns]) -> MaskRuns:
        """Masks of the same frames and size, one after the other along K."""
        frames, size = common_frames([(p.shape[1], p.size) for p in parts])
        starts = np.cumsum([0] + [len(p.ends) for p in parts])
        stops = np.concatenate([p.stops + s for p, s in zip(parts, starts)])
        return cls(np.concatenate([p.ends for p in parts]), stops, (sum(p.shape[0] for p in parts), frames), size)

    def select(self, indices: Iterable[int]) -> MaskRuns:
        """The masks `indices`, in that order, as MaskRuns (K', T). Raises IndexError for a mask beyond the last."""
        t = self.shape[1]
        starts = np.concatenate([np.zeros(1, np.int64), self.stops])
        # The frames of a mask are consecutive, so this is one slice per mask.
        bounds = [starts[k * t : (k + 1) * t + 1] for k in (range(self.shape[0])[int(i)] for i in indices)]
        stops = np.cumsum(np.concatenate([starts[:0], *map(np.diff, bounds)]))
        ends = np.concatenate([self.ends[:0], *(self.ends[b[0] : b[-1]] for b in bounds)])
        return MaskRuns(ends, stops, (len(bounds), t), self.size)

    def at(self, k: int, t: int) -> NDArray[np.int64]:
        """The ends of the runs of mask k in frame t, int64 (runs,)."""
        i = range(self.shape[0])[k] * self.shape[1] + range(self.shape[1])[t]
        return self.ends[self.stops[i - 1] if i else 0 : self.stops[i]]

    def union(self, t: int, indices: Iterable[int] | None = None) -> NDArray[np.bool_]:
        """Pixels (H, W) of the OR of the masks `indices` (default: all) in frame t.

        Raises ValueError if the runs of a mask do not fill the frame, IndexError for a mask or frame beyond the last.
        """
        out = np.zeros(self.size, bool)
        paint([self.at(k, t) for k in (range(self.shape[0]) if indices is None else indices)], out)
        return out

    def flipped(self) -> MaskRuns:
        """The masks flipped from left to right, with the runs that COCO's encoder gives."""
        (height, width), count = self.size, len(self.stops)
        pixels = height * width
        lengths = np.diff(self.stops, prepend=0)
        mask = np.repeat(np.arange(count), lengths)
        index = np.arange(len(self.ends)) - np.repeat(self.stops - lengths, lengths)
        is_foreground = index % 2 == 1
        begin, end, mask = self.ends[np.flatnonzero(is_foreground) - 1], self.ends[is_foreground], mask[is_foreground]
        begin, end, mask = (x[begin < end] for x in (begin, end, mask))
        # A run over several columns is cut into one piece per column.
        first, last = begin // height, (end - 1) // height
        pieces = last - first + 1
        nth = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        column = np.repeat(first, pieces) + nth
        top = np.where(nth == 0, np.repeat(begin, pieces), column * height) - column * height
        bottom = np.minimum(np.repeat(end, pieces) - column * height, height)
        start = (np.repeat(mask, pieces) * width + width - 1 - column) * height
        begin, end = start + top, start + bottom
        order = np.argsort(begin, kind="stable")
        begin, end = begin[order], end[order]
        # Pieces that touch are one run, except at the border between two masks.
        apart = np.ones(len(begin) + 1, bool)
        apart[1:-1] = (begin[1:] != end[:-1]) | (begin[1:] % pixels == 0)
        begin, end = begin[apart[:-1]], end[apart[1:]]
        owner = begin // pixels
        # A mask whose last pixel is background ends with one more run.
        last_is_background = np.ones(count, bool)
        last_is_background[owner[end == (owner + 1) * pixels]] = False
        closed = np.flatnonzero(last_is_background)
        run_ends = np.concatenate([begin - owner * pixels, end - owner * pixels, np.full(len(closed), pixels)])
        owners = np.concatenate([owner, owner, closed])
        by_mask = np.lexsort((run_ends, owners))
        stops = np.cumsum(np.bincount(owners, minlength=count)).astype(np.int64)
        return MaskRuns(run_ends[by_mask].astype(np.int64), stops, self.shape, self.size)


def common_frames(parts: Sequence[tuple[int, tuple[int, int]]]) -> tuple[int, tuple[int, int]]:
    """The frames T and size (H, W) of all parts. Raises ValueError if they differ."""
    if len(set(parts)) != 1:
        raise ValueError(f"masks differ in frames or size: {parts}")
    return parts[0]


def paint(masks: Sequence[NDArray[np.int64]], out: NDArray[np.bool_]) -> None:
    """Set the pixels of the union of `masks` in `out` (H, W), which is all background. masks: the ends of each mask's runs.

    Raises ValueError if the runs of a mask do not fill the frame.
    """
    height, width = out.shape
    nonempty = []
    for ends in masks:
        if not len(ends) or ends[-1] != height * width or ends[0] < 0 or (ends[1:] < ends[:-1]).any():
            raise ValueError(f"the runs of a mask do not fill its {height}x{width} pixels")
        # The starts and ends of the foreground runs; the end of a last background run is no transition.
        transitions = ends[: len(ends) // 2 * 2]
        if len(transitions):
            nonempty.append((transitions, int(transitions[0]), int(transitions[-1])))
    # Only the columns from the first to the last pixel: most of a frame is background, and nothing is written there.
    left = min((first for _, first, _ in nonempty), default=0) // height
    right = -(-max((last for _, _, last in nonempty), default=0) // height)
    if right <= left:
        return
    start, count = left * height, (right - left) * height
    words = np.zeros(count // WORD + 1, np.uint64)
    for transitions, first, last in nonempty:
        begin, end = (first - start) // WORD, (last - start) // WORD + 1
        words[begin:end] |= _bits(transitions - (start + begin * WORD), end - begin)
    pixels = np.unpackbits(words.astype("<u8", copy=False).view(np.uint8), count=count, bitorder="little")
    out.view(np.uint8)[:, left:right] = cv2.transpose(pixels.reshape(right - left, height))


def _bits(transitions: NDArray[np.int64], count: int) -> NDArray[np.uint64]:
    """A mask as `count` words of 64 consecutive pixels, least significant bit first, from its transitions."""
    # Each bit becomes the parity of the transitions up to it: first within each word, then over the words before.
    words = np.zeros(count, np.uint64)
    np.bitwise_xor.at(words, transitions // WORD, np.uint64(1) << (transitions % WORD).astype(np.uint64))
    for step in (1, 2, 4, 8, 16, 32):
        words ^= words << np.uint64(step)
    words[1:] ^= np.uint64(0) - np.bitwise_xor.accumulate(words[:-1] >> np.uint64(WORD - 1))
    return words
