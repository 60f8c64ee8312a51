"""What a cache will take on disk, where a tracker knows it before it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rich.filesize import decimal

from rvos_cache.errors import InputError

Size = tuple[tuple[int, int], int]
"""Of a video: its frames' (H, W) pixels and their number T."""


@dataclass(frozen=True)
class PlannedBytes:
    """Bytes of a whole cache under each value of the setting that decides them.

    setting: its name; chosen: its value in this run; sizes: value -> bytes.
    """

    setting: str
    chosen: str
    sizes: Mapping[str, int]

    def spoken(self) -> dict[str, str]:
        """`setting=value` -> its size in words, as tables and errors give it."""
        return {f"{self.setting}={value}": decimal(size, precision=2) for value, size in self.sizes.items()}

    def check(self, budget: int) -> None:
        """Raises InputError, naming the values that fit, when the chosen one needs more bytes than `budget`."""
        if self.sizes[self.chosen] > budget:
            mine, spoken = f"{self.setting}={self.chosen}", self.spoken()
            fit = [f"{name} ({spoken[name]})" for name, size in zip(spoken, self.sizes.values()) if size <= budget]
            raise InputError(
                f"{mine} needs {spoken[mine]}, the budget is {decimal(budget, precision=2)}; "
                + (f"these fit: {', '.join(fit)}" if fit else f"no {self.setting} fits: extract fewer videos or give more room")
            )


@runtime_checkable
class KnowsBytes(Protocol):
    """A tracker that has this method too, because what it keeps can fill a disk."""

    def planned_bytes(self, videos: Iterable[Size]) -> PlannedBytes:
        """Bytes of a cache of `videos`, without running any."""
