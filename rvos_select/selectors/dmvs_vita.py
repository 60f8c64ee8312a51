"""The part of the frozen VITA that DMVS runs itself: its video head on a clip's frame queries, and its input's geometry.

Shapes: A clips, T frames, Nf frame queries, Nv video queries, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.store import Card
from rvos_cache.trackers.vita.geometry import FrameGeometry
from rvos_cache.trackers.vita.head import VitaHead
from rvos_cache.trackers.vita.segmenter import HEAD_FILE, head_hash, load_head

READ = ("checkpoint", "short_side", "long_side")
"""Settings of the tracker that say which VITA it was and what it was shown."""


@dataclass(frozen=True)
class FrozenVita:
    """head: frozen; short_side, long_side: of the input, in pixels, as in the tracker's settings; low_rank: the caches hold mask
    features as coordinates in a basis."""

    head: VitaHead
    short_side: int
    long_side: int
    low_rank: bool

    @classmethod
    def of(cls, cards: Sequence[Card], width: int, tokens: int) -> FrozenVita:
        """The head that made the caches of `cards`, from the checkpoint they name.

        Raises InputError: a cache is not VITA's, two are of different heads or input sizes, the checkpoint now has other weights,
        or the head is not `width` channels wide with `tokens` mask channels.
        """
        first = cards[0]
        for card in cards:
            where = f"cache {card.dataset}/{card.split} of tracker {card.producer}"
            absent = [name for name in READ if name not in card.settings]
            if absent or HEAD_FILE not in card.weights:
                lost = absent[0] if absent else HEAD_FILE
                raise InputError(f"{where}: its card has no {lost}; DMVS wants tracks of VITA: extract with --tracker vita")
            if "f_mask" not in _features(card):
                raise InputError(
                    f"{where}: holds no mask features; --set config.masks=frozen, or extract with --set profile=exact"
                )
            alike = {name: card.settings[name] == first.settings[name] for name in READ[1:]}
            alike[HEAD_FILE] = card.weights[HEAD_FILE] == first.weights[HEAD_FILE]
            alike["mask_basis"] = ("mask_basis" in _features(card)) == ("mask_basis" in _features(first))
            for name, same in alike.items():
                if not same:
                    raise InputError(f"{where}: differs from {first.dataset}/{first.split} in {name}; extract them alike")
        checkpoint = str(first.settings["checkpoint"])
        head = load_head(checkpoint)
        (found,) = head_hash(head).values()
        if found != first.weights[HEAD_FILE]:
            raise InputError(
                f"{checkpoint}: {HEAD_FILE} has digest {found}, the cache was made with {first.weights[HEAD_FILE]}; "
                "bring that checkpoint back, or extract again"
            )
        channels = {"width": (width, head.sizes.channels), "token_channels": (tokens, head.sizes.mask_channels)}
        for name, (have, want) in channels.items():
            if have != want:
                raise InputError(f"{checkpoint}: its {name} is {want}, the selector's {have}; --set config.{name}={want}")
        return cls(head, int(first.settings["short_side"]), int(first.settings["long_side"]), "mask_basis" in _features(first))

    def geometry(self, size: tuple[int, int]) -> FrameGeometry:
        """Of frames of `size` (H, W)."""
        return FrameGeometry.of(size, self.short_side, self.long_side)

    @torch.no_grad()
    def video_queries(self, q_f: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Video queries (A, Nv, C) and their scores S_v (A, Nv), of frame queries (A, T, Nf, C), each clip's real frames alone.

        frame_mask (A, T): real frames come first. In float32 whatever the autocast.
        """
        lengths = frame_mask.sum(1).tolist()
        sizes = self.head.sizes
        q_v = q_f.new_zeros(len(q_f), sizes.video_queries, sizes.channels, dtype=torch.float32)
        scores = q_f.new_zeros(len(q_f), sizes.video_queries, dtype=torch.float32)
        with torch.autocast(q_f.device.type, enabled=False):
            for length in sorted(set(lengths) - {0}):
                rows = torch.tensor([i for i, own in enumerate(lengths) if own == length], device=q_f.device)
                found = self.head(q_f[rows, :length].float())
                q_v[rows], scores[rows] = found.q_v, found.scores()
        return q_v, scores


def _features(card: Card) -> set[str]:
    return {str(spec["name"]) for spec in card.feature_specs}
