"""The ViT-Adapter backbone of DVIS++'s large models: a DINOv2 ViT whose patches give four maps of different strides.

Chen et al., "Vision Transformer Adapter for Dense Predictions", ICLR 2023, as in DVIS++'s released code, whose ViT does not read the
maps (no injectors). Letters: T images, H W pixels, h w patches of 16x16 pixels, S cells of the maps of strides 8, 16 and 32, D
channels. Parameters have their released names without "backbone.".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_cache.trackers.dvis.queries import KIND
from rvos_cache.trackers.mask2former.released import ReleasedSizes, load_released

PREFIX = "backbone."
UNREAD = r"vit_module\.(mask_token|norm\.(weight|bias))|.*\.num_batches_tracked"
"""Pattern of the released tensors, without PREFIX, that evaluation does not use."""
PATCH = 16
HEAD_CHANNELS = 64
"""Channels of a head of the ViT (DINOv2)."""
POINTS = 4
"""Sampling points of a head of the deformable attention; like HEAD_CHANNELS not in the tensors, but in the released arguments."""
EPS = 1e-6


@dataclass(frozen=True)
class AdapterSizes:
    """width: D; blocks: of the ViT; hidden: of its MLPs; positions: of its position table, without the class token's; stem: channels
    of the first convolutions; groups: blocks are split into; extra: extractors more in the last group; heads: of the deformable
    attention; convolved: channels of the extractors' feed-forward layers."""

    width: int
    blocks: int
    hidden: int
    positions: int
    stem: int
    groups: int
    extra: int
    heads: int
    convolved: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> AdapterSizes:
        """Read the sizes from the released tensors, by name without PREFIX.

        Raises InputError naming a tensor that is missing or has another number of axes.
        """
        sizes = ReleasedSizes(tensors, KIND, PREFIX)
        groups = sizes.count("interactions.")
        return cls(
            width=sizes.of("level_embed", 2)[1],
            blocks=sizes.count("vit_module.blocks."),
            hidden=sizes.of("vit_module.blocks.0.mlp.fc1.bias", 1)[0],
            positions=sizes.of("vit_module.pos_embed", 3)[1] - 1,
            stem=sizes.of("spm.stem.0.weight", 4)[0],
            groups=groups,
            extra=sizes.count(f"interactions.{groups - 1}.extra_extractors."),
            heads=sizes.of("interactions.0.extractor.attn.attention_weights.bias", 1)[0] // POINTS,
            convolved=sizes.of("interactions.0.extractor.ffn.fc1.bias", 1)[0],
        )

    def to_json(self) -> dict[str, int]:
        """The sizes by name."""
        return asdict(self)


