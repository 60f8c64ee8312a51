"""Expressions to a batch: the one function that makes every kind of batch, with every part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.media.clips import resize_masks
from rvos_cache.types import Overlap
from rvos_select.data.augment import Augmentation, Clip
from rvos_select.data.batch import Batch, FrameArray
from rvos_select.data.features import FrameReader, FrameSource, MemoryArray, NamedArray, kept_dims
from rvos_select.data.resident import BatchRows, word_rows
from rvos_select.data.samples import VideoSample
from rvos_select.data.text_cues import pad_words, word_parts

Row = tuple[VideoSample, int]
"""An expression: its video, and its row among the video's expressions."""


def collate(
    rows: Sequence[Row],
    requires: Sequence[str] = (),
    *,
    frames: Sequence[Sequence[int]] | None = None,
    augment: Augmentation | None = None,
    generator: torch.Generator | None = None,
    masks_only: bool = False,
) -> Batch:
    """The batch of B expressions.

    Without `frames` whole videos: of one video they share it (leading size 1), of several each is padded to the longest T.
    frames: for each expression the frames of its clip, all of one number T; or one clip that the expressions of one video share.
    augment: changes each clip; generator: its random numbers. masks_only: without `pixels` and `frames`, which are not read, and
    without an augmentation; all else, the truth too, is the same. Only tracks that are candidates are in the batch: of any of the
    expressions where they share a video, else of each.
    Raises InputError when the caches lack a required part or an array is damaged.
    """
    samples = [sample for sample, _ in rows]
    shared = len({id(sample) for sample in samples}) == 1 and (frames is None or len(frames) == 1)
    owners = samples[:1] if shared else samples
    if shared:
        used = samples[0].candidates[[row for _, row in rows]].any(0)
        tracks = [torch.nonzero(used)[:, 0]]
    else:
        tracks = [torch.nonzero(sample.candidates[row])[:, 0] for sample, row in rows]
    clips = [list(range(s.tokens.shape[1])) for s in owners] if frames is None else [list(f) for f in frames]
    maker = _Maker(rows, owners, tracks, clips, shared, frames is None, requires)
    tokens, words, word_mask, resident = maker.tokens_and_words()
    sentences, pixels, truth, sizes = _visual(maker, augment, generator, masks_only)
    features, measured, lengths = maker.stack_arrays()
    return Batch(
        tokens=tokens,
        frame_mask=maker.frame_mask(),
        track_mask=maker.track_mask(),
        words=words,
        word_mask=word_mask,
        target=maker.target(),
        presence=maker.stack([s.presence for s in owners], ("N", "T")).float() if "presence" in requires else None,
        **word_parts([s.words[row] for s, row in rows], [s.tagger for s in samples], words.shape[1], requires),
        features=features,
        measured=measured,
        lengths=lengths,
        frames={} if masks_only else maker.frame_arrays(),
        pixels=pixels,
        overlap=maker.overlaps(),
        boxes=maker.boxes(),
        truth=truth,
        sizes=sizes,
        video_ids=tuple(s.video_id for s in samples),
        expression_ids=tuple(s.expressions[row].expression_id for s, row in rows),
        sentences=sentences,
        track_index=_pad(tracks, -1),
        frame_index=_pad([torch.tensor(c, dtype=torch.long) for c in clips], -1),
        rows=resident,
    )


