"""A tiny stage 0 of DeRVOS: two images with five expressions, a tiny DVIS++ and BEiT-3, and a run of two steps, once for a process."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import tiny_dvis
from test_refcoco import write_refcoco
from tiny_beit3 import write_tiny_beit3

from rvos_cache.datasets import open_dataset
from rvos_cache.errors import InputError
from rvos_cache.settings import build
from rvos_cache.text.beit3.checkpoint import load_tokenizer
from rvos_select.tuning import tune_refiner
from rvos_select.tuning.refiner_images import ImageSource
from rvos_select.tuning.refiner_settings import RefinerSettings

TAIS = {"width": 16, "hidden": 16, "sem_layers": 1, "cfma_layers": 1, "mgis_layers": 1, "motion_queries": 3, "side": 64}
SMALL: dict[str, Any] = {"side": 64, "points": 200, "steps": 2, "batch_size": 2, "config": TAIS, "lr": 1e-3}
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


@lru_cache
def work() -> Path:
    """A folder with the images in data, the checkpoints DVIS and BEIT3, and the run of two steps in run. Do not change it."""
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix="tiny-refiner-"))
    folder = Path(_FOLDERS[-1].name)
    write_refcoco(folder / "data")
    tiny_dvis.write_checkpoint(folder / "DVIS")
    write_tiny_beit3(folder / "BEIT3")
    tune_refiner([open_dataset("refcoco", folder / "data", "train")], _settings(folder), folder / "run")
    return folder


@lru_cache
def data() -> Any:
    """The images."""
    return open_dataset("refcoco", work() / "data", "train")


def settings_of(**values: Any) -> RefinerSettings:
    """SMALL with other values."""
    return _settings(work(), **values)


def _settings(folder: Path, **values: Any) -> RefinerSettings:
    own = {"dvis": str(folder / "DVIS"), "beit3": {"checkpoint": str(folder / "BEIT3")}, **SMALL, **values}
    return build(RefinerSettings, own, "test")


def source_of(settings: RefinerSettings) -> ImageSource:
    """The images as training reads them."""
    return ImageSource([data()], settings, load_tokenizer(settings.beit3.checkpoint))


def refused(folder: Path, datasets: Sequence[Any] = (), **values: Any) -> str:
    """The message of the error that training raises."""
    with pytest.raises(InputError) as error:
        tune_refiner(datasets or [data()], settings_of(**values), folder)
    assert "\n" not in str(error.value)
    return str(error.value)