class VitAdapter(nn.Module):
    """The frozen backbone in evaluation; images do not influence each other."""

    def __init__(self, sizes: AdapterSizes) -> None:
        super().__init__()
        self.sizes = sizes
        d = sizes.width
        self.level_embed = nn.Parameter(torch.zeros(3, d))
        self.spm = SpatialPrior(sizes.stem, d)
        self.interactions = nn.ModuleList(Interaction(sizes, g == sizes.groups - 1) for g in range(sizes.groups))
        self.up = nn.ConvTranspose2d(d, d, 2, 2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (FrozenBatchNorm(d) for _ in range(4))
        self.vit_module = Vit(sizes)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor]) -> VitAdapter:
        """The frozen backbone of the released tensors `backbone.*`, except those that evaluation does not use; others are ignored.

        Raises InputError naming a tensor that is missing, unknown, or of a shape that contradicts the others.
        """
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in state_dict.items() if name.startswith(PREFIX)}
        tensors = {name: tensor for name, tensor in tensors.items() if not re.fullmatch(UNREAD, name)}
        sizes = AdapterSizes.of(tensors)
        return load_released(lambda: cls(sizes), tensors, KIND, PREFIX)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps (T, D, H/4, W/4), …/8, …/16 and …/32 of normalised images (T, 3, H, W).

        Raises ValueError if H or W is not a multiple of 32.
        """
        if images.ndim != 4 or images.shape[2] % 32 or images.shape[3] % 32:
            raise ValueError(f"expected images (T, 3, H, W) with H and W multiples of 32, got {tuple(images.shape)}")
        h, w = (side // PATCH for side in images.shape[2:])
        fine, *maps = self.spm(images)
        shapes = [(2 * h, 2 * w), (h, w), (h // 2, w // 2)]
        cells = torch.cat([m.flatten(2).transpose(1, 2) + level for m, level in zip(maps, self.level_embed)], 1)
        tokens = self.vit_module.tokens(images)
        patches = []
        size = len(self.vit_module.blocks) // len(self.interactions)
        for g, interaction in enumerate(self.interactions):
            for block in self.vit_module.blocks[g * size : (g + 1) * size]:
                tokens = block(tokens)
            cells = interaction(cells, tokens[:, 1:], shapes)
            patches.append(_as_map(tokens[:, 1:], (h, w)))
        c2, c3, c4 = (_as_map(c, shape) for c, shape in zip(cells.split([a * b for a, b in shapes], 1), shapes))
        summed = [self.up(c2) + fine, c2, c3, c4]
        norms = (self.norm1, self.norm2, self.norm3, self.norm4)
        return [
            norm(c + (x if scale == 1 else F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)))
            for norm, c, x, scale in zip(norms, summed, patches, (4, 2, 1, 0.5))
        ]


class Interaction(nn.Module):
    """One group's extractors: the cells of the maps read the ViT's patches."""

    def __init__(self, sizes: AdapterSizes, is_last: bool) -> None:
        super().__init__()
        self.extractor = Extractor(sizes)
        self.extra_extractors = nn.ModuleList(Extractor(sizes) for _ in range(sizes.extra if is_last else 0))

    def forward(self, cells: Tensor, patches: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Cells (T, S, D) of maps of `shapes`, from cells and patches (T, h w, D)."""
        for extractor in (self.extractor, *self.extra_extractors):
            cells = extractor(cells, patches, shapes)
        return cells


