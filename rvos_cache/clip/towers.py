"""The two towers of a frozen CLIP: loading, and the vectors of sentences.

A CLIP folder is what `rvos-cache convert-clip` writes: `image/`, `text/` and `head.safetensors`. The text tower is also loaded from
a hub name or folder of transformers' CLIPModel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.clip.cleaning import clean_text
from rvos_cache.errors import InputError
from rvos_cache.pretrained import load_frozen, load_processor, resolve_checkpoint, weights_digest
from rvos_cache.tensors import read_tensors

if TYPE_CHECKING:
    from torch import Tensor

MEAN = (122.7709383, 116.7460125, 104.09373615)
"""Mean of the colours R, G, B (0-255) that are subtracted from a frame. Source: SSA's `ssa_clip_bs8.yaml`, OpenAI's CLIP."""
DEVIATION = (68.5005327, 66.6321579, 70.32316305)
"""Deviation of the colours R, G, B (0-255) that a frame is divided by. Source: as MEAN."""
IMAGE, TEXT, HEAD_FILE = "image", "text", "head.safetensors"
"""Names inside a CLIP folder: the folders of the two towers, and the file of the image head."""
WHAT = "CLIP checkpoint"
CLIP_TYPES = ("clip", "clip_text_model")
"""Model types of transformers whose text tower is CLIP's."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of B sentences, at most `limit` of each.

    ids: int64 (B, limit), padded with 0; lengths: int64 (B,), number of tokens, SOT and EOT included; spans: B arrays int32
    (length, 2), the characters [start, end) of each token in the cleaned sentence, (0, 0) for SOT and EOT; cut: bool (B,),
    whether tokens were dropped.
    """

    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    spans: tuple[NDArray[np.int32], ...]
    cut: NDArray[np.bool_]


def load_image_tower(checkpoint: str) -> Any:
    """Return the ConvNextModel of a CLIP folder: frozen, float32, in evaluation mode, on `pretrained.device()`.

    Its maps are those of `embeddings` and `encoder.stages[i]`; its last `layernorm` is no part of CLIP. Raises InputError if the
    folder has no image tower or it cannot be loaded.
    """
    from transformers import ConvNextModel

    return load_frozen(ConvNextModel, str(_tower_folder(checkpoint, IMAGE)), WHAT)


def load_text_tower(checkpoint: str) -> Any:
    """Return the CLIPTextModelWithProjection of a CLIP folder, or of a hub name or folder of a CLIPModel, as `load_image_tower`.

    Raises InputError if it cannot be loaded, or is no CLIP.
    """
    from transformers import AutoConfig, CLIPTextModelWithProjection

    source = _text_source(checkpoint)
    config = load_processor(AutoConfig, source, WHAT)
    if config.model_type not in CLIP_TYPES:
        raise InputError(
            f"{WHAT} {checkpoint!r}: its model is {config.model_type!r}, expected CLIP; give a folder that rvos-cache convert-clip "
            "wrote, or a CLIPModel: --set checkpoint=FOLDER"
        )
    if config.model_type == "clip":
        # The tower's own config may have another value, which CLIPModel does not read.
        config.text_config.projection_dim = config.projection_dim
        config = config.text_config
    return load_frozen(CLIPTextModelWithProjection, source, WHAT, config=config)


def load_tokenizer(checkpoint: str) -> Any:
    """Return the CLIPTokenizer of a CLIP folder, or of a hub name or folder of a CLIPModel. Raises InputError."""
    from transformers import CLIPTokenizer

    tokenizer = load_processor(CLIPTokenizer, _text_source(checkpoint), WHAT)
    if len(tokenizer) < 4:
        raise InputError(
            f"{WHAT} {checkpoint!r}: it has no vocabulary; give a folder with tokenizer.json, or vocab.json and merges.txt: "
            "--set checkpoint=FOLDER"
        )
    return tokenizer


def load_image_head(checkpoint: str) -> dict[str, Tensor]:
    """Return the image head of a CLIP folder, float32 on the CPU: `norm.weight`, `norm.bias` (C), `fc1.weight` (2P, C),
    `fc1.bias` (2P), `fc2.weight` (P, 2P) and `logit_scale` (), the logarithm.

    Raises InputError if the folder has none: the CLIP inside a checkpoint of SSA lacks it.
    """
    path = Path(resolve_checkpoint(checkpoint)) / HEAD_FILE
    return read_tensors(path, "convert open_clip's own checkpoint: rvos-cache convert-clip CHECKPOINT --out CLIP")


def tokenize(tokenizer: Any, texts: Sequence[str], limit: int = 77) -> Tokens:
    """Return the tokens of sentences as open_clip makes them: cleaned, SOT first, EOT last; of a sentence with more than `limit`
    the last one kept becomes EOT.

    What looks like a special token in a sentence is text.
    """
    ids = np.zeros((len(texts), limit), np.int64)
    lengths, cut = np.zeros(len(texts), np.int64), np.zeros(len(texts), bool)
    all_spans = []
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    for i, text in enumerate(texts):
        # verbose: without the warning of a long sentence, which is cut here.
        encoded = tokenizer(
            clean_text(text), add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        tokens = [start, *encoded["input_ids"], end][:limit]
        tokens[-1] = end
        ids[i, : len(tokens)], lengths[i] = tokens, len(tokens)
        cut[i] = len(encoded["input_ids"]) + 2 > limit
        spans = np.zeros((len(tokens), 2), np.int32)
        spans[1:-1] = np.array(encoded["offset_mapping"], np.int32).reshape(-1, 2)[: len(tokens) - 2]
        all_spans.append(spans)
    return Tokens(ids, lengths, tuple(all_spans), cut)


def encode_texts(model: Any, tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the words of B sentences, float32 (B, limit, P), and their lengths, int64 (B,), on the device of `model`.

    model, tokenizer: from `load_text_tower` and `load_tokenizer`; limit: the model's number of positions, 77. words =
    ln_final(all tokens) · text_projection, not normalised; behind a sentence's length they belong to padding. The sentence vector
    is words[b, lengths[b] - 1], that of EOT.
    """
    return encode_tokens(model, tokenize(tokenizer, texts, model.config.max_position_embeddings))


