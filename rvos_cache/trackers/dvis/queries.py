"""The frame queries of DVIS++: Mask2Former's, with an embedding for re-identification beside each.

Letters: B videos, T frames, N queries, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, cat, nn

from rvos_cache.trackers.mask2former.layers import Mlp
from rvos_cache.trackers.mask2former.released import ReleasedSizes, load_released

KIND = "DVIS++ checkpoint"
PREFIX = "sem_seg_head.predictor."
PARTS = ("decoder_norm.", "reid_embed.")
"""What the released names have after PREFIX; the rest of the predictor is Mask2Former's decoder."""


class ReidQueries(nn.Module):
    """Two rows of 2C numbers per query: what frames are matched by, and what the tracker and the refiner read.

    Zhang et al., "DVIS++: Improved Decoupled Framework for Universal Video Segmentation", section 3.2, and the released code.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.decoder_norm = nn.LayerNorm(channels)
        self.reid_embed = Mlp(channels, channels)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor]) -> ReidQueries:
        """The frozen module of the released tensors `sem_seg_head.predictor.decoder_norm.*` and `.reid_embed.*`, others ignored.

        Raises InputError naming a tensor that is missing or of another shape.
        """
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in state_dict.items() if is_reid(name)}
        channels = ReleasedSizes(tensors, KIND, PREFIX).of("decoder_norm.weight", 1)[0]
        return load_released(lambda: cls(channels), tensors, KIND, PREFIX)

    def official(self) -> dict[str, Tensor]:
        """The tensors under their released names: the inverse of `from_official`."""
        return {PREFIX + name: tensor for name, tensor in self.state_dict().items()}

    def forward(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """(queries, raw), both (B, T, N, 2C), of q (B, T, N, C) before the decoder's last LayerNorm.

        queries: [LayerNorm(q), e]; raw: [q, e], with the embedding e of LayerNorm(q).
        """
        normed = self.decoder_norm(q)
        embedded = self.reid_embed(normed)
        return cat([normed, embedded], -1), cat([q, embedded], -1)


def is_reid(name: str) -> bool:
    """Whether the released tensor `name` belongs to `ReidQueries`."""
    return name.startswith(tuple(PREFIX + part for part in PARTS))
