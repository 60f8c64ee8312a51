"""The bytes of a cache, for trackers that know them before they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.filesize import decimal

from rvos_cache.errors import InputError

Size = tuple[tuple[int, int], int]
"""Size of a video: (H, W) pixels of its frames, and their number T."""


@dataclass(frozen=True)
class PlannedBytes:
    """Bytes of a whole cache under each value of the setting that determines them.

    setting: its name; value: its value in this run; sizes: each possible value -> bytes.
    """

    setting: str
    value: str
    sizes: Mapping[str, int]

    def formatted(self) -> dict[str, str]:
        """`setting=value` -> its size as text, for tables and errors."""
        return {f"{self.setting}={value}": decimal(size, precision=2) for value, size in self.sizes.items()}

    def check(self, budget: int) -> None:
        """Raises InputError, with the values that fit, if the value of this run needs more than `budget` bytes."""
        if self.sizes[self.value] > budget:
            current, formatted = f"{self.setting}={self.value}", self.formatted()
            fit = [f"{name} ({formatted[name]})" for name, size in zip(formatted, self.sizes.values()) if size <= budget]
            raise InputError(
                f"{current} needs {formatted[current]}, the budget is {decimal(budget, precision=2)}; "
                + (f"these fit: {', '.join(fit)}" if fit else f"no {self.setting} fits: extract fewer videos or give more room")
            )