def encode_tokens(model: Any, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Return `encode_texts` of tokens. Raises InputError if a token is beyond the model's vocabulary."""
    import torch

    size = model.config.vocab_size
    if tokens.ids.max(initial=0) >= size:
        raise InputError(
            f"the tokenizer has a token {tokens.ids.max()}, the text tower has {size}; give a checkpoint whose parts belong together"
        )
    device = model.text_projection.weight.device
    ids = torch.from_numpy(tokens.ids).to(device)
    with torch.no_grad():
        # Attention is causal, so that padding changes no word before it.
        words = model.text_projection(model.text_model(input_ids=ids).last_hidden_state)
    return words, torch.from_numpy(tokens.lengths).to(device)


def tower_digest(model: Any, checkpoint: str) -> dict[str, str]:
    """Return {"<name of the checkpoint>/image" or "/text": digest of the weights as loaded}. See `pretrained.weights_digest`."""
    tower = TEXT if hasattr(model, "text_projection") else IMAGE
    (digest,) = weights_digest(model, checkpoint).values()
    return {f"{Path(checkpoint).name}/{tower}": digest}


def _text_source(checkpoint: str) -> str:
    """The folder or hub name to load the text tower and the tokenizer from."""
    folder = Path(resolve_checkpoint(checkpoint))
    if not folder.is_dir():
        return checkpoint
    return str(folder / TEXT) if (folder / TEXT).is_dir() else str(folder)


def _tower_folder(checkpoint: str, tower: str) -> Path:
    """The folder of a tower in a CLIP folder. Raises InputError."""
    folder = Path(resolve_checkpoint(checkpoint)) / tower
    if not folder.parent.is_dir():
        raise InputError(f"{WHAT} {checkpoint!r}: there is no such folder; give one that rvos-cache convert-clip wrote")
    if not folder.is_dir():
        raise InputError(
            f"{WHAT} {checkpoint!r}: it has no folder {tower!r}; give the folder that rvos-cache convert-clip CHECKPOINT --out CLIP "
            "wrote: --set checkpoint=CLIP"
        )
    return folder
