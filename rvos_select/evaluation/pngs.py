"""Folders of predicted mask PNGs."""

from __future__ import annotations

from pathlib import Path

from rvos_cache.errors import InputError


def prediction_bytes(path: Path, allow_missing: bool) -> bytes | None:
    """A prediction's file. Where it is missing None, or, without `allow_missing`, an InputError; one too if it is unreadable."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        if allow_missing:
            return None
        raise InputError(f"{path}: the prediction is missing; write it, or give --allow-missing to score it 0") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); write the prediction again") from error


def check_folder(predictions: Path) -> Path:
    """The folder of predictions. Raises InputError when it is not there."""
    if not predictions.is_dir():
        raise InputError(f"{predictions}: no such folder of predictions; run rvos-select merge first")
    return predictions
