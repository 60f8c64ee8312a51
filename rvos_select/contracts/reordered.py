"""A video whose tracks are in another order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rvos_select.data.features import Index, NamedArray
from rvos_select.data.samples import VideoSample


@dataclass(frozen=True)
class Reordered:
    """A named array with its tracks in another order. order: int64 (N,)."""

    array: Any
    order: Tensor

    @property
    def dims(self) -> Any:
        return self.array.dims

    def __len__(self) -> int:
        return len(self.array)

    def select(self, index: Index) -> Tensor:
        tracks = index.get("N")
        moved = index if tracks is None else {**index, "N": self.order[torch.as_tensor(tracks)]}
        result: Tensor = self.array.select(moved)
        return result


def reordered(sample: VideoSample, order: Tensor) -> VideoSample:
    """The sample with its tracks in another order."""

    def moved(arrays: Mapping[str, NamedArray]) -> dict[str, Any]:
        return {name: Reordered(array, order) for name, array in arrays.items()}

    overlap = sample.overlap
    if overlap is not None:
        overlap = replace(overlap, inter=overlap.inter[order.numpy()], area=overlap.area[order.numpy()])
    return replace(
        sample,
        tokens=sample.tokens[order],
        presence=sample.presence[order],
        candidates=sample.candidates[:, order],
        target=None if sample.target is None else sample.target[:, order],
        features=moved(sample.features),
        measured=moved(sample.measured),
        frames=moved(sample.frames),
        overlap=overlap,
    )
