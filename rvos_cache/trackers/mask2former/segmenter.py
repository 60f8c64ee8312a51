"""Frozen Mask2Former of transformers, and the file with a head's tensors that lies beside it in a checkpoint folder.

Letters: T frames, Nf frame queries, C channels, Cm of the mask features, K classes, h w cells of the stride-4 map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.pretrained import CHECKPOINT_FOLDERS, checkpoint_source, load_failure, load_frozen, weights_digest
from rvos_cache.system.device import device
from rvos_cache.tensors import read_tensors


@dataclass(frozen=True)
class SegmentedFrames:
    """The output of Mask2Former for T frames.

    q: (T, Nf, C), of the decoder's last layer, before the last LayerNorm; maps: (T, C, h, w), of the pixel decoder, before the mask
    projection; mask_features: (T, Cm, h, w), after it.
    """

    q: Tensor
    maps: Tensor
    mask_features: Tensor


class Segmenter:
    """Frozen Mask2Former; frames are processed independently.

    kind: what the checkpoint is called in errors. Raises InputError if `checkpoint` cannot be loaded.
    """

    def __init__(self, checkpoint: str, kind: str) -> None:
        from transformers import Mask2FormerForUniversalSegmentation

        self.checkpoint = checkpoint
        self.model: Any = load_frozen(Mask2FormerForUniversalSegmentation, checkpoint, kind)
        self.device = device()
        self._map: Tensor | None = None
        # VITA's projection has the same input as Mask2Former's, which the model does not return.
        self.model.model.pixel_level_module.decoder.mask_projection.register_forward_pre_hook(self._keep)

    def _keep(self, module: Any, inputs: tuple[Tensor, ...]) -> None:
        self._map = inputs[0]

    @torch.inference_mode()
    def segment(self, images: Tensor) -> SegmentedFrames:
        """What the model makes of images (T, 3, padded height, padded width), on the device of the model."""
        output = self.model.model(images.to(self.device))
        assert self._map is not None
        maps, self._map = self._map, None
        return SegmentedFrames(output.transformer_decoder_last_hidden_state, maps, output.pixel_decoder_last_hidden_state)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Frame queries (T, Nf, C) after the decoder's last LayerNorm, and maps (T, C, h, w) before the mask projection, of
        images (T, 3, padded height, padded width)."""
        frames = self.segment(images)
        return self.norm(frames.q), frames.maps

    @torch.inference_mode()
    def norm(self, q: Tensor) -> Tensor:
        """The decoder's last LayerNorm of `SegmentedFrames.q`, which the class and mask heads both apply."""
        normed: Tensor = self.model.model.transformer_module.decoder.layernorm(q)
        return normed

    @torch.inference_mode()
    def class_logits(self, queries: Tensor) -> Tensor:
        """Class logits (..., K + 1) of normed queries (..., C), the void class last."""
        logits: Tensor = self.model.class_predictor(queries)
        return logits

    @torch.inference_mode()
    def mask_embed(self, queries: Tensor) -> Tensor:
        """Mask embeddings (..., Cm) of normed queries (..., C), whose product with a cell's mask features is its mask logit."""
        embed: Tensor = self.model.model.transformer_module.decoder.mask_predictor.mask_embedder(queries)
        return embed

    def weight_hashes(self) -> dict[str, str]:
        """Name of the checkpoint -> digest of Mask2Former's weights."""
        return weights_digest(self.model, self.checkpoint)


def read_head(checkpoint: str, file: str, kind: str, command: str) -> dict[str, Tensor]:
    """Name -> tensor of the `file` of a converted checkpoint, by folder or hub name.

    kind: what the checkpoint is called in errors; command: of rvos-cache that writes it. Raises InputError if the file does not
    exist or cannot be read.
    """
    from transformers.utils import cached_file

    how_to_fix = f"make the folder with rvos-cache {command}, or name the one that holds it in {CHECKPOINT_FOLDERS}"
    source, local = checkpoint_source(
        checkpoint, kind, f"make it with rvos-cache {command}, or name the folder that holds it there"
    )
    try:
        path = cached_file(source, file, local_files_only=local)
    # The error depends on what is missing and on the HTTP library of huggingface_hub.
    except Exception as error:
        raise InputError(f"{kind} {checkpoint!r}: {file} cannot be read ({load_failure(error, source)}); {how_to_fix}") from error
    return read_tensors(path, how_to_fix)
