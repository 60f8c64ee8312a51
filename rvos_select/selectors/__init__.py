"""Selectors: one file per published selection module, one per baseline. One line in SELECTORS each."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from rvos_cache.seams import resolve
from rvos_cache.settings import Settings
from rvos_select.data import Batch

SELECTORS = {
    "sola": "rvos_select.selectors.sola:Sola",
    "mean-cosine": "rvos_select.selectors.mean_cosine:MeanCosine",
}


class Selector(Protocol):
    """An `nn.Module` that scores tracks.

    Config: its frozen settings model (the paper's values are the defaults; `token_channels` C and `word_channels` D are
    set from the caches); requires: names of the optional Batch parts it reads ("presence", "spans", "features.<name>");
    threshold: the default of the merge, strict >.
    """

    Config: type[Settings]
    requires: tuple[str, ...]
    threshold: float

    def __init__(self, config: Settings) -> None: ...

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, N); what they say of a track outside `batch.track_mask` has no meaning."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name; "loss" is the one to minimise. Each is the mean over the expressions of the batch, so that
        a batch of all expressions of a video gives the mean of the single ones."""


def selector_class(name: str) -> type:
    """The selector `name` (a name in SELECTORS or "package.module:Class")."""
    found: type = resolve(SELECTORS, name, "selector")
    return found
