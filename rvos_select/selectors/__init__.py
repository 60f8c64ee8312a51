"""Selectors: one file per published selection module, one per baseline. One line in SELECTORS each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from rvos_cache.plugins import resolve
from rvos_cache.settings import Settings
from rvos_cache.store import Card
from rvos_select.data.batch import Batch
from rvos_select.merging.policy import Empty

SELECTORS = {
    "sola": "rvos_select.selectors.sola:Sola",
    "dmvs": "rvos_select.selectors.dmvs:Dmvs",
    "mean-cosine": "rvos_select.selectors.mean_cosine:MeanCosine",
}


class Selector(Protocol):
    """An `nn.Module` that scores tracks, or queries whose masks it draws itself.

    Config: its frozen settings model (the paper's values are the defaults; `token_channels` C and `word_channels` D are
    set from the caches); requires: the optional Batch parts it reads: "presence", "spans", "static_words", "motion_words",
    "particle_words", "features.<name>" (in memory), "frames.<name>" (read by frames), "overlap", "overlap.video" (clips too
    count all frames), "truth" (of clips); threshold: the default of the merge, strict >; empty: what answers where no score is
    above it; top1_of_one: on datasets whose expressions name one object each, the merge takes its best track instead; draws: its
    logits are (B, Q), of masks that `draw` gives.
    """

    Config: type[Settings]
    requires: tuple[str, ...]
    threshold: float
    empty: Empty
    top1_of_one: bool
    draws: bool

    def __init__(self, config: Settings) -> None: ...

    def bind(self, cards: Sequence[Card]) -> None:
        """Load the frozen parts that it runs itself from the checkpoints that the cards of the tracks caches name, by hash.

        Before the first batch, and before `requires` is read. Raises InputError for caches of another tracker or checkpoint.
        """

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, N) or (B, Q); what they say of a track outside `batch.track_mask` has no meaning."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name; "loss" is the one to minimise. Each is the mean over the expressions of the batch, so that
        a batch of all expressions of a video gives the mean of the single ones; but for a mean over objects, where the paper
        has it."""


class DrawingSelector(Selector, Protocol):
    """A selector with `draws`. draw_threshold: score below which a query is drawn only where it is an expression's best."""

    draw_threshold: float

    def draw(self, batch: Batch, wanted: Tensor) -> Iterator[Tensor]:
        """The masks of the K queries `wanted` bool (B, Q), row by row: bool (K, t, H, W), one chunk of frames after another."""


def selector_class(name: str) -> type:
    """The selector `name` (a name in SELECTORS or "package.module:Class")."""
    found: type = resolve(SELECTORS, name, "selector")
    return found
