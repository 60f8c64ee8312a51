"""A DeRVOS small enough for a test, and random inputs of its TAIS."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from rvos_select.selectors.dervos import Dervos, DervosConfig

TOKENS, WORDS, MAPS, SIDE = 12, 10, 6, 3
"""Cq, D, Cm, and cells along the side of a map."""
SMALL: dict[str, Any] = {
    "token_channels": TOKENS, "word_channels": WORDS, "map_channels": MAPS, "width": 16, "hidden": 24, "sem_layers": 2,
    "cfma_layers": 2, "mgis_layers": 2, "motion_queries": 4, "dropout": 0.0, "side": 16 * SIDE, "precision": "float32",
}  # fmt: skip


def dervos(seed: int = 3, **values: Any) -> Dervos:
    """In evaluation mode, its parameters away from their first values, so that no update is scaled to nothing."""
    torch.manual_seed(seed)
    model = Dervos(DervosConfig(**{**SMALL, **values})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@dataclass(frozen=True)
class Inputs:
    """The arguments of `Dervos.score`."""

    q: Tensor
    maps: Tensor | None
    vision: Tensor | None
    words: Tensor
    word_mask: Tensor
    motion_words: Tensor
    track_mask: Tensor
    frame_mask: Tensor
    times: Tensor
    is_word: Tensor | None = None

    def with_(self, **values: Any) -> Inputs:
        return replace(self, **values)

    def arguments(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def inputs(b: int = 2, n: int = 4, t: int = 3, length: int = 5, seed: int = 0) -> Inputs:
    """Random ones without padding; the second and the last word are motion words."""
    g = torch.Generator().manual_seed(seed)

    def some(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=g)

    motion = torch.zeros(b, length, dtype=torch.bool)
    motion[:, [1 % length, -1]] = True
    return Inputs(
        q=some(b, n, t, TOKENS),
        maps=some(b, t, SIDE**2, MAPS),
        vision=some(b, t, SIDE**2, WORDS),
        words=some(b, t, length, WORDS),
        word_mask=torch.ones(b, length, dtype=torch.bool),
        motion_words=motion,
        track_mask=torch.ones(b, n, dtype=torch.bool),
        frame_mask=torch.ones(b, t, dtype=torch.bool),
        times=torch.tensor([0, 2, 5, 6, 9, 11, 12, 20])[:t].expand(b, -1),
    )


@torch.no_grad()
def score(model: Dervos, given: Inputs) -> Tensor:
    """S_f (B, N, T, 2)."""
    out = model.score(**given.arguments())
    assert out.shape == (*given.q.shape[:3], 2) and out.dtype == torch.float32
    return out
