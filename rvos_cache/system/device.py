"""The device that models run on, decided in one place: the one that was chosen, else a GPU where there is one, else the CPU."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rvos_cache.errors import InputError

NAMES = "cpu, cuda or cuda:N"
_chosen: str | None = None
_share = 1.0


def check_name(name: str) -> str:
    """`name`, a device as `on_device` takes it. Raises InputError for any other text."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"device {name!r}: expected {NAMES}")
    return name


def device() -> Any:
    """The torch device that models run on."""
    import torch

    return torch.device(_chosen or ("cuda" if torch.cuda.is_available() else "cpu"))


@contextmanager
def on_device(name: str | None) -> Iterator[None]:
    """Run models on `name`, "cpu", "cuda" or "cuda:1"; None leaves it as it is. For the whole process, and those it forks.

    Raises InputError for a device that this machine does not have.
    """
    global _chosen
    before = _chosen
    if name is not None:
        choose_device(name)
    try:
        yield
    finally:
        _chosen = before


def choose_device(name: str) -> None:
    """As `on_device`, for the rest of the process."""
    global _chosen
    if check_name(name) != "cpu":
        _check_there(name)
    _chosen = name


def limit_memory(share: float) -> None:
    """This process may take `share` of the memory of its GPU, for the rest of its life; on a CPU this has no effect."""
    global _share
    import torch

    _share = share
    if share < 1 and device().type == "cuda":
        torch.cuda.set_per_process_memory_fraction(share, device())


def memory_share() -> float:
    """The share of the GPU's memory that is this process's."""
    return _share


def uses_gpu() -> bool:
    """Whether this process has a model on a GPU."""
    torch = sys.modules.get("torch")
    return torch is not None and device().type == "cuda" and torch.cuda.is_initialized()


def _check_there(name: str) -> None:
    import torch

    index, count = int(name.partition(":")[2] or 0), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise InputError(
            f"device {name}: PyTorch {torch.__version__} sees no GPU on this machine; give --device cpu, or leave it out"
        )
    if index >= count:
        there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise InputError(f"device {name}: PyTorch sees {count} GPU{'s' * (count > 1)} on this machine, {there}; give one of them")
    if ":" in name:
        # What asks for "cuda" alone, as a library does, gets this one.
        torch.cuda.set_device(index)
