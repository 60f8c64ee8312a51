"""What of a computation on a GPU makes the host wait, counted where there is no GPU.

On a CPU tensor each of these is free; on a CUDA tensor it waits until the GPU has computed the value: `item`, `bool(tensor)` and
`tolist`; `nonzero`, `unique`, `masked_select` and an index of booleans, whose size depends on values; `cpu` and `numpy`, which copy to
pageable memory; and `torch.tensor` on a device, which copies from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

OPERATORS = (
    "aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::nonzero_numpy", "aten::argwhere",
    "aten::unique_dim", "aten::_unique2", "aten::unique_consecutive", "aten::unique_dim_consecutive", "aten::masked_select",
    "aten::equal", "aten::bincount", "aten::repeat_interleave",
)  # fmt: skip
"""Operators whose result, or its size, the host reads."""
METHODS = ("cpu", "numpy", "tolist", "__array__")
"""Methods of a tensor that copy it to the host."""
FACTORIES = ("tensor", "as_tensor", "from_numpy", "scalar_tensor")
"""Functions of torch that make a tensor of values of the host."""


class HostReads:
    """Counts them while it is entered: `counts`, name -> calls. Backward passes of CPU tensors are counted too."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._modes = (_Functions(self.counts), _Operators(self.counts))

    def __enter__(self) -> HostReads:
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)  # type: ignore[no-untyped-call]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.counts.values())


class _Operators(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name = func.name().partition(".")[0]
        if name in OPERATORS or (name in ("aten::index", "aten::index_put_", "aten::index_put") and _has_booleans(args[1])):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in METHODS or name in FACTORIES:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def _has_booleans(indices: Sequence[Any]) -> bool:
    return any(isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)
