"""GroundingDINO (Liu et al. 2024): boxes of texts in a frame. The image backbone runs once for all texts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
)
from transformers.models.grounding_dino.modeling_grounding_dino import SPECIAL_TOKENS

from rvos_cache.errors import InputError
from rvos_cache.pretrained import check_model_type, load_frozen, load_processor, weights_digest
from rvos_cache.system.device import device

WHAT, SETTING = "grounding checkpoint", "grounding_checkpoint"
MODEL_TYPE = "grounding-dino"
"""In the config.json of a GroundingDINO."""
Boxes = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Boxes (K, 4), x0 y0 x1 y1 in pixels of the frame, and their scores (K,)."""


class BoxFinder:
    """A frozen GroundingDINO by hub name (`IDEA-Research/grounding-dino-tiny`, `-base`) or folder.

    box_threshold: a box is returned when the largest probability of its tokens is higher; text_threshold: the probability above
    which a token belongs to the phrase of a box. In transformers, as in GroundingDINO's own code, it names boxes and drops none.
    Raises InputError if the checkpoint cannot be loaded, or its tokenizer is not GroundingDINO's.
    """

    def __init__(self, checkpoint: str, box_threshold: float, text_threshold: float) -> None:
        self.checkpoint, self.box_threshold, self.text_threshold = checkpoint, box_threshold, text_threshold
        check_model_type(checkpoint, MODEL_TYPE, WHAT, SETTING)
        # With torchvision installed, AutoImageProcessor would resize differently: a cache must not depend on that.
        images = load_processor(GroundingDinoImageProcessorPil, checkpoint, WHAT, SETTING)
        self.tokenizer: Any = load_tokenizer(checkpoint, WHAT, SETTING)
        self.processor: Any = GroundingDinoProcessor(images, self.tokenizer)
        self.model: Any = load_frozen(GroundingDinoForObjectDetection, checkpoint, WHAT, setting=SETTING)
        self.digest = weights_digest(self.model, checkpoint)
        self.max_length = min(int(self.model.config.max_text_len), int(self.tokenizer.model_max_length))
        self.backbone = SharedBackbone(self.model.model)

    def weight_hashes(self) -> dict[str, str]:
        """Digest of the weights as loaded, so that a hub name and a folder of the same weights agree."""
        return self.digest

    def find(self, frame: NDArray[np.uint8], texts: Sequence[str]) -> list[Boxes]:
        """The boxes of each text in `frame` (H, W, 3) uint8 RGB, highest score first; K = 0 for a text without boxes.

        A text is lower-cased and ends in "." (SOLA's released code); a text that is too long for the model is cut, with a
        warning. Boxes may reach beyond the frame. The boxes of a text do not depend on the other texts.
        Raises InputError if the frame is too narrow for the model.
        """
        size = frame.shape[:2]
        captions = [self.caption(text) for text in texts]
        # float32, whatever the caller's autocast: which boxes pass the threshold must not depend on it.
        with torch.inference_mode(), torch.autocast(device().type, enabled=False):
            inputs = self._encode(frame) if captions else None
            boxes = {caption: self._boxes(inputs, caption, size) for caption in dict.fromkeys(captions)}
        return [boxes[caption] for caption in captions]

    def _encode(self, frame: NDArray[np.uint8]) -> Any:
        """Run the backbone on a frame; returns the model's image inputs."""
        height, width = frame.shape[:2]
        message = f"{WHAT} {self.checkpoint!r}: a frame of {height}x{width} pixels is too narrow"
        try:
            # Name the order of the axes: it cannot be inferred from a frame that is three pixels high.
            inputs = self.processor.image_processor(frame, input_data_format="channels_last", return_tensors="pt").to(device())
        except ValueError as error:
            raise InputError(f"{message} to be resized ({error}); leave this video out") from error
        cells, queries = self.backbone.encode(inputs["pixel_values"], inputs["pixel_mask"]), self.model.config.num_queries
        if cells < queries:
            raise InputError(f"{message}: its feature maps have {cells} cells, the model needs {queries}; leave this video out")
        return inputs

    def _boxes(self, inputs: Any, caption: str, size: tuple[int, int]) -> Boxes:
        # One text at a time: padding changes the order of nearly equal proposals, so in a batch the boxes of a text would depend
        # on the others; and memory would grow with the number of expressions.
        tokens = self.tokenizer(caption, return_tensors="pt").to(device())
        outputs = self.model(**inputs, **tokens)
        result = self.processor.post_process_grounded_object_detection(
            outputs, tokens["input_ids"], self.box_threshold, self.text_threshold, target_sizes=[size]
        )[0]
        order = result["scores"].argsort(descending=True, stable=True)
        return result["boxes"][order].cpu().numpy(), result["scores"][order].cpu().numpy()

    def caption(self, text: str) -> str:
        """`text` as the model reads it, see `make_caption`."""
        return make_caption(text, self.tokenizer, self.max_length)


