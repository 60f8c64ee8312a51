"""BEiT-3's encoder: frames and sentences together, with an expert each for vision (A) and words (B) around a joint attention.

Source: Wang et al., "Image as a Foreign Language", CVPR 2023, section 2.1; formulas as in torchscale 0.3.0 (`model.BEiT3`, MIT).
Letters: B pairs of a frame and a sentence, S the side of the frame in pixels, P = (S / 16)² patches, L words, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_cache.errors import InputError
from rvos_cache.text.beit3.names import NAMES, PREFIX, UNREAD

PATCH = 16
"""Side of a patch in pixels."""
HEAD_WIDTH = 64
"""Channels of an attention head, in base and large."""
EPS = 1e-5
"""Of every LayerNorm."""
FIRST_POSITION = 2
"""Row of a position table that the first token of its modality reads; the rows before are unread."""
EXPERTS = ("A", "B")
"""Experts of vision and of words, by their released names."""
GIVE = "give a checkpoint of BEiT-3, such as beit3_base_patch16_224.pth"


class Beit3Output(NamedTuple):
    """What the encoder returns, after its last norm: float32, under autocast too.

    vision: (B, P, D), row by row, and cls: (B, D), both None without images; words: (B, L, D), zeros where a word is not real.
    """

    vision: Tensor | None
    cls: Tensor | None
    words: Tensor


@dataclass(frozen=True)
class Beit3Sizes:
    """The sizes of an encoder.

    width: D; layers; vocabulary: number of word vectors; grid: patches along a side of the frames it was trained on;
    longest: maximum number of words of a sentence.
    """

    width: int
    layers: int
    vocabulary: int
    grid: int
    longest: int

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> Beit3Sizes:
        """Read the sizes from the shapes of the released tensors, by name without "beit3.".

        Raises InputError naming a tensor that is missing or has an impossible shape.
        """

        def rows_of(name: str) -> tuple[int, int]:
            shape = shapes.get(name)
            if shape is None:
                raise InputError(f"the tensor {PREFIX + name!r} is missing; {GIVE}")
            if len(shape) != 2:
                raise InputError(f"{PREFIX + name!r} is {shape}, expected 2 axes; {GIVE}")
            return shape[0], shape[1]

        vocabulary, width = rows_of("text_embed.weight")
        patches = rows_of("encoder.embed_positions.A.weight")[0] - FIRST_POSITION - 1
        grid = math.isqrt(max(patches, 0))
        if not width or width % HEAD_WIDTH:
            raise InputError(f"the width is {width}, expected a multiple of {HEAD_WIDTH}; {GIVE}")
        if not grid or grid**2 != patches:
            raise InputError(f"the position table of vision has {patches} patches, expected a square number; {GIVE}")
        longest = rows_of("encoder.embed_positions.B.weight")[0] - FIRST_POSITION
        numbers = {name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")}
        return cls(width, len(numbers), vocabulary, grid, longest)


class Expert(nn.Module):
    """One modality's part of a layer: pre-norm, with a second norm inside attention and feed-forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.inner_norm = nn.LayerNorm(width, EPS)
        self.out = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width, EPS)
        self.fc1 = nn.Linear(width, 4 * width)
        self.hidden_norm = nn.LayerNorm(4 * width, EPS)
        self.fc2 = nn.Linear(4 * width, width)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values (B, n, 3D) of tokens (B, n, D)."""
        out: Tensor = self.qkv(_norm(self.attention_norm, x))
        return out

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        """The tokens after the layer. attended: (B, n, D), what attention returned for them."""
        x = x + self.out(_norm(self.inner_norm, attended))
        hidden = F.gelu(self.fc1(_norm(self.ffn_norm, x)))
        return x + self.fc2(_norm(self.hidden_norm, hidden))


class Layer(nn.Module):
    """Both experts, and the attention of all tokens to all real ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.A, self.B = Expert(width), Expert(width)

    def forward(self, streams: Sequence[Tensor], is_key: Tensor) -> list[Tensor]:
        """streams: the tokens of each modality, (B, n, D), vision first, or of words alone; is_key: bool (B, 1, 1, all tokens)."""
        experts = (self.A, self.B)[-len(streams) :]
        projected = torch.cat([expert.project(x) for expert, x in zip(experts, streams)], 1)
        q, k, v = projected.unflatten(-1, (3, -1, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=is_key).transpose(1, 2).flatten(2)
        parts = attended.split([x.shape[1] for x in streams], 1)
        return [expert(x, part) for expert, x, part in zip(experts, streams, parts)]


class Beit3(nn.Module):
    """The encoder for frames of `side` pixels; `side` may be any multiple of 16.

    Under autocast matrix products and attention are computed in its dtype; the tokens between the layers stay float32.
    """

    def __init__(self, sizes: Beit3Sizes, side: int | None = None) -> None:
        """Random weights. side: by default that of the position table. Raises InputError for a side that patches do not fill."""
        super().__init__()
        self.sizes, self.side = sizes, PATCH * sizes.grid if side is None else side
        if self.side < PATCH or self.side % PATCH:
            raise InputError(f"BEiT-3 takes frames with a side that is a multiple of {PATCH} pixels, got {self.side}")
        width = sizes.width
        self.patches = nn.Conv2d(3, width, PATCH, stride=PATCH)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.word_vectors = nn.Embedding(sizes.vocabulary, width)
        rows = {"A": sizes.grid**2 + 1, "B": sizes.longest}
        self.positions = nn.ParameterDict({e: 0.02 * torch.randn(FIRST_POSITION + rows[e], width) for e in EXPERTS})
        self.layers = nn.ModuleList(Layer(width) for _ in range(sizes.layers))
        self.norms = nn.ModuleDict({e: nn.LayerNorm(width, EPS) for e in EXPERTS})

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], side: int | None = None) -> Beit3:
        """The frozen encoder of the released tensors `beit3.*`, float32; tensors of other names are ignored. side: as `Beit3`.

        Raises InputError naming a tensor that is missing, unknown, or of a shape that contradicts the others.
        """
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in state_dict.items() if name.startswith(PREFIX)}
        sizes = Beit3Sizes.of({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        # On the meta device no memory is allocated and no random numbers are generated.
        with torch.device("meta"):
            model = cls(sizes, side)
        state = {}
        for name, empty in model.state_dict().items():
            parts = NAMES.parts(name)
            expected = (len(empty) // len(parts), *empty.shape[1:])
            for part in parts:
                if part not in tensors:
                    raise InputError(f"the tensor {PREFIX + part!r} is missing; {GIVE}")
                shape = tuple(tensors[part].shape)
                if shape != expected:
                    raise InputError(f"{PREFIX + part!r} is {shape}, expected {expected} from the other tensors; {GIVE}")
            pieces = [tensors.pop(part).float() for part in parts]
            state[name] = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        unknown = sorted(tensors.keys() - {*UNREAD})
        if unknown:
            raise InputError(f"the tensor {PREFIX + unknown[0]!r} is not one of BEiT-3's encoder; {GIVE}")
        model.load_state_dict(state, assign=True)
        return model.eval().requires_grad_(False)

    def official(self) -> dict[str, Tensor]:
        """The tensors under their released names: the inverse of `from_official`."""
        out: dict[str, Tensor] = {}
        for name, tensor in self.state_dict().items():
            parts = NAMES.parts(name)
            out |= {PREFIX + part: piece for part, piece in zip(parts, tensor.chunk(len(parts)))}
        return out

    def forward(self, images: Tensor | None, ids: Tensor, real: Tensor) -> Beit3Output:
        """images: float (B, 3, S, S) in [-1, 1], see `normalise_pixels`, or None for sentences alone; ids: int64 (B, L);
        real: bool (B, L), False in padding, at least one True in each row.

        Raises ValueError for images of another side, or more words than the position table has.
        """
        if real.shape != ids.shape or ids.shape[1] > self.sizes.longest:
            raise ValueError(f"ids {tuple(ids.shape)}, real {tuple(real.shape)}, at most {self.sizes.longest} words")
        # The released code sets padded words to zero here; nothing reads them.
        words = self.word_vectors(ids) + self.positions["B"][FIRST_POSITION:][: ids.shape[1]]
        streams, is_key = [words], real
        if images is not None:
            vision = self._embed(images)
            streams = [vision, words]
            is_key = torch.cat([real.new_ones(vision.shape[:2]), real], 1)
        for layer in self.layers:
            streams = layer(streams, is_key[:, None, None])
        # What attention makes of padding has no meaning.
        encoded = _norm(self.norms["B"], streams[-1]).masked_fill(~real[..., None], 0)
        if images is None:
            return Beit3Output(None, None, encoded)
        vision = _norm(self.norms["A"], streams[0])
        return Beit3Output(vision[:, 1:], vision[:, 0], encoded)

    def _embed(self, images: Tensor) -> Tensor:
        """The class token and the patches with their positions, (B, 1 + P, D)."""
        if images.shape[1:] != (3, self.side, self.side):
            raise ValueError(f"images {tuple(images.shape)}, expected (B, 3, {self.side}, {self.side})")
        patches = self.patches(images.to(self.patches.weight.dtype)).flatten(2).transpose(1, 2)
        positions = self._vision_positions()
        first = (self.class_token + positions[:1]).expand(len(images), -1, -1)
        return torch.cat([first, patches + positions[1:]], 1)

    def _vision_positions(self) -> Tensor:
        """(1 + P, D): the table's rows, those of patches resampled bicubically to the grid of `side`, as the released loader does."""
        rows = self.positions["A"][FIRST_POSITION:]
        grid, side = self.sizes.grid, self.side // PATCH
        if grid == side:
            return rows
        table = rows[1:].T.unflatten(1, (grid, grid))[None]
        resampled = F.interpolate(table, (side, side), mode="bicubic", align_corners=False)
        return torch.cat([rows[:1], resampled[0].flatten(1).T])


def normalise_pixels(pixels: Tensor, device: torch.device | str | None = None) -> Tensor:
    """Frames (..., S, S, 3) uint8 RGB as images (B, 3, S, S) float32 in [-1, 1] on `device`; B is the product of the leading axes.

    Source: mean and deviation 0.5, torchscale and the released BEiT-3 code.
    """
    frames = pixels.reshape(-1, *pixels.shape[-3:]).to(device).permute(0, 3, 1, 2)
    return (frames.float() / 255 - 0.5) / 0.5


def _norm(layer: nn.Module, x: Tensor) -> Tensor:
    """The LayerNorm in the dtype of `x`: autocast would make float32 copies of the widest activations."""
    assert isinstance(layer, nn.LayerNorm)
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x, layer.normalized_shape, layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.eps)
