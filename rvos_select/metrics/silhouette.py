"""J and F of single frames on bits: what `region` and `boundary` define, for the frames of whole splits.

64 rows of a column are one number, so the union, boundary and dilation of a mask are a few dozen operations on a few
thousand numbers, and the runs of an RLE are converted to bits without decoding pixels. What a comparison needs of one mask
alone is computed once: its boundary, and the pixels within the tolerance of the boundary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from rvos_cache.masks import mask_ends
from rvos_select.metrics.boundary import tolerance

Bits = NDArray[np.uint64]
WORD = 64


@dataclass(frozen=True, eq=False)
class Silhouette:
    """One mask of one frame, in the window that its boundary can touch.

    mask, edge, near: uint64 (words, columns), the mask, its boundary pixels, and the pixels within the tolerance of those; bit
    b of word w in column c is the pixel in row top + 64 w + b and column left + c. area, length: pixels of mask and edge.
    """

    mask: Bits
    edge: Bits
    near: Bits
    left: int
    top: int
    area: int
    length: int

    @classmethod
    def of_runs(cls, raw: bytes, size: tuple[int, int]) -> Silhouette:
        """From the compressed runs of a mask of `size` (H, W), which must be valid (`from_coco` checks foreign ones)."""
        height = size[0]
        edges = mask_ends(np.frombuffer(raw, np.uint8))
        starts, ends = edges[::2][: len(edges) // 2], edges[1::2]
        if (starts == ends).any():
            starts, ends = starts[starts < ends], ends[starts < ends]
        if not len(starts):
            return EMPTY
        first, last = starts // height, (ends - 1) // height
        rows, stops = starts - first * height, ends - last * height
        crossed = last - first
        crosses = bool(crossed.any())
        box = (0 if crosses else int(rows.min()), height if crosses else int(stops.max()), int(first[0]), int(last[-1]) + 1)
        window = _Window.around(box, size)
        if crosses:
            # A run that continues in the next column ends below the last row of its own and starts again in row 0 of the others.
            crossed_columns = np.concatenate([np.arange(a, b) for a, b in zip(first[crossed > 0], last[crossed > 0])])
            columns = np.concatenate([first, last, crossed_columns, crossed_columns + 1])
            count = len(crossed_columns)
            toggled = np.concatenate([rows, stops, np.full(count, height), np.zeros(count, np.int64)])
        else:
            columns, toggled = np.concatenate([first, last]), np.concatenate([rows, stops])
        return window.silhouette(_filled(columns - window.left, toggled - window.top, window), int((ends - starts).sum()))

    @classmethod
    def of_pixels(cls, pixels: NDArray[np.uint8]) -> Silhouette:
        """From pixels (H, W) uint8; anything but zero is foreground."""
        columns, rows = np.flatnonzero(pixels.max(axis=0)), np.flatnonzero(pixels.any(axis=1))
        if not len(rows):
            return EMPTY
        x, y, x1, y1 = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        window = _Window.around((y, y1, x, x1), (pixels.shape[0], pixels.shape[1]))
        canvas = np.zeros((window.columns, WORD * window.words), bool)
        canvas[x - window.left : x1 - window.left, y - window.top : y1 - window.top] = cv2.transpose(pixels[y:y1, x:x1])
        mask = np.packbits(canvas, axis=1, bitorder="little").view("<u8").T.astype(np.uint64, order="C")
        return window.silhouette(mask, _count(mask))


EMPTY = Silhouette(*(np.zeros((0, 0), np.uint64),) * 3, 0, 0, 0, 0)
"""The silhouette of a mask without a pixel."""


def j_and_f(a: Silhouette, b: Silhouette) -> tuple[float, float]:
    """J and F of two masks of one frame, as `region.j` and `boundary.f`."""
    inter = shared_area(a, b)
    union = a.area + b.area - inter
    region = inter / union if union else 1.0
    if not a.length or not b.length:
        return region, float(a.length == b.length)
    precision, recall = _shared(a, a.edge, b, b.near) / a.length, _shared(b, b.edge, a, a.near) / b.length
    return region, 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def shared_area(a: Silhouette, b: Silhouette) -> int:
    """Pixels in both masks."""
    return _shared(a, a.mask, b, b.mask)


@dataclass(frozen=True)
class _Window:
    """The part of a frame of `size` that a mask's boundary and its tolerance can touch; it may reach beyond the frame."""

    left: int
    top: int
    columns: int
    words: int
    size: tuple[int, int]
    reach: int

    @classmethod
    def around(cls, box: tuple[int, int, int, int], size: tuple[int, int]) -> _Window:
        """box: rows y0 <= y < y1 and columns x0 <= x < x1 of the mask."""
        y0, y1, x0, x1 = box
        reach = tolerance(size)
        # A pixel left of or above the mask is a boundary pixel too, because its right or lower neighbour is in the mask.
        top = (y0 - 1 - reach) // WORD * WORD
        return cls(x0 - 1 - reach, top, x1 - x0 + 1 + 2 * reach, -(-(y1 + reach + 1 - top) // WORD), size, reach)

    def silhouette(self, mask: Bits, area: int) -> Silhouette:
        edge = self._edge(mask)
        return Silhouette(mask, edge, _spread(edge, self.reach), self.left, self.top, area, _count(edge))

    def _edge(self, mask: Bits) -> Bits:
        """The boundary of a mask, both (words, columns); see `boundary.boundary`."""
        below, inner = _rows(self.size[0] - 1, self.top, self.words), self.size[1] - 1 - self.left
        lower = mask >> np.uint64(1)
        lower[:-1] |= mask[1:] << np.uint64(WORD - 1)
        edge = (mask ^ lower) & below
        # Columns 0 to W - 2 have a right neighbour.
        own, right = slice(max(-self.left, 0), min(inner, self.columns - 1)), slice(max(-self.left, 0) + 1, inner + 1)
        edge[:, own] |= mask[:, own] ^ mask[:, right]
        edge[:, own] |= (mask[:, own] ^ lower[:, right]) & below
        return edge


@lru_cache(maxsize=256)
def _rows(count: int, top: int, words: int) -> Bits:
    """The bits of rows 0 to count - 1 in a window whose first row is `top`, (words, 1)."""
    rows = np.arange(top, top + WORD * words)
    return np.packbits((rows >= 0) & (rows < count), bitorder="little").view("<u8").astype(np.uint64)[:, None]


def _filled(columns: NDArray[np.int64], rows: NDArray[np.int64], window: _Window) -> Bits:
    """Bits (words, columns): a row is set when an odd number of the given points lies at or above it in its column."""
    flat = np.zeros(window.words * window.columns, np.uint64)
    bit = (rows & (WORD - 1)).astype(np.uint64)
    np.bitwise_xor.at(flat, (rows // WORD) * window.columns + columns, np.uint64(1) << bit)
    for step in (1, 2, 4, 8, 16, 32):
        flat ^= flat << np.uint64(step)
    bits = flat.reshape(window.words, window.columns)
    for w in range(1, window.words):
        bits[w] ^= np.uint64(0) - (bits[w - 1] >> np.uint64(WORD - 1))
    return bits


def _spread(edge: Bits, reach: int) -> Bits:
    """The pixels within `reach` of one of `edge`, by the columns of the disk x^2 + y^2 <= reach^2."""
    out, tall, height = np.zeros_like(edge), edge, 0
    # The window is `reach` wider than the edge on every side, so a shift of the flat array takes no bit into another row of it.
    flat = out.ravel()
    for x, half_height in _disk(reach):
        while height < half_height:
            step = min(half_height - height, 2 * height + 1, WORD - 1)
            near, far = np.uint64(step), np.uint64(WORD - step)
            grown = tall << near
            grown |= tall
            grown |= tall >> near
            grown[1:] |= tall[:-1] >> far
            grown[:-1] |= tall[1:] << far
            tall, height = grown, height + step
        flat[x:] |= tall.ravel()[: len(flat) - x]
        flat[: len(flat) - x] |= tall.ravel()[x:]
    return out


@lru_cache(maxsize=32)
def _disk(reach: int) -> tuple[tuple[int, int], ...]:
    """Distance of each column from the disk's centre and its half-height, outermost first."""
    return tuple((x, int(np.sqrt(reach**2 - x**2))) for x in range(reach, -1, -1))


def _shared(a: Silhouette, x: Bits, b: Silhouette, y: Bits) -> int:
    """Pixels that are set both in x, a part of a, and in y, a part of b."""
    left, top = max(a.left, b.left), max(a.top, b.top)
    right = min(a.left + x.shape[1], b.left + y.shape[1])
    bottom = min(a.top + WORD * x.shape[0], b.top + WORD * y.shape[0])
    if left >= right or top >= bottom:
        return 0
    parts = []
    for shape, bits in ((a, x), (b, y)):
        rows = slice((top - shape.top) // WORD, (bottom - shape.top) // WORD)
        parts.append(bits[rows, left - shape.left : right - shape.left])
    return _count(parts[0] & parts[1])


def _count(bits: Bits) -> int:
    return int(np.bitwise_count(bits).sum(dtype=np.int64))
