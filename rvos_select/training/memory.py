"""A step that needs more memory than there is: the settings that lower what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rvos_cache.errors import InputError
from rvos_cache.system.device import device
from rvos_select.training.settings import TrainSettings

REFUSALS = ("out of memory", "can't allocate memory", "not enough memory")
"""Parts of the text of a RuntimeError that says so: of CUDA libraries, and of PyTorch's allocator of a CPU."""


@contextmanager
def explain_out_of_memory(name: str, settings: TrainSettings, config: Any) -> Iterator[None]:
    """A training step. name: its video or first expression; config: the selector's settings.

    Raises InputError where the memory does not suffice: the step, the peak, and the settings that lower it.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(text in str(error) for text in REFUSALS):
            raise
        fixes = "; ".join(f"--set {each}" for each in _fixes(settings, config))
        raise InputError(f"{name}: out of memory in a training step of {_step_text(settings)}{_peak()}; {fixes}") from error


def _step_text(settings: TrainSettings) -> str:
    if settings.batch == "video":
        return "all expressions of a video (batch=video)"
    at_once = min(settings.micro_batch or settings.batch_size, settings.batch_size)
    clips = f" with clips of {settings.clip.frames} frames" if settings.batch == "clip" else ""
    return f"batch_size={settings.batch_size} expressions, {at_once} at once{clips}"


def _peak() -> str:
    """Where there is a GPU: the largest memory of this process so far, and that of the GPU."""
    if device().type != "cuda":
        return ""
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return f" (peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of {total / 2**30:.1f})"


def _fixes(settings: TrainSettings, config: Any) -> list[str]:
    """Settings with lower values, those that do not change the result first."""
    fixes = []
    at_once = min(settings.micro_batch or settings.batch_size, settings.batch_size)
    if settings.batch == "video":
        fixes.append("batch=single")
    elif at_once > 1:
        fixes.append(
            f"micro_batch={at_once // 2} (now {settings.micro_batch or f'0, which is batch_size={settings.batch_size}'})"
        )
    if getattr(config, "checkpointing", None) is False:
        fixes.append("config.checkpointing=true (now false)")
    if settings.batch == "clip" and settings.clip.frames > 1:
        fixes.append(f"clip.frames={max(1, settings.clip.frames // 2)} (now {settings.clip.frames})")
    if settings.resident != "false" and device().type == "cuda":
        fixes.append(f"resident=false (now {settings.resident})")
        if settings.cuda_graphs:
            fixes.append("cuda_graphs=false (now true)")
    return fixes or ["precision=bf16, or choose a smaller module with config.NAME=VALUE"]
