"""The precision of SAM 2's computations: bfloat16 on a GPU, as in its own scripts, else float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def native_dtype(device: Any) -> Any:
    """The dtype that SAM 2 tracks in on `device`: bfloat16 or float32."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@contextmanager
def inference_precision(device: Any, dtype: Any, autocast: bool = True) -> Iterator[None]:
    """Disable gradients and compute in `dtype`.

    With a dtype other than float32: autocast, unless the weights have that dtype already, and TF32 on a GPU for what is left in
    float32. With float32: no autocast and no TF32 matrix products.
    """
    previous = torch.get_float32_matmul_precision()
    half = dtype != torch.float32
    try:
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high" if half else "highest")
        with torch.inference_mode(), torch.autocast(device.type, dtype if half else None, enabled=half and autocast):
            yield
    finally:
        torch.set_float32_matmul_precision(previous)
