"""The folder that `rvos-cache convert-beit3` writes: its encoder, its tokenizer, and the digest of its weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from rvos_cache.errors import InputError
from rvos_cache.pretrained import resolve_checkpoint, weights_digest
from rvos_cache.system.device import device
from rvos_cache.system.text_files import read_text
from rvos_cache.tensors import read_tensors
from rvos_cache.text.beit3.names import PREFIX
from rvos_cache.text.beit3.network import Beit3, Beit3Sizes
from rvos_cache.text.beit3.tokenizer import Beit3Tokenizer

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
MODEL_TYPE = "beit3"
SPARE_ROWS = 8
"""Word vectors of the released encoders that no token uses. Source: unilm, issue 1318."""
GIVE = "give the folder that rvos-cache convert-beit3 WEIGHTS.pth beit3.spm --out BEIT3 wrote"


def load(checkpoint: str, side: int | None = None) -> Beit3:
    """Return the encoder of a folder for frames of `side` pixels: frozen, float32, in evaluation mode, on `pretrained.device()`.

    checkpoint: the folder, also by its last name in RVOS_CHECKPOINTS; side: by default that of the checkpoint.
    Raises InputError if it cannot be loaded.
    """
    folder = checkpoint_folder(checkpoint)
    tensors = read_tensors(folder / WEIGHTS, GIVE)
    try:
        model = Beit3.from_official({PREFIX + name: tensor for name, tensor in tensors.items()}, side)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    try:
        config = json.loads(read_text(folder / CONFIG))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / CONFIG}: cannot be read as JSON ({type(error).__name__}); {GIVE}") from error
    if config != encoder_config(model.sizes):
        raise InputError(f"{folder}: {CONFIG} is not that of the weights beside it; {GIVE}")
    return model.to(device())


def load_tokenizer(checkpoint: str) -> Beit3Tokenizer:
    """Return the tokenizer of a folder. Raises InputError if it cannot be loaded."""
    return Beit3Tokenizer.load(checkpoint_folder(checkpoint) / TOKENIZER)


def digest(model: nn.Module) -> str:
    """Return the digest of an encoder's weights in float32, as the card of a text cache has it. It does not depend on the side."""
    (value,) = weights_digest(model, "").values()
    return value


def encoder_config(sizes: Beit3Sizes) -> dict[str, Any]:
    """Return what config.json holds."""
    return {"model_type": MODEL_TYPE, **asdict(sizes)}


def check_tokenizer(tokenizer: Beit3Tokenizer, vocabulary: int) -> None:
    """Raise InputError if the tokenizer is not of an encoder with `vocabulary` word vectors."""
    if not vocabulary - SPARE_ROWS <= len(tokenizer) <= vocabulary:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, the encoder {vocabulary} word vectors, of which at most {SPARE_ROWS} are "
            "spare; give the two files of one BEiT-3"
        )


def checkpoint_folder(checkpoint: str) -> Path:
    """Return the folder of `checkpoint`. Raises InputError if there is none."""
    folder = Path(resolve_checkpoint(checkpoint))
    if not folder.is_dir():
        raise InputError(f"BEiT-3 checkpoint {checkpoint!r}: there is no such folder, nor one in RVOS_CHECKPOINTS; {GIVE}")
    return folder
