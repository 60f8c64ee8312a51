"""What the small models of moving shapes share: classes, a small Mask2Former, and Mask2Former's losses of clips.

A class is a shape of a colour, as many as YouTube-VIS has: queries that had to tell objects from ground alone would say nothing of
looks. Letters: T frames, A objects, N queries, K classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.pretrained import quiet
from rvos_cache.shapes import make_video
from rvos_cache.shapes.scene import COLOURS, SHAPES, Appearance
from rvos_select.losses.matching import assign

CHANNELS, FRAME_QUERIES, POINTS = 64, 16, 1024
CLASSES = {(colour, shape): k for k, (colour, shape) in enumerate(product(COLOURS, SHAPES))}
NO_OBJECT = 0.1
CLASS_WEIGHT, MASK_WEIGHT = 2.0, 5.0
"""Weights of the class without an object, of the class loss, and of the BCE and the Dice loss each. Source: Mask2Former."""


@dataclass(frozen=True)
class ShapesVideo:
    """frames: T of uint8 (H, W, 3) RGB; masks: bool (A, T, H, W), what is visible of each object; labels: int64 (A,), its class."""

    frames: Sequence[Any]
    masks: Any
    labels: Tensor


@dataclass(frozen=True)
class Clip:
    """images (T, 3, height, width); masks bool (A, T, H, W); labels int64 (A,), the classes of the objects."""

    images: Tensor
    masks: Tensor
    labels: Tensor

    def frames(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each frame the objects that it shows: masks float (a, H, W), labels (a,)."""
        for masks in self.masks.transpose(0, 1):
            visible = masks.flatten(1).any(1)
            yield masks[visible].float(), self.labels[visible]

    def objects(self) -> tuple[Tensor, Tensor]:
        """The objects that the clip shows: masks float (a, T, H, W), labels (a,)."""
        visible = self.masks.flatten(1).any(1)
        return self.masks[visible].float(), self.labels[visible]


def make_segmenter(layers: int = 4, points: int = POINTS) -> Any:
    """A Mask2Former of 1.3 million random weights, in training mode. layers: of the decoder; points: of a mask in the loss."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128, 192], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    # transformers warns of the backbone, which is one of those that Mask2Former was published with.
    with quiet():
        config = Mask2FormerConfig(
            backbone_config=backbone, feature_size=CHANNELS, mask_feature_size=CHANNELS, hidden_dim=CHANNELS,
            num_queries=FRAME_QUERIES, encoder_feedforward_dim=128, dim_feedforward=256, encoder_layers=2, decoder_layers=layers,
            num_attention_heads=8, num_labels=len(CLASSES), train_num_points=points,
        )  # fmt: skip
        return Mask2FormerForUniversalSegmentation(config).train()


def draw_video(seed: int, index: int) -> ShapesVideo:
    """Video `index` of the training split of moving shapes with this seed."""
    scene, frames, masks, _ = make_video(seed, 0, index)
    return ShapesVideo(frames, masks, torch.tensor([label(thing.appearance) for thing in scene.things]))


def label(appearance: Appearance) -> int:
    """The class of an object."""
    return CLASSES[appearance.colour, appearance.shape]


def class_loss(logits: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (N, K + 1): the queries `rows` have the classes `labels`, all others are no object."""
    targets = torch.full((len(logits),), len(CLASSES))
    targets[rows] = labels
    weight = torch.tensor([1.0] * len(CLASSES) + [NO_OBJECT])
    return F.cross_entropy(logits, targets, weight)


def matched(logits: Tensor, labels: Tensor, bce: Tensor, dice: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and their objects, one-to-one, of the least costs of class, BCE and Dice; logits (N, K + 1), bce and dice (N, A)."""
    return assign(MASK_WEIGHT * (bce + dice) - CLASS_WEIGHT * logits.softmax(-1)[:, labels])


def mirrored(frame: Any, flip: bool) -> Any:
    """frame (..., H, W, 3) as it is, or left and right exchanged."""
    return np.ascontiguousarray(frame[..., ::-1, :]) if flip else frame
