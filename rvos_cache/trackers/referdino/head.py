"""ReferDINO's head: all that follows GroundingDINO's pruned decoder. Parameters are named as in the release, see `state`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rvos_cache.errors import InputError
from rvos_cache.trackers.referdino.boxes import Mlp, refined, sine_positions
from rvos_cache.trackers.referdino.condinst import CondInst
from rvos_cache.trackers.referdino.enhancer import HEADS, Enhancer
from rvos_cache.trackers.referdino.mask_decoder import MaskDecoder
from rvos_cache.trackers.referdino.names import merged
from rvos_cache.trackers.referdino.pyramid import Pyramid

PREFIXES = {
    "enhancer.": "temporal_decoder.0.",
    "box.": "bbox_embed.0.",
    "pyramid.": "pixel_decoder.",
    "mask_decoder.": "mask_decoder.",
    "reference_points_head.": "ref_point_head.",
}
"""Prefixes of the parameters of the head -> of the released tensors, the first copy of each."""
NO_TEXT = -1e4
"""Logit of queries whose text has no real token; finite as float16."""
HOW_TO_FIX = "give a complete checkpoint of ReferDINO"


@dataclass(frozen=True)
class HeadSizes:
    """The sizes of a head; the default is that of the released Swin-T models for videos.

    channels: C; map_channels: of the backbone's first stage; temporal_layers, temporal_hidden: blocks of the enhancer and the
    width of their feed-forward layers; mask_layers, mask_hidden, mask_points: of the mask decoder, points per attention head;
    widths: of the pyramid's five layers, () for the default of `Pyramid`; condinst: CondInst takes the place of the mask decoder,
    which then has no sizes. Without mask_layers a mask is the product of query and features.
    """

    channels: int = 256
    map_channels: int = 96
    temporal_layers: int = 3
    temporal_hidden: int = 2048
    mask_layers: int = 3
    mask_hidden: int = 1024
    mask_points: int = 16
    widths: tuple[int, ...] = ()
    condinst: bool = False

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> HeadSizes:
        """Read the sizes from the shapes of released tensors by name. Raises InputError naming a tensor that is missing."""

        def axis(name: str, number: int) -> int:
            shape = shapes.get(name)
            if shape is None:
                raise InputError(f"ReferDINO's head: the tensor {name!r} is missing; {HOW_TO_FIX}")
            if len(shape) <= number:
                raise InputError(f"ReferDINO's head: {name!r} is {shape}, expected at least {number + 1} axes; {HOW_TO_FIX}")
            return shape[number]

        def layers(prefix: str) -> int:
            return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})

        condinst = f"{PREFIXES['mask_decoder.']}controller.weight" in shapes
        temporal, mask = layers("temporal_decoder.0.layer."), 0 if condinst else layers("mask_decoder.")
        default = cls()
        return cls(
            channels=axis("bbox_embed.0.layers.0.weight", 1),
            map_channels=axis("pixel_decoder.adapter3.weight", 1),
            temporal_layers=temporal,
            temporal_hidden=axis("temporal_decoder.0.layer.0.decoder.linear1.bias", 0) if temporal else default.temporal_hidden,
            mask_layers=mask,
            mask_hidden=axis("mask_decoder.0.linear1.bias", 0) if mask else default.mask_hidden,
            # Each attention head has an x and a y offset for each point.
            mask_points=axis("mask_decoder.0.cross_attn.sampling_offsets.bias", 0) // (2 * HEADS)
            if mask
            else default.mask_points,
            widths=tuple(axis(f"pixel_decoder.lay{i}.bias", 0) for i in range(1, 6)),
            condinst=condinst,
        )


class ReferDinoHead(nn.Module):
    """Enhancer, class logits, boxes and masks of tracked queries. C channels are a multiple of the 8 attention heads.

    Submodules: `enhancer`, `box`, `pyramid`, `mask_decoder`, and `reference_points_head`, which encodes boxes for the mask
    decoder and is the decoder's own (with LoRA in the release). First values are those of the released code; box and
    reference_points_head belong to GroundingDINO, see `from_grounding`.
    """

    def __init__(self, sizes: HeadSizes | None = None) -> None:
        super().__init__()
        self.sizes = sizes = sizes or HeadSizes()
        c = sizes.channels
        self.enhancer = Enhancer(c, sizes.temporal_hidden, sizes.temporal_layers)
        self.box = Mlp(c, c, c, 4)
        self.pyramid = Pyramid(c, sizes.map_channels, sizes.widths)
        self.mask_decoder: MaskDecoder | CondInst = (
            CondInst(c) if sizes.condinst else MaskDecoder(c, sizes.mask_hidden, sizes.mask_layers, sizes.mask_points)
        )
        self.reference_points_head = Mlp(2 * c, c, c)

    @classmethod
    def from_official(cls, state: Mapping[str, Tensor]) -> ReferDinoHead:
        """The head of released tensors, LoRA merged, in evaluation mode; sizes are read from the tensors.

        Tensors that are not of the head, and further copies of shared modules, are ignored (`check_released` compares them).
        Raises InputError naming a tensor that is missing, unknown, or of a shape that contradicts the others.
        """
        tensors = merged({name: tensor for name, tensor in state.items() if name.startswith(tuple(PREFIXES.values()))})
        sizes = HeadSizes.of({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        if sizes.channels % HEADS:
            raise InputError(f"ReferDINO's head: {sizes.channels} channels cannot be split into {HEADS} attention heads")
        # On the meta device no memory is allocated and no random numbers are generated.
        with torch.device("meta"):
            head = cls(sizes)
        shapes = {name: tuple(tensor.shape) for name, tensor in head.state().items()}
        for name in sorted(shapes.keys() | tensors.keys()):
            if name not in tensors:
                raise InputError(f"ReferDINO's head: the tensor {name!r} is missing; {HOW_TO_FIX}")
            if name not in shapes:
                raise InputError(f"ReferDINO's head: the tensor {name!r} is not one of it; {HOW_TO_FIX}")
            if tuple(tensors[name].shape) != shapes[name]:
                raise InputError(
                    f"ReferDINO's head: {name!r} is {tuple(tensors[name].shape)}, expected {shapes[name]} from the other tensors"
                )
        # Copies, so that training does not change the caller's tensors.
        own = {name: tensors[_released(name)].clone() for name in head.state_dict()}
        head.load_state_dict(own, assign=True)
        return head.eval()

    @classmethod
    def from_grounding(cls, model: Any, *, temporal_layers: int = 3) -> ReferDinoHead:
        """A head for training: enhancer, pyramid and mask decoder random (seed PyTorch before), `box` and
        `reference_points_head` copied from `model`, a `GroundingDinoForObjectDetection`."""
        width = int(model.config.backbone_config.embed_dim)
        head = cls(HeadSizes(int(model.config.d_model), width, temporal_layers))
        head.box.load_state_dict(model.bbox_embed[0].state_dict())
        head.reference_points_head.load_state_dict(model.model.decoder.reference_points_head.state_dict())
        return head

    def state(self) -> dict[str, Tensor]:
        """The tensors under their released names, one copy of each: the inverse of `from_official`."""
        return {_released(name): tensor for name, tensor in self.state_dict().items()}

    def without_enhancer(self) -> ReferDinoHead:
        """The same head without blocks in its enhancer, which then returns queries as they are; it shares the other modules."""
        sizes = replace(self.sizes, temporal_layers=0, temporal_hidden=HeadSizes().temporal_hidden)
        with torch.device("meta"):
            head = ReferDinoHead(sizes)
        for name, module in self.named_children():
            if name != "enhancer":
                setattr(head, name, module)
        return head.train(self.training)

    def enhance(self, queries: Tensor, sentence: Tensor, frames: Tensor | None = None) -> Tensor:
        """Tracked queries (B, T, Q, C) after the enhancer; sentence: (B, T, C), feature of `[CLS]` in each frame.

        frames: bool (B, T), True where real. It also runs for T = 1, as the released `infer` does; the released `forward` leaves
        it out there (RefCOCO, A2D, JHMDB), which is up to the caller.
        """
        return self.enhancer(queries, sentence, frames)

    def logits(self, queries: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Class logits float32 (B, T, Q): the largest product of a query with a real token.

        queries: (B, T, Q, C); text: (B, T, L, C) with mask text_mask: bool (B, T, L). NO_TEXT where no token is real.
        """
        return class_logits(queries, text, text_mask)

    def boxes(self, queries: Tensor, reference: Tensor) -> Tensor:
        """Boxes (..., 4), cxcywh in [0, 1], of queries (..., C) and their references (..., 4) before the last refinement."""
        return refined(self.box(queries), reference)

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """Mask features (K, C, h, w) at stride 4 of maps at strides 4, 8, 16, 32.

        The first is the backbone's first stage after `norm0`; the others are levels of the encoder's output, (K, C, ...).
        """
        return self.pyramid(maps)

    def mask_logits(
        self, queries: Tensor, reference: Tensor, features: Tensor, real: Tensor, text: Tensor, text_mask: Tensor
    ) -> Tensor:
        """Mask logits (K, Q, h, w) at stride 4.

        queries: (K, Q, C), enhanced; reference: (K, Q, 4), cxcywh before the last refinement; features: (K, C, h, w) with mask
        real: bool (K, h, w); text: (K, L, C) with mask text_mask: bool (K, L). Masks are True where real.
        """
        rows, columns = real[:, :, 0].float().mean(1), real[:, 0].float().mean(1)
        ratios = torch.stack([columns, rows, columns, rows], -1)[:, None]
        boxes = reference * ratios
        if isinstance(self.mask_decoder, CondInst):
            return self.mask_decoder(queries, boxes, features)
        positions = self.reference_points_head(sine_positions(boxes, queries.shape[-1]))
        embeddings = self.mask_decoder(queries, positions, boxes, features, real, text, text_mask)
        return torch.einsum("kqc,kchw->kqhw", embeddings, features)


def class_logits(queries: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
    """Class logits float32 (B, T, Q): the largest product of a query with a real token, see `ReferDinoHead.logits`."""
    # Also under autocast, which would compute the product in its own type.
    with torch.autocast(queries.device.type, enabled=False):
        products = queries.float() @ text.float().transpose(-1, -2)
    best = products.masked_fill(~text_mask[..., None, :], -torch.inf).amax(-1)
    return best.masked_fill(~text_mask.any(-1)[..., None], NO_TEXT)


def _released(name: str) -> str:
    """The released name of a parameter of the head."""
    own = next(prefix for prefix in PREFIXES if name.startswith(prefix))
    return PREFIXES[own] + name.removeprefix(own)
