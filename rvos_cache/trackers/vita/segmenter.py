"""Load the two parts of a VITA checkpoint folder: Mask2Former of transformers, and the head.

Letters: T frames, Nf frame queries, C channels, h w cells of the stride-4 map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.pretrained import CHECKPOINT_FOLDERS, checkpoint_source, device, load_failure, load_frozen, weights_digest
from rvos_cache.tensors import read_tensors
from rvos_cache.trackers.vita.head import VitaHead

HEAD_FILE = "vita_head.safetensors"
"""File in the checkpoint folder with the head's tensors under their released names."""
KIND = "VITA checkpoint"


class Segmenter:
    """Frozen Mask2Former; frames are processed independently. Raises InputError if `checkpoint` cannot be loaded."""

    def __init__(self, checkpoint: str) -> None:
        from transformers import Mask2FormerForUniversalSegmentation

        self.checkpoint = checkpoint
        self.model: Any = load_frozen(Mask2FormerForUniversalSegmentation, checkpoint, KIND)
        self.device = device()
        self._map: Tensor | None = None
        # VITA's projection has the same input as Mask2Former's, which the model does not return.
        self.model.model.pixel_level_module.decoder.mask_projection.register_forward_pre_hook(self._keep)

    def _keep(self, module: Any, inputs: tuple[Tensor, ...]) -> None:
        self._map = inputs[0]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Frame queries (T, Nf, C) after the decoder's last LayerNorm, and maps (T, C, h, w) before the mask projection, of
        images (T, 3, padded height, padded width)."""
        output = self.model.model(images.to(self.device))
        assert self._map is not None
        maps, self._map = self._map, None
        decoder = self.model.model.transformer_module.decoder
        # transformers returns the output of the last layer before its LayerNorm, which VITA's class and mask heads both apply.
        queries = decoder.layernorm(output.transformer_decoder_last_hidden_state)
        return queries, maps

    def weight_hashes(self) -> dict[str, str]:
        """Name of the checkpoint -> digest of Mask2Former's weights."""
        return weights_digest(self.model, self.checkpoint)


def load_head(checkpoint: str) -> VitaHead:
    """The frozen head of a converted checkpoint, by folder or hub name, on the GPU where there is one.

    Raises InputError if it does not exist or cannot be read.
    """
    from transformers.utils import cached_file

    how_to_fix = f"make the folder with rvos-cache convert-vita, or name the one that holds it in {CHECKPOINT_FOLDERS}"
    source, local = checkpoint_source(
        checkpoint, KIND, "make it with rvos-cache convert-vita, or name the folder that holds it there"
    )
    try:
        path = cached_file(source, HEAD_FILE, local_files_only=local)
    # The error depends on what is missing and on the HTTP library of huggingface_hub.
    except Exception as error:
        raise InputError(
            f"{KIND} {checkpoint!r}: {HEAD_FILE} cannot be read ({load_failure(error, source)}); {how_to_fix}"
        ) from error
    return VitaHead.from_official(read_tensors(path, how_to_fix)).to(device())


def load_vita(checkpoint: str) -> tuple[Segmenter, VitaHead]:
    """Both parts of a converted checkpoint.

    Raises InputError if one cannot be loaded, or if they are not of the same checkpoint.
    """
    segmenter, head = Segmenter(checkpoint), load_head(checkpoint)
    config, sizes = segmenter.model.config, head.sizes
    parts = {
        "frame queries": (config.num_queries, sizes.frame_queries),
        "channels of a query": (config.hidden_dim, sizes.channels),
        "channels of the map": (config.feature_size, sizes.map_channels),
    }
    for name, (in_model, in_head) in parts.items():
        if in_model != in_head:
            raise InputError(
                f"{KIND} {checkpoint!r}: Mask2Former has {in_model} {name}, {HEAD_FILE} {in_head}; convert one checkpoint"
            )
    return segmenter, head


def head_hash(head: VitaHead) -> dict[str, str]:
    """`HEAD_FILE` -> digest of the head's weights, by which a selector checks that it loads the head of a cache."""
    return weights_digest(head, HEAD_FILE)
