"""Frozen checkpoints of transformers, by hub name or folder: loaded without running their code, and identified by a digest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.errors import InputError
from rvos_cache.system.device import device
from rvos_cache.system.text_files import read_text

HUB_TIMEOUT = 10.0
"""Seconds to wait for the first answer of the hub."""
LONGEST_REASON = 200
"""Characters of a library's message in an error."""
CHECKPOINT_FOLDERS = "RVOS_CHECKPOINTS"
"""Environment variable: folders, separated as in PATH, that contain checkpoints under the last part of their names."""


def resolve_checkpoint(checkpoint: str) -> str:
    """`checkpoint` if it is a folder, else the folder of its last name in `RVOS_CHECKPOINTS`, else `checkpoint`.

    So caches and runs whose cards name a checkpoint can move to a machine where it is in another folder, and a hub name can be
    loaded without a connection to the hub. The digest must still be the one of the card.
    """
    if Path(checkpoint).is_dir():
        return checkpoint
    folders = os.environ.get(CHECKPOINT_FOLDERS, "").split(os.pathsep)
    candidates = (Path(folder) / Path(checkpoint).name for folder in folders if folder)
    return next((str(folder) for folder in candidates if folder.is_dir()), checkpoint)


def load_frozen(
    kind: Any, checkpoint: str, what: str, unread: tuple[str, ...] = (), setting: str = "checkpoint", **options: Any
) -> Any:
    """The model `checkpoint` of the transformers class `kind` (or AutoModel), frozen, float32, in evaluation mode, on the GPU
    if there is one. Only safetensors are read.

    what: name of the checkpoint in errors ("text checkpoint"); unread: prefixes of weights that are not used, which the
    checkpoint may lack; setting: the setting that names it; options: more arguments of `from_pretrained`.
    Raises InputError if it cannot be loaded, lacks a weight of `kind`, or has one in another shape.
    """
    import torch

    options.update(use_safetensors=True, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True)
    with quiet():
        model, report = _from_pretrained(kind, checkpoint, what, setting, options)
    for name, shape, expected in sorted(report["mismatched_keys"]):
        raise InputError(
            f"{what} {checkpoint!r}: weight {name!r} has shape {tuple(shape)}, {kind.__name__} of its config.json expects "
            f"{tuple(expected)}; give a checkpoint whose two files belong together: --set {setting}=FOLDER"
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
    """The tokenizer or processor `kind` of `checkpoint`. what, setting, options: as in `load_frozen`. Raises InputError."""
    return _from_pretrained(kind, checkpoint, what, setting, options)


def check_model_type(checkpoint: str, model_type: str, what: str, setting: str = "checkpoint") -> None:
    """Raises InputError for a folder with the model of another kind, or with a run around the model. Hub names are not looked up.

    model_type: that of transformers' config.json, "grounding-dino"; what, setting: as in `load_frozen`.
    """
    folder = Path(resolve_checkpoint(checkpoint))
    if not folder.is_dir():
        return
    start, inner = f"{what} {checkpoint!r}", folder / "upstream"
    try:
        other = json.loads(read_text(folder / "config.json")).get("model_type")
    except FileNotFoundError:
        if (inner / "config.json").is_file():
            raise InputError(
                f"{start}: this folder is a run, and the model is in its folder {inner.name}; give "
                f"--set {setting}={checkpoint.rstrip('/')}/{inner.name}"
            ) from None
        return
    except (OSError, ValueError, AttributeError):
        # Its loader says what is wrong with the file.
        return
    if other != model_type:
        raise InputError(f"{start}: its config.json is of a model {other!r}, expected {model_type!r}; --set {setting}=FOLDER")


def checkpoint_source(checkpoint: str, what: str, how_to_fix: str) -> tuple[str, bool]:
    """The folder or hub name to load `checkpoint` from, and whether to read local files only (`local_files_only`).

    Local files only: it is a folder, or the hub cannot be reached. what, how_to_fix: for the message.
    Raises InputError for a path at which there is no folder.
    """
    source = resolve_checkpoint(checkpoint)
    is_folder = Path(source).is_dir()
    # A hub name is "name" or "owner/name"; the hub's message about a mistyped path would be about names.
    is_path = source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith("/")
    if is_path and not is_folder:
        raise InputError(f"{what} {checkpoint!r}: there is no such folder, nor one in {CHECKPOINT_FOLDERS}; {how_to_fix}")
    return source, is_folder or bool(_hub_fault())


def load_failure(error: Exception, source: str) -> str:
    """The error of loading `source` in one line, and why the hub cannot be reached if `source` is a hub name."""
    lines = [" ".join(line.split()) for line in str(error).strip().splitlines()] or [type(error).__name__]
    # A line that ends in a colon says nothing without the list below it.
    message = " ".join(lines)[:LONGEST_REASON] if lines[0].endswith(":") else lines[0]
    if Path(source).is_dir():
        return message
    hub_fault = _hub_fault()
    # First what a mistyped path needs; it may be meant as the name of a folder.
    return f"there is no folder of this name, and from the hub: {message}{f' [{hub_fault}]' if hub_fault else ''}"


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' warnings: for a wrong checkpoint it prints hundreds of lines, and our error is one line."""
    from transformers.utils import logging

    # Its progress bar would mix with ours.
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _from_pretrained(kind: Any, checkpoint: str, what: str, setting: str, options: dict[str, Any]) -> Any:
    source, local_only = checkpoint_source(checkpoint, what, f"--set {setting}=FOLDER")
    try:
        return kind.from_pretrained(source, local_files_only=local_only, **options)
    # The type of the error depends on the damage; safetensors has an error of its own.
    except Exception as error:
        raise InputError(
            f"{what} {checkpoint!r} cannot be loaded ({load_failure(error, source)}); give a hub name or a folder with "
            f"config.json, model.safetensors and what its tokenizer or processor needs: --set {setting}=FOLDER"
        ) from error


@lru_cache(maxsize=1)
def _hub_fault() -> str:
    """Why the hub cannot be reached, or "". Without this test a loader retries for a minute, five times for every file."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    # The type of the error depends on the HTTP library of huggingface_hub. `load_failure` reports it.
    except Exception as error:
        return f"{constants.ENDPOINT}: {type(error).__name__}: {error}"
    return ""


def weights_digest(model: Any, checkpoint: str) -> dict[str, str]:
    """Name of the checkpoint -> digest of its weights as loaded: the same for a hub name and a folder with the same weights."""
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
    return {Path(checkpoint).name: total.hexdigest()}
