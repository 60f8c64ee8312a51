"""Reading files of named tensors: safetensors, and what torch.save wrote. No code in a file is ever run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rvos_cache.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS = ".safetensors"


def read_tensors(path: Path | str, how_to_fix: str, device: str = "cpu", nested: str | Sequence[str] = ()) -> dict[str, Tensor]:
    """Name -> tensor of a file, on `device`: a `.safetensors` file, or else one that torch.save wrote.

    how_to_fix: the end of the messages; nested: keys under the first of which a file of torch.save may hold the tensors.
    Raises InputError: there is no such file, or it is damaged or holds anything but named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; {how_to_fix}")
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path, how_to_fix, device)
    return _read_saved(path, how_to_fix, device, (nested,) if isinstance(nested, str) else nested)


def _read_safetensors(path: Path, how_to_fix: str, device: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path, device=device))
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({_one_line(error)}); {how_to_fix}") from error


def _read_saved(path: Path, how_to_fix: str, device: str, nested: Sequence[str]) -> dict[str, Tensor]:
    import torch

    try:
        content = torch.load(path, map_location=device, weights_only=True)
    # torch raises a different error for each kind of damage; for a file with code it is an error of pickle.
    except Exception as error:
        raise InputError(
            f"{path}: cannot be read as tensors alone ({_one_line(error)}), and code in it is never run; {how_to_fix}"
        ) from error
    key = next((key for key in nested if isinstance(content, Mapping) and key in content), None)
    content = content if key is None else content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise InputError(f"{path}: expected named tensors, found {_describe(content)}; {how_to_fix}")
    return dict(content)


def _one_line(error: Exception) -> str:
    """The type and the message of an error of a library, in one line of at most 140 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:140]


def _describe(content: object) -> str:
    """The type of `content`, or of a dictionary the names and types of its first entries."""
    if not isinstance(content, Mapping):
        return type(content).__name__
    return ", ".join(f"{name!s:.40}: {type(value).__name__}" for name, value in list(content.items())[:3]) or "none"
