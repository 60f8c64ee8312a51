"""Masks as COCO run-length bytes.

Letters: K masks (tracks or objects), T frames, H W pixels. Union, area and intersection work on the runs; pixels are
decoded only for the masks that are written, scored or rendered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from rvos_cache.errors import InputError
from rvos_cache.mask_runs import MaskRuns, common_frames, paint

Rle = dict[str, Any]
"""COCO's compressed form: {"size": [H, W], "counts": bytes}."""
TRUNCATED = "the run-length bytes of a mask break off inside a number"


def encode(mask: NDArray[Any]) -> bytes:
    """The run-length bytes of one mask (H, W) bool or uint8."""
    return bytes(coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"])


def empty_rle(size: tuple[int, int]) -> bytes:
    """The run-length bytes of a mask of `size` (H, W) without a pixel."""
    return bytes(coco.encode(np.zeros(size, np.uint8, order="F"))["counts"])


def from_coco(rle: Rle | None, size: tuple[int, int], location: str) -> bytes:
    """The compressed bytes of a COCO annotation as read from JSON; `None` (absent) gives the empty mask.

    Accepts compressed text or bytes and the uncompressed list of counts. location: file and object, for errors.
    Raises InputError if the size differs from `size` (H, W), or if the runs do not fill exactly H x W pixels.
    """
    if rle is None:
        return empty_rle(size)
    how_to_fix = f"copy the file again, or export the mask as {{'size': [{size[0]}, {size[1]}], 'counts': ...}}, or null for none"
    if not isinstance(rle, dict) or "counts" not in rle or "size" not in rle:
        raise InputError(f"{location}: a mask is COCO RLE {{'size', 'counts'}} or null, found {type(rle).__name__}; {how_to_fix}")
    own_size = tuple(rle["size"]) if isinstance(rle["size"], (list, tuple)) else rle["size"]
    if own_size != tuple(size):
        raise InputError(f"{location}: the mask is {own_size!r:.40}, its frame is {tuple(size)} (height, width); {how_to_fix}")
    counts = rle["counts"]
    if isinstance(counts, list):
        # Not isinstance: JSON's true is an int in Python, but no count.
        if any(type(c) is not int or c < 0 for c in counts) or sum(counts) != size[0] * size[1]:
            raise InputError(f"{location}: the mask's counts do not add up to {size[0]}x{size[1]} pixels; {how_to_fix}")
        return bytes(coco.frPyObjects({"size": list(size), "counts": counts}, *size)["counts"])
    if isinstance(counts, str) and counts.startswith(("b'", 'b"')):
        fault = f"the mask's counts are bytes as Python prints them, {counts:.12}..."
        raise InputError(f"{location}: {fault}; write rle['counts'].decode() to the file")
    if not isinstance(counts, (str, bytes)):
        raise InputError(
            f"{location}: the mask's counts are text or a list of numbers, found {type(counts).__name__}; {how_to_fix}"
        )
    raw = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    if run_total(raw) != size[0] * size[1]:
        raise InputError(f"{location}: the mask's run-length bytes do not fill {size[0]}x{size[1]} pixels; {how_to_fix}")
    return raw


def run_total(raw: bytes) -> int:
    """The total length of the runs of a mask, in pixels, or -1 if `raw` cannot be decoded.

    pycocotools writes past its buffers if the counts do not match the size, so bytes from elsewhere are checked here first.
    The format is COCO's `rleFrString`: little-endian groups of five bits plus a continuation bit, offset by 48, and
    from the fourth run on each count is stored as the difference to the one two before.
    """
    digits = np.frombuffer(raw, np.uint8) - np.uint8(48)
    if not len(digits):
        return 0
    stops = np.flatnonzero(digits < 32) + 1
    # Seven groups hold any count below 2**31; with more, the fixed-width shift of COCO's C code reads another number.
    if (digits > 63).any() or digits[-1] > 31 or np.diff(stops, prepend=0).max() > 7:
        return -1
    counts = _counts(digits, stops, np.array([len(stops)]))
    return -1 if (counts < 0).any() else int(counts.sum())


def _counts(digits: NDArray[np.uint8], stops: NDArray[np.int64], masks: NDArray[np.int64]) -> NDArray[np.int64]:
    """The lengths of the runs of several masks, int64 (runs,).

    digits: uint8, the compressed bytes less 48; stops: the end of each number in them; masks: the end of each mask in `stops`.
    """
    first = np.concatenate([np.zeros(1, np.int64), stops[:-1]])
    groups = stops - first
    counts = (digits[first] & 31).astype(np.int64)
    # Few numbers have more than two groups, so a pass per group is cheaper than an index of every digit.
    group, longer = 1, np.flatnonzero(groups > 1)
    while len(longer):
        counts[longer] += (digits[first[longer] + group] & 31).astype(np.int64) << (5 * group)
        group += 1
        longer = longer[groups[longer] > group]
    negative = np.flatnonzero(digits[stops - 1] & 16)
    counts[negative] -= np.int64(1) << (5 * groups[negative])
    for a, b in zip([0, *masks[:-1].tolist()], masks.tolist()):
        mask = counts[a:b]
        mask[1::2] = mask[1::2].cumsum()
        mask[2::2] = mask[2::2].cumsum()
    return counts


def mask_ends(rle: NDArray[np.uint8]) -> NDArray[np.int64]:
    """`run_ends` of one mask, int64 (runs,), in half the time if its runs are few. rle: uint8 (bytes,). Raises ValueError."""
    digits = rle.astype(np.int64) - 48
    stops = np.flatnonzero(digits < 32) + 1
    if not len(stops) or stops[-1] != len(digits):
        raise ValueError(TRUNCATED)
    starts = np.concatenate([stops[:1] * 0, stops[:-1]])
    lengths = stops - starts
    if len(stops) == len(digits):
        counts = digits & 31
    else:
        group = np.arange(len(digits)) - np.repeat(starts, lengths)
        counts = np.add.reduceat((digits & 31) << (5 * group), starts)
    counts -= ((digits[stops - 1] >> 4) & 1) << (5 * lengths)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return np.cumsum(counts)


def run_ends(rle: NDArray[np.uint8], offsets: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ends of the runs of several masks, in pixels column by column, and the end of each mask's part of that list.

    rle: uint8 (bytes,); offsets: int64 (K + 1,), mask k = rle[offsets[k] : offsets[k + 1]], at least one byte. Returns int64
    (runs of all masks,) and int64 (K,). The first run of a mask is background. The format is described in `run_total`, which
    must have checked the bytes. Raises ValueError if a mask breaks off inside a number.
    """
    digits = rle - np.uint8(48)
    stops = np.flatnonzero(digits < 32) + 1
    masks = np.searchsorted(stops, offsets[1:], side="right")
    if not len(stops) or (masks == 0).any() or not np.array_equal(stops[masks - 1], offsets[1:]):
        raise ValueError(TRUNCATED)
    ends = _counts(digits, stops, masks)
    for a, b in zip([0, *masks[:-1].tolist()], masks.tolist()):
        ends[a:b] = ends[a:b].cumsum()
    return ends, masks


@dataclass(frozen=True, eq=False)
class RleMasks:
    """K masks over T frames of size (H, W).

    rle: uint8 (bytes,), the compressed runs of all masks, mask-major and frame-minor;
    offsets: int64 (K*T + 1,), mask (k, t) = rle[offsets[k*T + t] : offsets[k*T + t + 1]];
    shape: (K, T); size: (H, W). K = 0 is legal. Raises ValueError if the parts do not fit together.
    """

    rle: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    shape: tuple[int, int]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        k, t = self.shape
        if self.rle.dtype != np.uint8 or self.rle.ndim != 1:
            raise ValueError(f"rle must be uint8 (bytes,), is {self.rle.dtype} {self.rle.shape}")
        if self.offsets.dtype != np.int64 or self.offsets.shape != (k * t + 1,):
            raise ValueError(f"offsets must be int64 ({k * t + 1},), are {self.offsets.dtype} {self.offsets.shape}")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.rle) or (np.diff(self.offsets) <= 0).any():
            raise ValueError("offsets must increase from 0 to the number of bytes")

    @classmethod
    def from_bytes(cls, masks: Sequence[Sequence[bytes]], frames: int, size: tuple[int, int]) -> RleMasks:
        """From K sequences of T compressed masks."""
        flat = [raw for row in masks for raw in row]
        if len(flat) != len(masks) * frames:
            raise ValueError(f"{len(masks)} masks over {frames} frames need {len(masks) * frames} entries, got {len(flat)}")
        offsets = np.zeros(len(flat) + 1, np.int64)
        np.cumsum([len(raw) for raw in flat], out=offsets[1:])
        rle = np.frombuffer(b"".join(flat), np.uint8)
        return cls(rle, offsets, (len(masks), frames), (int(size[0]), int(size[1])))

    @classmethod
    def from_dense(cls, masks: NDArray[Any]) -> RleMasks:
        """From pixels (K, T, H, W), bool or uint8."""
        _, t, h, w = masks.shape
        rows = []
        for track in masks:
            # One call per track on a column-major stack is several times faster than one call per frame.
            stack = np.ascontiguousarray(track.transpose(0, 2, 1).astype(np.uint8)).transpose(2, 1, 0)
            rows.append([bytes(r["counts"]) for r in coco.encode(stack)])
        return cls.from_bytes(rows, t, (h, w))

    @classmethod
    def from_runs(cls, runs: MaskRuns) -> RleMasks:
        """From the ends of runs, encoded as by COCO's `rleToString` (the format: `run_total`)."""
        ends, stops = runs.ends, runs.stops
        starts = np.concatenate([stops[:0], [0], stops[:-1]])[: len(stops)]
        counts = np.diff(ends, prepend=0)
        counts[starts] = ends[starts]
        numbers = counts.copy()
        numbers[2:] -= counts[:-2]
        for j in range(3):
            position = starts[starts + j < stops] + j
            numbers[position] = counts[position]
        magnitude = np.abs(numbers + (numbers < 0))
        groups = np.ones(len(numbers), np.int64)
        for bits in range(4, 34, 5):
            longer = magnitude >= 1 << bits
            if not longer.any():
                break
            groups += longer
        number_stops = np.cumsum(groups)
        rle = np.empty(int(number_stops[-1]) if len(number_stops) else 0, np.uint8)
        continues = groups > 1
        rle[number_stops - groups] = (numbers & 31) + 48 + 32 * continues
        longer, group = np.flatnonzero(continues), 1
        while len(longer):
            continues = groups[longer] > group + 1
            position = number_stops[longer] - groups[longer] + group
            rle[position] = ((numbers[longer] >> (5 * group)) & 31) + 48 + 32 * continues
            longer, group = longer[continues], group + 1
        offsets = np.concatenate([np.zeros(1, np.int64), number_stops[stops - 1] if len(stops) else stops])
        return cls(rle, offsets, runs.shape, runs.size)

    def runs(self) -> MaskRuns:
        """The ends of all runs. Raises ValueError if a mask breaks off inside a number."""
        empty = np.zeros(0, np.int64)
        ends, stops = run_ends(self.rle, self.offsets) if len(self.rle) else (empty, empty)
        return MaskRuns(ends, stops, self.shape, self.size)

    @classmethod
    def empty(cls, count: int, frames: int, size: tuple[int, int]) -> RleMasks:
        """`count` masks without a pixel."""
        return cls.from_bytes([[empty_rle(size)] * frames] * count, frames, size)

    @classmethod
    def concatenate(cls, parts: Sequence[RleMasks]) -> RleMasks:
        """Masks of the same frames and size, one after the other along K."""
        frames, size = common_frames([(p.shape[1], p.size) for p in parts])
        starts = np.cumsum([0] + [len(p.rle) for p in parts])
        offsets = np.concatenate([np.zeros(1, np.int64)] + [p.offsets[1:] + s for p, s in zip(parts, starts)])
        rle = np.concatenate([p.rle for p in parts])
        return cls(rle, offsets, (sum(p.shape[0] for p in parts), frames), size)

    def bytes_at(self, k: int, t: int) -> bytes:
        """The compressed bytes of mask k in frame t."""
        i = k * self.shape[1] + t
        return self.rle[self.offsets[i] : self.offsets[i + 1]].tobytes()

    def at(self, k: int, t: int) -> Rle:
        """Mask k in frame t in the form of pycocotools."""
        return {"size": list(self.size), "counts": self.bytes_at(k, t)}

    def row(self, k: int) -> list[Rle]:
        """The T masks of track k."""
        first = range(self.shape[0])[k] * self.shape[1]
        return self._rles(slice(first, first + self.shape[1]))

    def column(self, t: int) -> list[Rle]:
        """The K masks of frame t."""
        return self._rles(slice(range(self.shape[1])[t], None, self.shape[1]))

    def _rles(self, masks: slice) -> list[Rle]:
        # Python integers and one view of the bytes: for many masks, NumPy's scalars take as long as decoding the runs.
        size, raw = list(self.size), self.rle.data
        bounds = zip(self.offsets[:-1][masks].tolist(), self.offsets[1:][masks].tolist())
        return [{"size": size, "counts": bytes(raw[a:b])} for a, b in bounds]

    def decode(self, k: int, t: int) -> NDArray[np.bool_]:
        """Pixels (H, W) of mask k in frame t. Raises ValueError if its runs do not fill the frame."""
        i = range(self.shape[0])[k] * self.shape[1] + range(self.shape[1])[t]
        out = np.zeros(self.size, bool)
        paint([mask_ends(self.rle[self.offsets[i] : self.offsets[i + 1]])], out)
        return out

    def dense(self, indices: Iterable[int] | None = None) -> NDArray[np.bool_]:
        """Pixels (K', T, H, W) of the masks `indices` (default: all). They take K'*T*H*W bytes of memory.

        Raises ValueError if the runs of a mask do not fill the frame.
        """
        selected = list(range(self.shape[0])) if indices is None else list(indices)
        out = np.zeros((len(selected), self.shape[1], *self.size), bool)
        for pixels, k in zip(out, selected):
            first = range(self.shape[0])[k] * self.shape[1]
            bounds = self.offsets[first : first + self.shape[1] + 1]
            ends, stops = run_ends(self.rle[bounds[0] : bounds[-1]], bounds - bounds[0])
            for frame, a, b in zip(pixels, [0, *stops[:-1].tolist()], stops.tolist()):
                paint([ends[a:b]], frame)
        return out

    def select(self, indices: Iterable[int]) -> RleMasks:
        """The masks `indices`, in that order, as RleMasks (K', T)."""
        t = self.shape[1]
        # The frames of a mask are consecutive, so this is one slice per mask. Indexing the range raises beyond the last mask.
        bounds = [self.offsets[k * t : (k + 1) * t + 1] for k in (range(self.shape[0])[int(i)] for i in indices)]
        offsets = np.zeros(len(bounds) * t + 1, np.int64)
        np.cumsum(np.concatenate([offsets[:0], *map(np.diff, bounds)]), out=offsets[1:])
        rle = np.concatenate([self.rle[:0], *(self.rle[b[0] : b[-1]] for b in bounds)])
        return RleMasks(rle, offsets, (len(bounds), t), self.size)

    def gather(self, parts: NDArray[np.integer]) -> RleMasks:
        """Masks put together from these: RleMasks (Q, T), mask q in frame t is mask `parts[q, t]`, empty where that is -1.

        parts: integers (Q, T). The bytes are copied as they are. Raises ValueError for another T, IndexError for another number.
        """
        (k, t), parts = self.shape, np.asarray(parts, np.int64)
        if parts.ndim != 2 or parts.shape[1] != t:
            raise ValueError(f"parts {parts.shape}, expected (Q, {t})")
        if parts.size and not -1 <= parts.min() <= parts.max() < k:
            raise IndexError(f"parts from {parts.min()} to {parts.max()}, expected -1 or a mask below {k}")
        rle = np.concatenate([self.rle, np.frombuffer(empty_rle(self.size), np.uint8)])
        bounds = np.append(self.offsets, len(rle))
        # The empty mask lies behind all others.
        source = np.where(parts < 0, k * t, parts * t + np.arange(t)).ravel()
        first, lengths = bounds[source], bounds[source + 1] - bounds[source]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        position = np.repeat(first - offsets[:-1], lengths) + np.arange(offsets[-1])
        return RleMasks(rle[position], offsets, (len(parts), t), self.size)

    def frames(self, start: int, stop: int) -> RleMasks:
        """The frames start <= t < stop of every mask, as RleMasks (K, stop - start)."""
        rows = [[self.bytes_at(k, t) for t in range(start, stop)] for k in range(self.shape[0])]
        return RleMasks.from_bytes(rows, stop - start, self.size)

    def union(self, indices: Iterable[int] | None = None) -> RleMasks:
        """The union of the masks `indices` (default: all) in each frame, as RleMasks (1, T); of no masks, empty masks."""
        selected = list(range(self.shape[0])) if indices is None else [int(k) for k in indices]
        return self.select(selected) if len(selected) == 1 else self.union_by_frame([selected] * self.shape[1])

    def union_by_frame(self, indices: Sequence[Sequence[int]]) -> RleMasks:
        """The union of the masks `indices[t]` in each frame t, as RleMasks (1, T). Raises ValueError for another T."""
        if len(indices) != self.shape[1]:
            raise ValueError(f"indices of {len(indices)} frames, the masks have {self.shape[1]}")
        empty, row = empty_rle(self.size), []
        for t, own in enumerate(indices):
            if len(own) > 1:
                row.append(bytes(coco.merge([self.at(k, t) for k in own], intersect=0)["counts"]))
            else:
                row.append(self.bytes_at(own[0], t) if own else empty)
        return RleMasks.from_bytes([row], self.shape[1], self.size)

    def area(self) -> NDArray[np.int32]:
        """Pixels of each mask, int32 (K, T)."""
        k, t = self.shape
        if k == 0 or t == 0:
            return np.zeros((k, t), np.int32)
        return _areas(self._rles(slice(None))).astype(np.int32).reshape(k, t)

    def boxes(self) -> NDArray[np.float64]:
        """Boxes (x, y, width, height) in pixels, float64 (K, T, 4); zeros for an empty mask."""
        k, t = self.shape
        if k == 0 or t == 0:
            return np.zeros((k, t, 4))
        return np.asarray(coco.toBbox(self._rles(slice(None)))).reshape(k, t, 4)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, RleMasks)
            and (self.shape, self.size) == (other.shape, other.size)
            and np.array_equal(self.offsets, other.offsets)
            and np.array_equal(self.rle, other.rle)
        )

    __hash__ = None  # type: ignore[assignment]


