"""Folders of predicted mask PNGs."""

from __future__ import annotations

from pathlib import Path

from rvos_cache.errors import InputError


def prediction_bytes(path: Path, allow_missing: bool) -> bytes | None:
    """The bytes of a prediction's file; None where it is missing and `allow_missing`.

    Raises InputError when it is missing otherwise, or cannot be read.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        if allow_missing:
            return None
        raise InputError(f"{path}: the prediction is missing; write it, or give --allow-missing to score it 0") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); write the prediction again") from error


def check_folder(predictions: Path) -> Path:
    """`predictions`. Raises InputError when it is not a folder."""
    if not predictions.is_dir():
        raise InputError(f"{predictions}: no such folder of predictions; run rvos-select merge first")
    return predictions
