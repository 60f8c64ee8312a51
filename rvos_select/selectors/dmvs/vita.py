"""The frozen VITA that DMVS runs: its video head on a clip's frame queries, and the geometry of its input.

Shapes: A clips, T frames, Nf frame queries, Nv video queries, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rvos_cache.errors import InputError
from rvos_cache.media.geometry import FrameGeometry
from rvos_cache.store import Card
from rvos_cache.trackers.vita.checkpoint import HEAD_FILE, head_hash, load_head
from rvos_cache.trackers.vita.geometry import vita_geometry
from rvos_cache.trackers.vita.head import VitaHead
from rvos_select.selectors.frozen import FrozenPart

REQUIRED_SETTINGS = ("checkpoint", "short_side", "long_side")
"""Settings of the tracker that name the VITA checkpoint and the size of its input."""


@dataclass(frozen=True)
class VitaInput:
    """What a cache says of VITA's input. short_side, long_side: in pixels, as in the tracker's settings; low_rank: mask features
    are stored as coordinates in a basis."""

    short_side: int
    long_side: int
    low_rank: bool

    @classmethod
    def of(cls, cards: Sequence[Card]) -> VitaInput:
        """Of the tracks caches of `cards`.

        Raises InputError: a cache is not VITA's or holds no mask features, or two have different heads or input sizes.
        """
        first = cards[0]
        for card in cards:
            location = f"cache {card.dataset}/{card.split} of tracker {card.producer}"
            missing = [name for name in REQUIRED_SETTINGS if name not in card.settings]
            if missing or HEAD_FILE not in card.weights:
                name = missing[0] if missing else HEAD_FILE
                raise InputError(f"{location}: its card has no {name}; DMVS needs tracks of VITA: extract with --tracker vita")
            if "f_mask" not in _features(card):
                raise InputError(
                    f"{location}: holds no mask features; --set config.masks=frozen, or extract with --set profile=exact"
                )
            equal = {name: card.settings[name] == first.settings[name] for name in REQUIRED_SETTINGS[1:]}
            equal[HEAD_FILE] = card.weights[HEAD_FILE] == first.weights[HEAD_FILE]
            equal["mask_basis"] = ("mask_basis" in _features(card)) == ("mask_basis" in _features(first))
            for name, same in equal.items():
                if not same:
                    raise InputError(f"{location}: differs from {first.dataset}/{first.split} in {name}; extract them alike")
        return cls(int(first.settings["short_side"]), int(first.settings["long_side"]), "mask_basis" in _features(first))

    def geometry(self, size: tuple[int, int]) -> FrameGeometry:
        """Of frames of `size` (H, W)."""
        return vita_geometry(size, self.short_side, self.long_side)


def vita_head(cards: Sequence[Card], width: int, token_channels: int) -> FrozenPart:
    """The head that made the caches of `cards`, from the checkpoint that they name.

    It is refused unless it has `width` channels and `token_channels` mask channels.
    """
    card = cards[0]
    checkpoint = str(card.settings["checkpoint"])

    def load(name: str) -> nn.Module:
        return load_head(name)

    def digest(head: nn.Module) -> str:
        assert isinstance(head, VitaHead)
        for name, given, expected in (
            ("width", width, head.sizes.channels),
            ("token_channels", token_channels, head.sizes.mask_channels),
        ):
            if given != expected:
                raise InputError(
                    f"{checkpoint}: its {name} is {expected}, the selector's {given}; --set config.{name}={expected}"
                )
        return next(iter(head_hash(head).values()))

    return FrozenPart(HEAD_NAME, checkpoint, load, digest, card.weights[HEAD_FILE])


HEAD_NAME = "vita_head"
"""Name of the head among DMVS's frozen parts."""


@torch.no_grad()
def video_queries(head: VitaHead, q_f: Tensor, frame_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Video queries (V, Nv, C) and their scores S_v (V, Nv), of frame queries (V, T, Nf, C), each clip's real frames alone.

    frame_mask (V, T): real frames come first; None: all are real, and nothing is read of the device. In float32 whatever the
    autocast.
    """
    with torch.autocast(q_f.device.type, enabled=False):
        if frame_mask is None:
            queries = head(q_f.float())
            return queries.q_v, queries.scores()
        lengths = frame_mask.sum(1).tolist()
        sizes = head.sizes
        q_v = q_f.new_zeros(len(q_f), sizes.video_queries, sizes.channels, dtype=torch.float32)
        scores = q_f.new_zeros(len(q_f), sizes.video_queries, dtype=torch.float32)
        for length in sorted(set(lengths) - {0}):
            # Rows by numbers of the host: an index on the device would be one more copy that is waited for.
            rows = [row for row, own in enumerate(lengths) if own == length]
            queries = head(torch.stack([q_f[row, :length] for row in rows]).float())
            for row, own_q_v, own_scores in zip(rows, queries.q_v, queries.scores()):
                q_v[row], scores[row] = own_q_v, own_scores
    return q_v, scores


def _features(card: Card) -> set[str]:
    return {str(spec["name"]) for spec in card.feature_specs}