def _areas(rles: Sequence[Rle]) -> NDArray[np.int64]:
    """Pixels of each mask. In pieces: with NumPy 2 pycocotools' `area` overflows on lists of more than 255 masks."""
    pieces = [np.asarray(coco.area(list(rles[i : i + 255])), np.int64) for i in range(0, len(rles), 255)]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)


def intersections(a: list[Rle], b: list[Rle]) -> NDArray[np.int64]:
    """Shared pixels of every mask of `a` with every mask of `b` in one frame, int64 (len(a), len(b))."""
    if not a or not b:
        return np.zeros((len(a), len(b)), np.int64)
    return shared_pixels(a, b, (a[0]["size"][0], a[0]["size"][1]))[0]


def shared_pixels(
    a: list[Rle], b: list[Rle], size: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Shared pixels of masks of one frame of `size` (H, W), int64 (len(a), len(b)), and areas, (len(a),) and (len(b),).

    From u = |A∩B| / |A∪B| the exact count is rint(u (|A| + |B|) / (1 + u)), and with the whole frame for B, u HW is |A|. u is
    computed in double precision, so the error is far below half a pixel for any frame that fits in memory.
    """
    # The whole frame is added to both lists: a separate call for the areas would decode each mask once more.
    full_frame = _full_frame(size)
    u = np.nan_to_num(np.asarray(coco.iou([*a, full_frame], [*b, full_frame], [0] * (len(b) + 1)), np.float64))
    u = u.reshape(len(a) + 1, len(b) + 1)
    first, second = (np.rint(v * (size[0] * size[1])).astype(np.int64) for v in (u[:-1, -1], u[-1, :-1]))
    pairs = u[:-1, :-1]
    return np.rint(pairs * (first[:, None] + second[None, :]) / (1 + pairs)).astype(np.int64), first, second


@lru_cache(maxsize=64)
def _full_frame(size: tuple[int, int]) -> Rle:
    return {"size": list(size), "counts": encode(np.ones(size, np.uint8))}
