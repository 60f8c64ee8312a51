"""Convert a released BEiT-3 checkpoint and its SentencePiece model to the folder that the encoder `beit3` and DeRVOS read.

Sizes are read from the tensors. Every tensor is used or listed; a missing or unknown tensor, or one of another shape, is an error.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from rvos_cache.errors import InputError
from rvos_cache.system.files import new_folder, write_json
from rvos_cache.tensors import read_tensors
from rvos_cache.text.beit3.checkpoint import CONFIG, TOKENIZER, WEIGHTS, check_tokenizer, encoder_config
from rvos_cache.text.beit3.names import PREFIX, UNREAD
from rvos_cache.text.beit3.network import GIVE, Beit3, Beit3Sizes
from rvos_cache.text.beit3.tokenizer import Beit3Tokenizer


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    sizes: of the encoder; tokens: number of ids of the tokenizer; tensors: number of converted tensors; unread: names of those that
    the encoder does not read, heads of its training, which were left out.
    """

    sizes: Beit3Sizes
    tokens: int
    tensors: int
    unread: tuple[str, ...]


def convert_beit3(checkpoint: Path, spm: Path, out: Path) -> Conversion:
    """Convert the files `checkpoint` and `spm` to the folder `out`; only tensors are read from the former, no code is run.

    Raises InputError if `out` exists, or if the files are not a complete encoder and its SentencePiece model.
    """
    from safetensors.torch import save_file

    if out.exists():
        raise InputError(f"{out}: already exists; choose another folder or remove it")
    tokenizer = Beit3Tokenizer.from_spm(spm)
    tensors = read_tensors(checkpoint, GIVE, nested="model")
    try:
        model = Beit3.from_official(tensors)
        check_tokenizer(tokenizer, model.sizes.vocabulary)
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from error
    # Copies: tensors of a checkpoint may share memory, which safetensors refuses.
    used = {name.removeprefix(PREFIX): tensor.contiguous().clone() for name, tensor in model.official().items()}
    unread = tuple(sorted(name for name in tensors if name.removeprefix(PREFIX) in UNREAD or not name.startswith(PREFIX)))
    record = {
        "source": checkpoint.name, "sha256": _sha256(checkpoint), "tokenizer": spm.name, "tokenizer_sha256": _sha256(spm),
        "tensors": len(used), "unread": unread,
    }  # fmt: skip
    with new_folder(out) as folder:
        save_file(used, folder / WEIGHTS, {"format": "pt"})
        write_json(folder / CONFIG, encoder_config(model.sizes))
        tokenizer.save(folder / TOKENIZER)
        write_json(folder / "conversion.json", record)
    return Conversion(model.sizes, len(tokenizer), len(used), unread)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