class Extractor(nn.Module):
    """Deformable attention of cells to patches, then a feed-forward layer with a convolution over each map."""

    def __init__(self, sizes: AdapterSizes) -> None:
        super().__init__()
        d = sizes.width
        self.query_norm, self.feat_norm, self.ffn_norm = (nn.LayerNorm(d, eps=EPS) for _ in range(3))
        self.attn = DeformableAttention(d, sizes.heads)
        self.ffn = ConvolvedFeedForward(d, sizes.convolved)

    def forward(self, cells: Tensor, patches: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """As `Interaction.forward`."""
        cells = cells + self.attn(self.query_norm(cells), self.feat_norm(patches), shapes)
        return cells + self.ffn(self.ffn_norm(cells), shapes)


class DeformableAttention(nn.Module):
    """Each cell samples POINTS points of the patches near its own place, per head. Zhu et al., "Deformable DETR", ICLR 2021, Eq. 2."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.sampling_offsets = nn.Linear(channels, heads * POINTS * 2)
        self.attention_weights = nn.Linear(channels, heads * POINTS)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)

    def forward(self, cells: Tensor, patches: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """(T, S, D) from cells (T, S, D) and patches (T, h w, D); the second of `shapes` is (h, w)."""
        batch, count, channels = cells.shape
        h, w = shapes[1]
        values = (
            self.value_proj(patches)
            .reshape(batch, h * w, self.heads, -1)
            .permute(0, 2, 3, 1)
            .reshape(-1, channels // self.heads, h, w)
        )
        offsets = self.sampling_offsets(cells).reshape(batch, count, self.heads, POINTS, 2)
        # Offsets are in patches, places in shares of the map; grid_sample counts from -1 to 1.
        places = _centres(shapes, cells)[:, None, None] + offsets / offsets.new_tensor([w, h])
        grid = (2 * places - 1).transpose(1, 2).flatten(0, 1)
        sampled = F.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        weights = self.attention_weights(cells).reshape(batch, count, self.heads, POINTS).softmax(-1)
        weights = weights.transpose(1, 2).flatten(0, 1)[:, None]
        return self.output_proj((sampled * weights).sum(-1).reshape(batch, channels, count).transpose(1, 2))


class ConvolvedFeedForward(nn.Module):
    """W2 GELU(conv(W1 x)), the convolution over each map on its own, channel by channel."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = nn.ModuleDict({"dwconv": nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)})
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, cells: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """(T, S, D) from (T, S, D), the cells of maps of `shapes`."""
        parts = self.fc1(cells).split([h * w for h, w in shapes], 1)
        convolved = [self.dwconv["dwconv"](_as_map(part, shape)).flatten(2) for part, shape in zip(parts, shapes)]
        return self.fc2(F.gelu(torch.cat(convolved, 2).transpose(1, 2)))


class SpatialPrior(nn.Module):
    """Convolutions of the image, to maps of strides 4, 8, 16 and 32."""

    def __init__(self, stem: int, channels: int) -> None:
        super().__init__()
        first = [*_convolution(3, stem, 2), *_convolution(stem, stem, 1), *_convolution(stem, stem, 1)]
        self.stem = nn.Sequential(*first, nn.MaxPool2d(3, stride=2, padding=1))
        self.conv2 = nn.Sequential(*_convolution(stem, 2 * stem, 2))
        self.conv3 = nn.Sequential(*_convolution(2 * stem, 4 * stem, 2))
        self.conv4 = nn.Sequential(*_convolution(4 * stem, 4 * stem, 2))
        self.fc1, self.fc2, self.fc3, self.fc4 = (nn.Conv2d(width * stem, channels, 1) for width in (1, 2, 4, 4))

    def forward(self, images: Tensor) -> list[Tensor]:
        """The four maps (T, D, …) of images (T, 3, H, W)."""
        x, maps = images, []
        steps = ((self.stem, self.fc1), (self.conv2, self.fc2), (self.conv3, self.fc3), (self.conv4, self.fc4))
        for convolutions, project in steps:
            x = convolutions(x)
            maps.append(project(x))
        return maps


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with stored statistics."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(T, channels, …) from (T, channels, …)."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class Vit(nn.Module):
    """The tokens and blocks of DINOv2's ViT (Oquab et al., "DINOv2", 2023), with patches of 16x16."""

    def __init__(self, sizes: AdapterSizes) -> None:
        super().__init__()
        d = sizes.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + sizes.positions, d))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, d, PATCH, PATCH)})
        self.blocks = nn.ModuleList(Block(d, sizes.hidden) for _ in range(sizes.blocks))

    def tokens(self, images: Tensor) -> Tensor:
        """(T, 1 + h w, D): the class token and the patches of images (T, 3, H, W), with their positions."""
        patches = self.patch_embed["proj"](images)
        h, w = patches.shape[2:]
        class_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(images), -1, -1)
        return torch.cat([class_token, (patches + self._positions(h, w)).flatten(2).transpose(1, 2)], 1)

    def _positions(self, h: int, w: int) -> Tensor:
        """The square table of positions as (1, D, h, w)."""
        side = isqrt(self.pos_embed.shape[1] - 1)
        table = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        if (h, w) == (side, side):
            return table
        # DINOv2's code adds 0.1 to the sizes against rounding, which moves the places of the samples.
        return F.interpolate(table, scale_factor=((h + 0.1) / side, (w + 0.1) / side), mode="bicubic")


class Block(nn.Module):
    """x + γ1 attention(LN x), then x + γ2 MLP(LN x)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(channels, eps=EPS) for _ in range(2))
        self.attn = nn.ModuleDict({"qkv": nn.Linear(channels, 3 * channels), "proj": nn.Linear(channels, channels)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(channels, hidden), "fc2": nn.Linear(hidden, channels)})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": nn.Parameter(torch.ones(channels))}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(T, L, D) from (T, L, D)."""
        batch, length, channels = x.shape
        packed = self.attn["qkv"](self.norm1(x)).reshape(batch, length, 3, -1, HEAD_CHANNELS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*packed).transpose(1, 2).reshape(batch, length, channels)
        x = x + self.ls1["gamma"] * self.attn["proj"](attended)
        return x + self.ls2["gamma"] * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


def _convolution(channels: int, out: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, stride, 1, bias=False), FrozenBatchNorm(out), nn.ReLU(inplace=True)]


def _as_map(cells: Tensor, shape: tuple[int, int]) -> Tensor:
    """(T, D, h, w) from cells (T, h w, D)."""
    return cells.transpose(1, 2).unflatten(2, shape)


def _centres(shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """The centres x, y of the cells of all maps, as shares of the map's sides: (S, 2)."""
    maps = []
    for h, w in shapes:
        y, x = ((torch.arange(side, dtype=like.dtype, device=like.device) + 0.5) / side for side in (h, w))
        maps.append(torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1).flatten(0, 1))
    return torch.cat(maps)