class _Maker:
    """Selects what each row keeps of its video along every letter, and stacks the parts of a batch."""

    def __init__(
        self,
        rows: Sequence[Row],
        owners: Sequence[VideoSample],
        tracks: Sequence[Tensor],
        clips: Sequence[list[int]],
        shared: bool,
        whole: bool,
        requires: Sequence[str],
    ) -> None:
        self.rows, self.owners, self.tracks, self.clips = rows, owners, tracks, clips
        self.shared, self.whole, self.requires = shared, whole, requires

    def owner(self, i: int) -> int:
        """The position of row i's video among the owners."""
        return 0 if self.shared else i

    def index(self, i: int) -> dict[str, Any]:
        """Of the video of owner i: its tracks and frames."""
        return {"N": self.tracks[i], "T": self.clips[i]}

    def row_index(self, i: int, dims: Sequence[str | int], name: str) -> dict[str, Any]:
        """Of row i also its own expression and objects, where `dims` have an axis of them."""
        sample, row = self.rows[i]
        index = self.index(self.owner(i))
        if "E" in dims:
            position = sample.expression_index[row] if sample.expression_index else row
            if position is None:
                raise InputError(
                    f"{sample.expressions[row].key}: the tracks cache does not know this expression, so {name!r} has no values "
                    "of it; extract the tracks again"
                )
            index["E"] = position
        if "A" in dims:
            if sample.objects is None:
                raise InputError(f"{sample.expressions[row].key}: {name!r} has an axis of objects, which this split hides")
            index["A"] = list(sample.objects[row])
        return index

    def frame_mask(self) -> Tensor:
        return _pad([torch.ones(len(c), dtype=torch.bool) for c in self.clips], False)

    def track_mask(self) -> Tensor:
        if self.shared:
            return torch.stack([s.candidates[row][self.tracks[0]] for s, row in self.rows])
        return _pad([torch.ones(len(t), dtype=torch.bool) for t in self.tracks], False)

    def target(self) -> Tensor | None:
        if any(s.target is None for s, _ in self.rows):
            return None
        targets = [s.target[row][self.tracks[self.owner(i)]] for i, (s, row) in enumerate(self.rows)]  # type: ignore[index]
        return torch.stack(targets) if self.shared else _pad(targets, 0)

    def stack(self, arrays: Sequence[Tensor], dims: tuple[str, ...]) -> Tensor:
        """(A, ...): the kept tracks and frames of one array of each owner."""
        return _pad([MemoryArray(array, dims).select(self.index(i)) for i, array in enumerate(arrays)], 0)

    def tokens_and_words(self) -> tuple[Tensor, Tensor, Tensor, BatchRows | None]:
        """tokens, words and word_mask of a Batch, and its rows where the tables of the device hold all its videos."""
        spoken = [s.words[row] for s, row in self.rows]
        videos = [s.resident for s in self.owners if s.resident is not None]
        if len(videos) < len(self.owners):
            words, mask = pad_words(spoken)
            return self.stack([s.tokens for s in self.owners], ("N", "T", "C")).float(), words, mask, None
        starts = [videos[self.owner(i)].words[row] for i, (_, row) in enumerate(self.rows)]
        rows = BatchRows(
            videos[0].tables,
            self.stack([v.tokens for v in videos], ("N", "T")),
            word_rows([len(w.vectors) for w in spoken], starts),
        )
        tables, none = rows.tables, torch.full((), torch.nan)  # expanded: what is not gathered must not pass for tokens
        tokens = none.expand(*rows.tokens.shape, tables.tokens.shape[1])
        return tokens, none.expand(*rows.words.shape, tables.words.shape[1]), rows.words > 0, rows

    def stack_arrays(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """features, measured and lengths of a Batch."""
        lengths: dict[str, Tensor] = {}
        names = [(kind, name) for kind in ("features", "measured") for name in getattr(self.owners[0], kind)]
        out: dict[str, dict[str, Tensor]] = {"features": {}, "measured": {}}
        for kind, name in names:
            arrays: list[NamedArray] = [getattr(s, kind)[name] for s in self.owners]
            every_frame = kind == "measured" and f"measured.{name}.video" in self.requires
            parts, dims = self._select(arrays, name, every_frame)
            out[kind][name] = _pad(parts, 0)
            for axis, letter in enumerate(dims):
                if isinstance(letter, str) and letter not in ("N", "T"):
                    lengths[letter] = torch.tensor([part.shape[axis] for part in parts])
        return out["features"], out["measured"], lengths

    def _select(self, arrays: Sequence[NamedArray], name: str, every_frame: bool) -> tuple[list[Tensor], Sequence[str | int]]:
        """What is kept of the array of each owner, for each row where it has an axis E or A; and the dims that are left.

        every_frame: all frames of the video are, not those of the batch.
        """
        dims = arrays[0].dims
        by_row = _by_row(dims)
        indices = [
            self.row_index(i, dims, name) if by_row else self.index(i) for i in range(len(self.rows if by_row else arrays))
        ]
        if every_frame:
            indices = [{letter: kept for letter, kept in index.items() if letter != "T"} for index in indices]
        parts = [arrays[self.owner(i) if by_row else i].select(index) for i, index in enumerate(indices)]
        return parts, kept_dims(dims, indices[0])

    def frame_arrays(self) -> dict[str, tuple[FrameArray, ...]]:
        out: dict[str, tuple[FrameArray, ...]] = {}
        for name in dict.fromkeys(name for s in self.owners for name in s.frames):
            dims = self.owners[0].frames[name].dims
            if _by_row(dims):
                pairs = [(s.frames[name], self.row_index(i, dims, name)) for i, (s, _) in enumerate(self.rows)]
            else:
                pairs = [(s.frames[name], self.index(i)) for i, s in enumerate(self.owners)]
            out[name] = tuple(self.read(array, index) for array, index in pairs)
        return out

    def read(self, array: FrameSource, index: Mapping[str, Any]) -> FrameArray:
        """The frames of a clip, or of a whole video a reader of them."""
        if not self.whole:
            return array.select(index)
        reader = FrameReader(array, index)
        if len({len(c) for c in self.clips}) == 1:
            return reader
        # Padding of a shorter video: zeros behind its frames.
        values = reader[:]
        return torch.cat([values, values.new_zeros(max(map(len, self.clips)) - len(values), *values.shape[1:])])

    def overlaps(self) -> tuple[Overlap, ...] | None:
        """For each row the counts of its tracks with its own objects, in its frames or in the whole video."""
        out = []
        for i, (sample, row) in enumerate(self.rows):
            counts = sample.overlap
            if counts is None or sample.objects is None:
                return None
            own, tracks = list(sample.objects[row]), self.tracks[self.owner(i)].numpy()
            at = slice(None) if self.whole or "overlap.video" in self.requires else self.clips[self.owner(i)]
            out.append(
                Overlap(
                    counts.inter[tracks][:, own][:, :, at], counts.area[tracks][:, at], counts.gt_area[own][:, at],
                    counts.annotated[at],
                )
            )  # fmt: skip
        return tuple(out)

    def boxes(self) -> tuple[NDArray[np.float64], ...] | None:
        """For each row the boxes of its own objects in its frames."""
        out = []
        for i, (sample, row) in enumerate(self.rows):
            if sample.boxes is None or sample.objects is None:
                return None
            out.append(sample.boxes[list(sample.objects[row])][:, self.clips[self.owner(i)]])
        return tuple(out)

    def truth(self, i: int, size: tuple[int, int]) -> Tensor:
        """bool (A, T, *size): the masks of row i's objects, the nearest pixel's where `size` is not that of the video.

        Raises InputError when the split hides its ground truth.
        """
        sample, row = self.rows[i]
        if sample.truth is None or sample.objects is None:
            raise InputError(f"{sample.expressions[row].key}: this split hides its ground truth; masks need one that has it")
        masks, decoded = sample.truth.masks, dict[tuple[int, int], Tensor]()
        frames = self.clips[self.owner(i)]
        out = torch.zeros(len(sample.objects[row]), len(frames), *size, dtype=torch.bool)
        for a, k in enumerate(sample.objects[row]):
            for position, t in enumerate(frames):
                if (k, t) not in decoded:
                    decoded[k, t] = resize_masks(torch.from_numpy(masks.decode(k, t).astype(bool)), size)
                out[a, position] = decoded[k, t]
        return out


class _Visual(NamedTuple):
    """Those parts of a Batch."""

    sentences: tuple[str, ...]
    pixels: tuple[FrameArray, ...] | None
    truth: tuple[Tensor, ...] | None
    sizes: tuple[tuple[int, int], ...]


def _visual(maker: _Maker, augment: Augmentation | None, generator: torch.Generator | None, masks_only: bool) -> _Visual:
    """What the augmentation changes. The truth has the size of the pixels where they are required, `sizes` that of the videos."""
    rows, owners = maker.rows, maker.owners
    sentences, sizes = tuple(s.expressions[row].text for s, row in rows), tuple(s.size for s in owners)
    labelled = all(s.truth is not None for s, _ in rows)
    arrays = [s.pixels for s in owners if s.pixels is not None] if "pixels" in maker.requires else []
    pixels: tuple[FrameArray, ...] | None = None
    if "pixels" in maker.requires and not masks_only:
        pixels = tuple(maker.read(array, {"T": clip}) for array, clip in zip(arrays, maker.clips, strict=True))
    truth: tuple[Tensor, ...] | None = None
    if "truth" in maker.requires and labelled:
        pixel_sizes = [array.size for array in arrays] or sizes
        truth = tuple(maker.truth(i, pixel_sizes[maker.owner(i)]) for i in range(len(rows)))
    if augment is None:
        return _Visual(sentences, pixels, truth, sizes)
    if pixels is None or generator is None or maker.whole:
        raise ValueError(
            "an augmentation changes the pixels of clips, with a generator; require pixels, give frames, and no masks_only"
        )
    masks = truth or tuple(torch.zeros(0, *p.shape[:3], dtype=torch.bool) for p in pixels)
    still = [len(set(clip)) == 1 for clip in maker.clips]
    clips = [augment(Clip(p, m, text, one), generator) for p, m, text, one in zip(pixels, masks, sentences, still)]  # type: ignore[arg-type]
    return _Visual(
        tuple(c.sentence for c in clips),
        tuple(c.pixels for c in clips),
        None if truth is None else tuple(c.truth for c in clips),
        tuple((c.pixels.shape[1], c.pixels.shape[2]) for c in clips),
    )


def _by_row(dims: Sequence[str | int]) -> bool:
    return "E" in dims or "A" in dims


def _pad(parts: Sequence[Tensor], fill: float) -> Tensor:
    """(len(parts), ...): stacked, each axis padded with `fill` to its longest."""
    if len({part.shape for part in parts}) == 1:
        return torch.stack(list(parts))
    out = parts[0].new_full((len(parts), *(max(sizes) for sizes in zip(*(part.shape for part in parts)))), fill)
    for row, part in zip(out, parts):
        row[tuple(slice(0, size) for size in part.shape)] = part
    return out
