"""Too little GPU memory: the same work in smaller parts, and where that does not help, one line that says what to lower."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ByteSize

from rvos_cache.errors import InputError
from rvos_cache.system.device import uses_gpu

T = TypeVar("T")


class Parts:
    """Runs a computation on all of its items together or, once they do not fit, on parts. items: what they are, for the warning;
    at_once: items of a part, half of those that did not fit, for the rest of its life."""

    def __init__(self, items: str) -> None:
        self.items, self.at_once = items, sys.maxsize

    def __call__(self, run: Callable[[Any], T], items: Any) -> Iterator[T]:
        """The result of `run` for each part of the sliceable `items`. Raises torch.OutOfMemoryError if a single one does not fit."""
        start = 0
        while start < len(items):
            part = items[start : start + self.at_once]
            result = self._try(run, part)
            if result is None:
                self.at_once = max(1, len(part) // 2)
                warnings.warn(
                    f"{len(part)} {self.items} at once do not fit into GPU memory; {self.at_once} from here on", stacklevel=3
                )
                continue
            yield result
            start += len(part)

    def _try(self, run: Callable[[Any], T], part: Any) -> T | None:
        import torch

        try:
            return run(part)
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
        # Outside of the handler: the error's frames keep the tensors of the part.
        torch.cuda.empty_cache()
        return None


@contextmanager
def explaining_memory(title: str, settings: BaseModel | None = None) -> Iterator[None]:
    """Raises InputError, in one line, where this block has too little GPU memory. settings: those that do not change the result are
    named with half their values."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fixes = [] if settings is None else _fixes(settings)
        message = f"{title}: out of GPU memory{_peak()}; {'; '.join([*fixes, '--device cpu, or a GPU with more memory'])}"
    else:
        return
    # Outside of the handler: as the cause, the error's frames would keep its tensors.
    raise InputError(message)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is PyTorch's for too little GPU memory."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _peak() -> str:
    import torch

    if not uses_gpu():
        return ""
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return f" (peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of {total / 2**30:.1f})"


def _fixes(settings: BaseModel) -> list[str]:
    fixes = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if field.exclude and isinstance(value, int) and value > 1 and name != "host_memory":
            half = ByteSize(value // 2).human_readable(separator="") if isinstance(value, ByteSize) else value // 2
            now = value.human_readable(separator="") if isinstance(value, ByteSize) else value
            fixes.append(f"--set {name}={half} (now {now})")
    return fixes
