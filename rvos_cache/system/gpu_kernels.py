"""Whether kernels written in Triton can be used; both stages have some, and plain operators of PyTorch for each."""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache

import torch


@cache
def has_triton() -> bool:
    """Whether Triton is installed, as with every PyTorch for CUDA on Linux, and compiles a kernel for the current GPU, for which it
    needs a C compiler; where it does not, a warning says why. To be called where there is a GPU.

    Raises torch.OutOfMemoryError where the GPU has no memory left.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        from rvos_cache.system import triton_probe

        triton_probe.run()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of Triton and of the compiler that it calls, in classes of many kinds
        line = " ".join(str(error).split())
        warnings.warn(
            f"Triton cannot compile for this GPU ({line:.200}), so slower operators of PyTorch compute; it needs a C compiler (gcc)",
            stacklevel=2,
        )
        return False
    return True
