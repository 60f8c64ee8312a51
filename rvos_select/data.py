"""Caches to batches: what a selector sees of an expression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Expressions ready for a selector. True = real in every mask.

    tokens: (B, N, T, C) float, or (1, N, T, C) shared by the B expressions of one video; frame_mask: bool (B, T) or
    (1, T), the same leading size as tokens; track_mask: bool (B, N), real tracks that are candidates of their expression;
    words: (B, L, D) float; word_mask: bool (B, L); target: float (B, N) in {0, 1}, None when the split hides its answers.
    What a selector may ask for by name: presence (B or 1, N, T); spans int32 (B, L, 2); motion_words and static_words bool
    (B, L); features by name.
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

    def __post_init__(self) -> None:
        b, length = self.word_mask.shape
        lead, n, t = self.tokens.shape[:3]
        wanted = {
            "frame_mask": (self.frame_mask.shape, (lead, t)),
            "track_mask": (self.track_mask.shape, (b, n)),
            "words": (self.words.shape[:2], (b, length)),
        }
        if self.target is not None:
            wanted["target"] = (self.target.shape, (b, n))
        for name, (found, shape) in wanted.items():
            if tuple(found) != shape:
                raise ValueError(f"Batch.{name}: {tuple(found)}, wanted {shape}")
        if lead not in (1, b):
            raise ValueError(f"Batch.tokens: leading size {lead} where {b} expressions want {b}, or 1 for shared tokens")

    def to(self, device: torch.device) -> Batch:
        """This batch on `device`."""

        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device, non_blocking=True)

        moved = {name: move(value) for name, value in vars(self).items() if name != "features"}
        return replace(self, **moved, features={name: value.to(device) for name, value in self.features.items()})  # type: ignore[arg-type]
