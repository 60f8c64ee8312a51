"""ReferDINO's feature pyramid: mask features at stride 4 from the encoded levels and the backbone's first stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 8
"""Groups of the group norms."""
MASK_LEVELS = 3
"""Levels of the encoded frame that the pyramid reads, after the backbone's map at stride 4."""


class Pyramid(nn.Module):
    """The released `FPNSpatialDecoder`; parameters have its names.

    channels: C, of the encoded levels and of the result; map_channels: of the map at stride 4; widths: of `lay1` to `lay5`, by
    default C, C/2, C/4, C/8, C/16, the last at least the number of groups. First values: Kaiming uniform (a = 1), biases 0.
    """

    def __init__(self, channels: int = 256, map_channels: int = 96, widths: Sequence[int] = ()) -> None:
        super().__init__()
        # Tests have fewer channels than groups would allow.
        a, b, c, d, e = widths or [max(channels >> i, GROUPS) for i in range(5)]
        self.lay1, self.gn1 = nn.Conv2d(channels, a, 3, padding=1), nn.GroupNorm(GROUPS, a)
        self.lay2, self.gn2 = nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(GROUPS, b)
        self.lay3, self.gn3 = nn.Conv2d(b, c, 3, padding=1), nn.GroupNorm(GROUPS, c)
        self.lay4, self.gn4 = nn.Conv2d(c, d, 3, padding=1), nn.GroupNorm(GROUPS, d)
        self.lay5, self.gn5 = nn.Conv2d(d, e, 3, padding=1), nn.GroupNorm(GROUPS, e)
        self.adapter1 = nn.Conv2d(channels, b, 1)
        self.adapter2 = nn.Conv2d(channels, c, 1)
        self.adapter3 = nn.Conv2d(map_channels, d, 1)
        self.out_lay = nn.Conv2d(e, channels, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Features (K, C, h, w) of maps at strides 4, 8, 16, 32: (K, map channels, h, w), then (K, C, ...) from the encoder."""
        s4, s8, s16, s32 = maps
        x = F.relu(self.gn1(self.lay1(s32)))
        x = F.relu(self.gn2(self.lay2(x)))
        x = F.relu(self.gn3(self.lay3(_added(self.adapter1(s16), x))))
        x = F.relu(self.gn4(self.lay4(_added(self.adapter2(s8), x))))
        x = F.relu(self.gn5(self.lay5(_added(self.adapter3(s4), x))))
        return self.out_lay(x)


def _added(fine: Tensor, coarse: Tensor) -> Tensor:
    """fine (K, C, h, w) plus coarse, enlarged by nearest."""
    return fine + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")


def split_levels(memory: Tensor, shapes: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
    """The first levels (K, C, h, w), whose sizes are `shapes`, of encoded frames (K, S, C)."""
    start = 0
    for h, w in shapes:
        yield memory[:, start : start + h * w].transpose(1, 2).reshape(len(memory), -1, h, w)
        start += h * w
