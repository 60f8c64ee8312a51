"""What a selector reads: the expressions of a step, with the parts that it requires."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.types import Overlap
from rvos_select.data.mask_facts import MaskFacts
from rvos_select.data.resident import BatchRows
from rvos_select.data.transfer import to_device

PARTS: dict[str, str] = {
    "presence": "presence of each track in each frame",
    "spans": "character range of each word in its sentence",
    "word_ids": "number of each word in the vocabulary of its encoder",
    "motion_words": "which words are motion cues",
    "static_words": "which words are static cues",
    "particle_words": "which words are particles or prepositions of a verb",
    "pixels": "the frames themselves",
    "overlap": "pixel counts of tracks and the expression's objects in the frames of the batch",
    "overlap.video": "the same in all frames of the video, of clips too",
    "truth": "the masks of the expression's objects",
    "boxes": "the boxes of the expression's objects",
}
"""What a selector may list in `requires`, beside the named arrays of `NAMED_PARTS`."""
NAMED_PARTS: dict[str, str] = {
    "features": "a feature of the tracks cache, held in memory",
    "frames": "a feature of the tracks cache, read from disk by frames",
    "measured": "a measurement of the tracks cache, of the expression's objects; with .video behind its name of all frames",
}
"""Prefix of `<prefix>.<name>` in `requires`."""


def check_requires(requires: Iterable[str], selector: str) -> None:
    """Raises InputError for a name that is no part of a batch."""
    for name in requires:
        prefix, _, rest = name.partition(".")
        if name not in PARTS and not (prefix in NAMED_PARTS and rest):
            known = [*PARTS, *(f"{prefix}.<name>" for prefix in NAMED_PARTS)]
            raise InputError(
                f"selector {selector}: requires {name!r}, which is no part of a batch; there are: {', '.join(known)}"
            )


class NamedParts(dict[str, Any]):
    """The arrays of one prefix by name. Raises KeyError for one that the batch lacks, saying why it may."""

    def __init__(self, prefix: str, arrays: Mapping[str, Any]) -> None:
        super().__init__(arrays)
        self.prefix = prefix

    def __missing__(self, name: str) -> Any:
        hidden = ", or the ground truth is hidden" if self.prefix == "measured" else ""
        raise KeyError(f"'{self.prefix}.{name}' is not in the selector's requires{hidden}")


class FrameArray(Protocol):
    """An array whose first dimension is T, in memory or read from disk when a part of it is requested. A tensor is one."""

    @property
    def shape(self) -> torch.Size:
        """(T, ...)."""

    def __len__(self) -> int:
        """T."""

    def __iter__(self) -> Iterator[Tensor]:
        """Frame by frame."""

    def __getitem__(self, frames: Any, /) -> Tensor:
        """The requested frames, (t, ...), or one, (...): an index of the first axis of a tensor."""

    def to(self, device: torch.device | str) -> FrameArray:
        """The same array, whose frames are on `device` when they are requested."""


@dataclass(frozen=True)
class Batch:
    """B expressions, padded to the largest T, N and L. In every mask True means real.

    What belongs to a video has the leading size V: 1 where all expressions share one video, else B, a video per expression. N
    counts the tracks that some expression of the video (V = 1), or the expression itself (V = B), may select; other tracks are
    not in the batch. A counts objects, and may be 0: an expression of a batch has its own objects alone.

    Always there:
        tokens: float (V, N, T, C); frame_mask: bool (V, T); track_mask: bool (B, N), candidates of each expression;
        words: float (B, L, D); word_mask: bool (B, L); target: float (B, N) in [0, 1], None where the split hides its ground
        truth or labels were not asked for;
        video_ids, expression_ids, sentences: B texts each; sizes: (H, W) of the frames of each of the V videos;
        track_index: int64 (V, N), position of each track in its video, -1 in padding; frame_index: int64 (V, T), number of
        each frame in its video, -1 in padding.
    Where a selector requires them:
        presence: float (V, N, T); spans: int32 (B, L, 2); word_ids: int64 (B, L), 0 in padding, which may also be the
        number of a word: see `word_mask`; motion_words, static_words, particle_words: bool (B, L);
        pixels: V arrays (T, H, W, 3) uint8 RGB, as `frames`;
        features, measured: name -> (V, ...), or (B, ...) for an array with an axis E or A: of E the own expression alone, so
        the axis is gone, of A the expression's objects; padded with zeros, see `lengths`; T is that of the batch, for
        `measured.<name>.video` that of the longest video;
        frames: name -> V arrays (T, ...), or B for an array with an axis E or A, of the dtype of the cache; T is that of the
        batch, zeros beyond the video's own, see `frame_mask`; in a batch of a whole video they are read when they are indexed;
        overlap: for each expression the counts of the N tracks with its own objects in the T frames (all frames for
        `overlap.video`); truth: for each expression bool (A, T, H, W), the masks of its own objects; boxes: for each float64
        (A, T, 4), their x, y, width and height in pixels of the video, zeros where an object is not visible.
        lengths: letter -> int64 (V or B,), the size before padding of every other axis of `features` and `measured`.
    Of the host: `mask_facts`, which of the masks are all real; a selector that asks them instead of a mask waits for no GPU.
    Where the training set is on the device (`rvos_select.data.resident`):
        rows: which rows of its tables `to` gathers as `tokens` and `words`; until then these are NaN.
    In a step of several micro-batches:
        normalisers: the sums of `Selector.normalisers` over the whole step; empty where the batch is the whole step, or where the
        selector has none.
    """

    tokens: Tensor
    frame_mask: Tensor
    track_mask: Tensor
    words: Tensor
    word_mask: Tensor
    target: Tensor | None = None
    presence: Tensor | None = None
    spans: Tensor | None = None
    motion_words: Tensor | None = None
    static_words: Tensor | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    frames: Mapping[str, tuple[FrameArray, ...]] = field(default_factory=dict)
    overlap: tuple[Overlap, ...] | None = None
    truth: tuple[Tensor, ...] | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    particle_words: Tensor | None = None
    video_ids: tuple[str, ...] = ()
    expression_ids: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()
    track_index: Tensor | None = None
    frame_index: Tensor | None = None
    pixels: tuple[FrameArray, ...] | None = None
    measured: Mapping[str, Tensor] = field(default_factory=dict)
    lengths: Mapping[str, Tensor] = field(default_factory=dict)
    normalisers: Mapping[str, float] = field(default_factory=dict)
    boxes: tuple[NDArray[np.float64], ...] | None = None
    word_ids: Tensor | None = None
    rows: BatchRows | None = None

    def __post_init__(self) -> None:
        for prefix in NAMED_PARTS:
            object.__setattr__(self, prefix, NamedParts(prefix, getattr(self, prefix)))
        b, length = self.word_mask.shape
        lead, n, t = self.tokens.shape[:3]
        if lead not in (1, b):
            raise ValueError(f"Batch.tokens: leading size {lead}, expected {b} (expressions), or 1 for a shared video")
        shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
            "frame_mask": (self.frame_mask.shape, (lead, t)),
            "track_mask": (self.track_mask.shape, (b, n)),
            "words": (self.words.shape[:2], (b, length)),
        }
        expected: tuple[int, ...]
        for name, expected in (
            ("target", (b, n)),
            ("track_index", (lead, n)),
            ("frame_index", (lead, t)),
            ("presence", (lead, n, t)),
            ("word_ids", (b, length)),
        ):
            tensor = getattr(self, name)
            if tensor is not None:
                shapes[name] = (tensor.shape, expected)
        for name, arrays in {**self.frames, **({} if self.pixels is None else {"pixels": self.pixels})}.items():
            shapes[f"frames[{name!r}]"] = (tuple(map(len, arrays)), (t,) * (b if len(arrays) == b else lead))
        for name in ("overlap", "truth", "boxes"):
            parts = getattr(self, name)
            if parts is not None:
                shapes[name] = ((len(parts),), (b,))
        for name in ("video_ids", "expression_ids", "sentences"):
            if getattr(self, name):
                shapes[name] = ((len(getattr(self, name)),), (b,))
        for name, (shape, expected) in shapes.items():
            if tuple(shape) != expected:
                raise ValueError(f"Batch.{name}: {tuple(shape)}, expected {expected}")

    def __len__(self) -> int:
        """B."""
        return len(self.word_mask)

    @cached_property
    def mask_facts(self) -> MaskFacts:
        """Facts of the three masks. A batch of the CPU that is moved to a device keeps them, so that nothing waits for it."""
        return MaskFacts.of(self.frame_mask, self.track_mask, self.word_mask)

    def to(self, device: torch.device | str) -> Batch:
        """This batch on `device`, except overlap counts and boxes. What is read from disk when it is indexed is put there then."""

        device = torch.device(device)
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rows"}
        if self.rows is not None:
            self.rows.check_device(device)
            # These are placeholders: the rows are gathered from tables that are on the device already.
            values.update(tokens=(), words=(), _rows=(self.rows.tokens, self.rows.words))
        # Facts are no field: `replace` with another mask must not keep those of this one.
        facts = self.mask_facts if "mask_facts" in vars(self) or self.word_mask.device.type == "cpu" else None
        values["_facts"] = () if facts is None else facts.tensors
        values = to_device(values, device)
        fact_tensors, rows = values.pop("_facts"), values.pop("_rows", None)
        if self.rows is not None:
            values["tokens"], values["words"] = self.rows.tables.gather(*rows)
        moved = replace(self, rows=None, **values)
        if facts is not None:
            vars(moved)["mask_facts"] = facts.with_tensors(*fact_tensors)
        return moved
