"""A tiny tuning of ReferDINO: a random GroundingDINO, moving shapes, and a run of two steps, once for the tests of a process."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tiny_grounding_dino import tiny_grounding_dino
from torch import Tensor

from rvos_cache.datasets import Dataset, open_dataset
from rvos_cache.shapes import write_shapes
from rvos_cache.trackers.referdino.start import Start
from rvos_cache.trackers.referdino.tune_settings import TuneSettings, tune_settings
from rvos_cache.tuning import tune
from rvos_cache.tuning.clips import ClipSource, LiveBatch, collate
from rvos_cache.tuning.run import all_losses

SMALL = {"frames": 3, "augment": "none", "short_side": 64, "anchor_every": 16, "steps": 2, "accumulate": 1, "keep_ratio": 0.4}
"""Settings for which a step takes a fraction of a second; the 20 queries become 8 and 4."""
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


@lru_cache
def work() -> Path:
    """A folder with the checkpoint and the data set."""
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix="tiny-tuning-"))
    folder = Path(_FOLDERS[-1].name)
    tiny_grounding_dino(folder / "gdino")
    write_shapes(folder / "shapes", 2, 0)
    return folder


@lru_cache
def shapes() -> Dataset:
    """The split of training."""
    return open_dataset("mevis", work() / "shapes", "train")


def make_settings(**values: Any) -> TuneSettings:
    """SMALL with other values."""
    return tune_settings({"checkpoint": str(work() / "gdino"), **SMALL, **values})


@lru_cache
def finished() -> Path:
    """The run of two steps. Do not change it."""
    tune(shapes(), make_settings(), work() / "run")
    return work() / "run"


def batch_of(start: Start, settings: TuneSettings, numbers: tuple[int, ...] = (0,)) -> LiveBatch:
    """Clips of these items of the split."""
    source = ClipSource(shapes(), settings)
    clips = [source.clip(n, torch.Generator().manual_seed(n)) for n in numbers]
    return collate(clips, start.tokenizer, start.max_length)


def loss_of(start: Start, batch: LiveBatch, settings: TuneSettings) -> Tensor:
    """The loss of a step of these clips."""
    output = start.live(batch.images, batch.real, batch.ids, batch.words)
    return all_losses(output, batch.truth, settings, float(batch.truth.valid.sum()))["loss"]


def gradients(start: Start) -> dict[str, Tensor]:
    """Name -> gradient, of the parameters that have one."""
    return {name: p.grad.clone() for name, p in start.trained.items() if p.grad is not None}
