"""Frozen checkpoints of transformers, by hub name or folder: loaded without running their code, and known by a digest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.errors import InputError

ANSWER_SECONDS = 10.0
"""How long the hub may take to say that it is there."""
FOLDERS = "RVOS_CHECKPOINTS"
"""Environment variable: folders, joined as in PATH, that hold checkpoints under the last part of their names."""


def located(checkpoint: str) -> str:
    """`checkpoint`, or where there is no such folder the one of its last name in `RVOS_CHECKPOINTS`.

    So caches and runs whose cards name a checkpoint can move to a machine where it lies elsewhere, and hub names can be read
    where there is no hub. Its digest still has to be the card's.
    """
    if Path(checkpoint).is_dir():
        return checkpoint
    folders = (Path(folder) / Path(checkpoint).name for folder in os.environ.get(FOLDERS, "").split(os.pathsep) if folder)
    return next((str(folder) for folder in folders if folder.is_dir()), checkpoint)


def load_frozen(
    kind: Any, checkpoint: str, what: str, unread: tuple[str, ...] = (), setting: str = "checkpoint", **options: Any
) -> Any:
    """The model `checkpoint` of the transformers class `kind` (or AutoModel), frozen, float32, in evaluation mode, on the GPU
    where there is one.

    what: how an error names it ("text checkpoint"); unread: beginnings of the names of weights that nobody reads, which a
    checkpoint may lack; setting: where a person names it; options: more for `from_pretrained`. Only safetensors are read.
    Raises InputError when it cannot be loaded, or lacks a weight that `kind` has, or has it in another shape.
    """
    import torch

    options.update(use_safetensors=True, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True)
    with _quiet():
        model, report = _asked(kind, checkpoint, what, setting, options)
    for name, held, wanted in sorted(report["mismatched_keys"]):
        raise InputError(
            f"{what} {checkpoint!r}: weight {name!r} has shape {tuple(held)}, {kind.__name__} of its config.json wants "
            f"{tuple(wanted)}; give a checkpoint whose two files belong together: --set {setting}=FOLDER"
        )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(unread))
    if missing:
        raise InputError(
            f"{what} {checkpoint!r}: it has no weight {missing[0]!r} ({len(missing)} are missing), so they would be random; "
            f"give a checkpoint of {kind.__name__}: --set {setting}=FOLDER"
        )
    for name, tensor in model.state_dict().items():
        if name in report["missing_keys"]:
            # Random values would give the same checkpoint another digest every time.
            tensor.zero_()
    return model.eval().requires_grad_(False).to(device())


def load_processor(kind: Any, checkpoint: str, what: str, setting: str = "checkpoint", **options: Any) -> Any:
    """The tokenizer or processor `kind` of `checkpoint`; what, setting, options: as in `load_frozen`. Raises InputError."""
    return _asked(kind, checkpoint, what, setting, options)


def source_of(checkpoint: str, what: str, remedy: str) -> tuple[str, bool]:
    """What a loader is given for `checkpoint`, a folder or a hub name, and whether it is to read this machine alone.

    It is where the folder is here, or the hub does not answer. Raises InputError for a path where there is no folder.
    """
    source = located(checkpoint)
    here = Path(source).is_dir()
    # A hub name is "name" or "owner/name": what the hub says of a mistyped path speaks of names alone.
    if source.startswith((".", "/", "~")) and not here:
        raise InputError(f"{what} {checkpoint!r}: there is no such folder, nor one in {FOLDERS}; {remedy}")
    return source, here or bool(_hub_fault())


def reason(error: Exception, source: str) -> str:
    """What a loader said of `source` in one line, and what keeps the hub away where it was wanted."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    away = "" if Path(source).is_dir() else _hub_fault()
    return f"{said} [{away}]" if away else said


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warnings of a load: a wrong checkpoint is hundreds of lines there, and one line here."""
    from transformers.utils import logging

    # Its bar of loaded weights stands among the lines of our own progress.
    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _asked(kind: Any, checkpoint: str, what: str, setting: str, options: dict[str, Any]) -> Any:
    source, local = source_of(checkpoint, what, f"--set {setting}=FOLDER")
    try:
        return kind.from_pretrained(source, local_files_only=local, **options)
    # What a damaged or foreign folder raises differs with its damage; safetensors has an error of its own.
    except Exception as error:
        raise InputError(
            f"{what} {checkpoint!r} cannot be loaded ({reason(error, source)}); give a hub name or a folder with config.json, "
            f"model.safetensors and what its tokenizer or processor needs: --set {setting}=FOLDER"
        ) from error


@lru_cache(maxsize=1)
def _hub_fault() -> str:
    """Why the hub cannot be reached, "" where it can. Without it a loader tries again for a minute, five times for every file."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
    # Which error it is depends on the HTTP library that huggingface_hub has. It is told where a checkpoint is not here either.
    except Exception as error:
        return f"{constants.ENDPOINT}: {type(error).__name__}: {error}"
    return ""


def device() -> Any:
    """The torch device that frozen models run on."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def weights_digest(model: Any, checkpoint: str) -> dict[str, str]:
    """Name of the checkpoint -> digest of its weights as loaded, so that a hub name and a folder of the same weights agree."""
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
    return {Path(checkpoint).name: total.hexdigest()}
