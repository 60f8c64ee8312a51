"""The precision SAM 2 computes in: bfloat16 on a GPU, as its own scripts do, else float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def native_dtype(device: Any) -> Any:
    """bfloat16 or float32."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@contextmanager
def computing(device: Any, dtype: Any) -> Iterator[None]:
    """No gradients, autocast to `dtype`, and TF32 for what autocast leaves in float32 on a GPU."""
    before = torch.get_float32_matmul_precision()
    half = dtype != torch.float32
    try:
        torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
        with torch.inference_mode(), torch.autocast(device.type, dtype if half else None, enabled=half):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
