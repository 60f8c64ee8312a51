"""Caches to batches: what a selector sees of an expression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from rvos_cache.types import Overlap


class FrameArray(Protocol):
    """An array whose first dimension is T, in memory or read from a cache when a part of it is asked for.

    A tensor is one.
    """

    def __len__(self) -> int:
        """T."""

    def __getitem__(self, frames: slice, /) -> Tensor:
        """The frames asked for, (t, ...)."""


@dataclass(frozen=True)
class Batch:
    """Expressions ready for a selector. True = real in every mask.

    tokens: (B, N, T, C) float, or (1, N, T, C) shared by the B expressions of one video; frame_mask: bool (B, T) or
    (1, T), the same leading size as tokens; track_mask: bool (B, N), real tracks that are candidates of their expression;
    words: (B, L, D) float; word_mask: bool (B, L); target: float (B, N) in {0, 1}, None when the split hides its answers.
    What a selector may ask for by name: presence (B or 1, N, T); spans int32 (B, L, 2); motion_words, static_words and
    particle_words (prepositions and particles of a verb) bool (B, L); features by name, (B or 1, ...); frames
    by name, one array (T, ...) for each of the B or 1 leading places, whose other dimensions may differ; overlap: for each
    expression the counts of all tracks (N) with its own objects (A) in the T frames, or asked for as overlap.video in all
    frames of the video; truth: for each expression bool (A, T, H, W), its own objects, of clips only.
    sizes: (H, W) of the frames of each leading place.
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

    def __post_init__(self) -> None:
        b, length = self.word_mask.shape
        lead, n, t = self.tokens.shape[:3]
        wanted: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
            "frame_mask": (self.frame_mask.shape, (lead, t)),
            "track_mask": (self.track_mask.shape, (b, n)),
            "words": (self.words.shape[:2], (b, length)),
        }
        if self.target is not None:
            wanted["target"] = (self.target.shape, (b, n))
        for name, arrays in self.frames.items():
            wanted[f"frames[{name!r}]"] = (tuple(map(len, arrays)), (t,) * lead)
        for name in ("overlap", "truth"):
            held = getattr(self, name)
            if held is not None:
                wanted[name] = ((len(held),), (b,))
        for name, (found, shape) in wanted.items():
            if tuple(found) != shape:
                raise ValueError(f"Batch.{name}: {tuple(found)}, wanted {shape}")
        if lead not in (1, b):
            raise ValueError(f"Batch.tokens: leading size {lead} where {b} expressions want {b}, or 1 for shared tokens")

    def to(self, device: torch.device) -> Batch:
        """This batch on `device`, but for what is read from a cache when it is asked for and the counts."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            if isinstance(value, Mapping):
                return {name: move(held) for name, held in value.items()}
            return tuple(move(held) for held in value) if isinstance(value, tuple) else value

        return replace(self, **{name: move(value) for name, value in vars(self).items()})
