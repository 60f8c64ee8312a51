"""The smallest kernel, by which `has_triton` learns whether Triton compiles on this machine."""

# Triton compiles this function from its source: its arguments have no types of Python.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _write_one(out):
    tl.store(out, 1.0)


def run() -> None:
    """Compile the kernel and start it on the current GPU. Raises what Triton raises."""
    _write_one[(1,)](torch.zeros(1, device="cuda"))