def load_tokenizer(checkpoint: str, what: str, setting: str = "checkpoint") -> Any:
    """The tokenizer of a GroundingDINO. what, setting: as in `load_frozen`.

    Raises InputError if it cannot be loaded, is of another model, or its delimiters of phrases are not GroundingDINO's.
    """
    check_model_type(checkpoint, MODEL_TYPE, what, setting)
    tokenizer = load_processor(AutoTokenizer, checkpoint, what, setting)
    # The model compares token ids; and transformers makes a tokenizer without words of a folder without a vocabulary.
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("[CLS]", "[SEP]", ".", "?")]
    if ids != SPECIAL_TOKENS:
        raise InputError(
            f"{what} {checkpoint!r}: [CLS] [SEP] . ? are {ids} in its tokenizer, GroundingDINO expects "
            f"{SPECIAL_TOKENS}; give a folder with tokenizer.json or vocab.txt of BERT uncased"
        )
    return tokenizer


def make_caption(text: str, tokenizer: Any, max_length: int) -> str:
    """`text` in lower case, ending in "."; one of more than `max_length` tokens is cut before the ".", with a warning, so that it
    remains one phrase."""
    body = text.strip().lower().removesuffix(".")
    spans = tokenizer(body, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    room = max_length - 3  # [CLS] and . [SEP]
    if len(spans) > room:
        warnings.warn(f"cut to {max_length} tokens: {text[:60]!r}...", stacklevel=4)
        body = body[: spans[room - 1][1]]
    return body + "."


class SharedBackbone(nn.Module):
    """GroundingDINO's image backbone and projections, run once for each frame and returned to each call of the model.

    It takes the place of `model.backbone` and returns projected maps of every level, so the model's own projections become
    identities.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone, self.projections = model.backbone, model.input_proj_vision
        model.backbone, model.input_proj_vision = self, nn.ModuleList(nn.Identity() for _ in self.projections)
        self.levels: list[tuple[Tensor, Tensor]] = []
        self.positions: list[Tensor] = []

    def encode(self, pixels: Tensor, pixel_mask: Tensor) -> int:
        """Encode frames (K, 3, h, w) with their masks (K, h, w) of real pixels; returns the number of cells of all levels."""
        maps, self.positions = self.backbone(pixels, pixel_mask)
        self.levels = [(project(source), mask) for project, (source, mask) in zip(self.projections, maps)]
        # The coarser levels: the first from the last map of the backbone, each other from the level before it.
        source = maps[-1][0]
        for project in self.projections[len(maps) :]:
            source = project(source)
            mask = nn.functional.interpolate(pixel_mask[None].float(), size=source.shape[-2:]).to(torch.bool)[0]
            self.positions.append(self.backbone.position_embedding(source, mask).to(source.dtype))
            self.levels.append((source, mask))
        return sum(mask[0].numel() for _, mask in self.levels)

    def restore(self, maps: Sequence[Tensor]) -> None:
        """Return `maps`, every level (K, d, h, w), to the next calls: of frames of the size and the padding encoded last."""
        self.levels = [(level, mask[:1].expand(len(level), -1, -1)) for level, (_, mask) in zip(maps, self.levels)]
        self.positions = [position[:1].expand(len(maps[0]), *position.shape[1:]) for position in self.positions]

    def forward(self, pixels: Tensor, pixel_mask: Tensor) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
        """Levels as (map (K, d, h, w), mask (K, h, w)) and their position embeddings, of the frames encoded last."""
        return self.levels, self.positions
