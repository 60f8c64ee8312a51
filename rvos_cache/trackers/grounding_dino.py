"""GroundingDINO (Liu et al. 2024): the boxes that a text asks for in a frame. The image is read once for all texts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer, GroundingDinoForObjectDetection, GroundingDinoProcessor
from transformers.models.grounding_dino.modeling_grounding_dino import SPECIAL_TOKENS

from rvos_cache.errors import InputError
from rvos_cache.pretrained import device, load_frozen, load_processor, weights_digest

WHAT, SETTING = "grounding checkpoint", "grounding_checkpoint"
Boxes = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Boxes (K, 4), x0 y0 x1 y1 in pixels of the frame, and their scores (K,)."""


class BoxFinder:
    """A frozen GroundingDINO by hub name (`IDEA-Research/grounding-dino-tiny`, `-base`) or folder.

    box_threshold: a box is found when the largest probability of its tokens is above; text_threshold: the probability above
    which a token is in the phrase of a box: in the library, as in GroundingDINO's own code, it names boxes and drops none.
    Raises InputError when the checkpoint cannot be loaded, or its tokenizer is not GroundingDINO's.
    """

    def __init__(self, checkpoint: str, box_threshold: float, text_threshold: float) -> None:
        self.checkpoint, self.box_threshold, self.text_threshold = checkpoint, box_threshold, text_threshold
        # Where torchvision is installed it would resize in its own way: a cache must not depend on that.
        images = load_processor(AutoImageProcessor, checkpoint, WHAT, SETTING, backend="pil")
        self.tokenizer: Any = load_processor(AutoTokenizer, checkpoint, WHAT, SETTING)
        self._check_delimiters()
        self.processor: Any = GroundingDinoProcessor(images, self.tokenizer)
        self.model: Any = load_frozen(GroundingDinoForObjectDetection, checkpoint, WHAT, setting=SETTING)
        self.digest = weights_digest(self.model, checkpoint)
        self.longest = min(int(self.model.config.max_text_len), int(self.tokenizer.model_max_length))
        self.sight = _Sight(self.model.model)

    def _check_delimiters(self) -> None:
        # The model knows them by number; and a folder without a vocabulary gives a tokenizer that knows no word.
        found = [self.tokenizer.convert_tokens_to_ids(token) for token in ("[CLS]", "[SEP]", ".", "?")]
        if found != SPECIAL_TOKENS:
            raise InputError(
                f"{WHAT} {self.checkpoint!r}: [CLS] [SEP] . ? are {found} in its tokenizer where GroundingDINO wants "
                f"{SPECIAL_TOKENS}; give a folder with tokenizer.json or vocab.txt of BERT uncased"
            )

    def weight_hashes(self) -> dict[str, str]:
        """Digest of the weights as loaded, so that a name and a folder with the same weights agree."""
        return self.digest

    def find(self, frame: NDArray[np.uint8], texts: Sequence[str]) -> list[Boxes]:
        """The boxes of each text in `frame` (H, W, 3) uint8 RGB, best first; a text that finds nothing has K = 0.

        A text is lower-cased and ends in "." (SOLA's released code); one past the model's length is cut, with a warning. Boxes
        are as the model draws them and may reach past the frame. The answer to a text does not depend on the other texts.
        Raises InputError: the frame is too narrow for the model.
        """
        size = frame.shape[:2]
        asked = [self.as_asked(text) for text in texts]
        # Whatever precision the caller's own model runs in: what passes a threshold must not hang on it.
        with torch.inference_mode(), torch.autocast(device().type, enabled=False):
            given = self._look(frame) if asked else None
            found = {text: self._boxes(given, text, size) for text in dict.fromkeys(asked)}
        return [found[text] for text in asked]

    def _look(self, frame: NDArray[np.uint8]) -> Any:
        """Read a frame; returns what the model is given of it."""
        height, width = frame.shape[:2]
        refused = f"{WHAT} {self.checkpoint!r}: a frame of {height}x{width} pixels is too narrow"
        try:
            # The order of channels is given: it cannot be told from a frame that is three pixels high.
            given = self.processor.image_processor(frame, input_data_format="channels_last", return_tensors="pt").to(device())
        except ValueError as error:
            raise InputError(f"{refused} to be resized ({error}); leave this video out") from error
        places, wanted = self.sight.look(given["pixel_values"], given["pixel_mask"]), self.model.config.num_queries
        if places < wanted:
            raise InputError(f"{refused}, it has {places} places of the {wanted} that the model wants; leave this video out")
        return given

    def _boxes(self, given: Any, text: str, size: tuple[int, int]) -> Boxes:
        # One text at a time: among padded ones the order of nearly equal proposals, and with it the boxes, would hang on
        # which texts stand together; and memory would grow with the number of expressions.
        words = self.tokenizer(text, return_tensors="pt").to(device())
        answer = self.model(**given, **words)
        found = self.processor.post_process_grounded_object_detection(
            answer, words["input_ids"], self.box_threshold, self.text_threshold, target_sizes=[size]
        )[0]
        order = found["scores"].argsort(descending=True, stable=True)
        return found["boxes"][order].cpu().numpy(), found["scores"][order].cpu().numpy()

    def as_asked(self, text: str) -> str:
        """`text` in lower case, ending in "."; one that is too long ends earlier, in ".", so that it is still one phrase."""
        body = text.strip().lower().removesuffix(".")
        ends = self.tokenizer(body, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        room = self.longest - 3  # [CLS] and . [SEP]
        if len(ends) > room:
            warnings.warn(f"cut to {self.longest} tokens: {text[:60]!r}...", stacklevel=3)
            body = body[: ends[room - 1][1]]
        return body + "."


class _Sight(nn.Module):
    """All that GroundingDINO does to a frame before it reads a text, done once and handed out to each of its calls.

    It stands in `model` where the backbone stood and gives projected maps of every level, so that the model's own forward
    finds nothing left to project.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone, self.projections = model.backbone, model.input_proj_vision
        model.backbone, model.input_proj_vision = self, nn.ModuleList(nn.Identity() for _ in self.projections)
        self.levels: list[tuple[Tensor, Tensor]] = []
        self.positions: list[Tensor] = []

    def look(self, pixels: Tensor, pixel_mask: Tensor) -> int:
        """Read a frame (1, 3, h, w) with its mask (1, h, w) of real pixels; returns the number of places over all levels."""
        maps, self.positions = self.backbone(pixels, pixel_mask)
        self.levels = [(project(source), mask) for project, (source, mask) in zip(self.projections, maps)]
        # The coarser levels: the first from the last map as it is, each other from the level before it.
        source = maps[-1][0]
        for project in self.projections[len(maps) :]:
            source = project(source)
            mask = nn.functional.interpolate(pixel_mask[None].float(), size=source.shape[-2:]).to(torch.bool)[0]
            self.positions.append(self.backbone.position_embedding(source, mask).to(source.dtype))
            self.levels.append((source, mask))
        return sum(mask.numel() for _, mask in self.levels)

    def forward(self, pixels: Tensor, pixel_mask: Tensor) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
        """Levels as (map (1, d, h, w), mask (1, h, w)) and their position embeddings, of the frame looked at."""
        return self.levels, self.positions
