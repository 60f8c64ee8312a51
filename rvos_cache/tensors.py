"""Reading files of named tensors: safetensors, and what torch.save wrote. No code in a file is ever run."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvos_cache.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS = ".safetensors"
ZIP = b"PK\x03\x04"
"""First bytes of an archive of torch.save."""
LONGEST = 140
"""Characters of a library's message in an error."""


def read_tensors(
    path: Path | str,
    how_to_fix: str,
    device: str = "cpu",
    nested: str | Sequence[str] = (),
    numpy_scalars: bool = False,
) -> dict[str, Tensor]:
    """Name -> tensor of a file, on `device`: a `.safetensors` file, or else one that torch.save wrote.

    how_to_fix: the end of the messages; nested: keys under the first of which a file of torch.save may hold the tensors;
    numpy_scalars: a file of torch.save may hold float64 numbers of NumPy beside them, such as a best score.
    Raises InputError: there is no such file, or it is damaged or holds anything but named tensors.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a file; {how_to_fix}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; {how_to_fix}")
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path, how_to_fix, device)
    return _read_saved(path, how_to_fix, device, (nested,) if isinstance(nested, str) else nested, numpy_scalars)


def _read_safetensors(path: Path, how_to_fix: str, device: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path, device=device))
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({_one_line(error)}); {how_to_fix}") from error


def _read_saved(path: Path, how_to_fix: str, device: str, nested: Sequence[str], numpy_scalars: bool) -> dict[str, Tensor]:
    import torch

    if _is_cut_short(path):
        raise InputError(
            f"{path}: cannot be read as tensors alone: it is not whole ({path.stat().st_size} bytes), as a download that broke off "
            f"leaves it; download it again; {how_to_fix}"
        )
    try:
        with torch.serialization.safe_globals(_numpy_scalar() if numpy_scalars else []):
            content = torch.load(path, map_location=device, weights_only=True)
    # torch raises a different error for each kind of damage; for a file with code it is an error of pickle.
    except Exception as error:
        raise InputError(
            f"{path}: cannot be read as tensors alone ({_one_line(error)}), and code in it is never run; {how_to_fix}"
        ) from error
    key = next((key for key in nested if isinstance(content, Mapping) and key in content), None)
    content = content if key is None else content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        under = f", at the top or under {' or '.join(map(repr, nested))}" if nested else ""
        raise InputError(f"{path}: expected named tensors{under}, found {_describe(content)}; {how_to_fix}")
    return dict(content)


def _is_cut_short(path: Path) -> bool:
    """Whether a file begins as torch.save's archives do and lacks their end."""
    try:
        with open(path, "rb") as file:
            begin = file.read(len(ZIP))
    except OSError:
        # torch names the reason.
        return False
    return begin == ZIP and not zipfile.is_zipfile(path)


def _numpy_scalar() -> list[Any]:
    """What a pickled float64 number of NumPy is built from: the function, under its names in NumPy 1 and 2, and its dtype."""
    import numpy as np
    from numpy._core.multiarray import scalar

    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, type(np.dtype(np.float64))]


def _one_line(error: Exception) -> str:
    """The type and the message of an error of a library, in one line of at most LONGEST characters, cut behind a sentence or a word."""
    if isinstance(error, KeyError | IndexError | EOFError):
        # Of a pickle that is none; its message is a byte.
        return f"{type(error).__name__}, not written by torch.save"
    line = " ".join(f"{type(error).__name__}: {error}".split())
    if len(line) <= LONGEST:
        return line
    sentence = line[:LONGEST].rpartition(". ")[0]
    return sentence or f"{line[:LONGEST].rpartition(' ')[0]} …"


def _describe(content: object) -> str:
    """The type of `content`, or of a dictionary the names and types of its first entries."""
    if not isinstance(content, Mapping):
        return type(content).__name__
    return ", ".join(f"{name!s:.40}: {type(value).__name__}" for name, value in list(content.items())[:3]) or "none"
