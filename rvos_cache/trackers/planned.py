"""The bytes of a cache, for trackers that know them before they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.filesize import decimal

from rvos_cache.errors import InputError

Size = tuple[tuple[int, int], int]
"""Size of a video: (H, W) pixels of its frames, and their number T."""


class VideoSize(tuple[tuple[int, int], int]):
    """A Size that also knows the sentences of its video, for trackers that read them. texts: one for each expression."""

    texts: Sequence[str]

    def __new__(cls, size: tuple[int, int], frames: int, texts: Sequence[str]) -> VideoSize:
        self = super().__new__(cls, (size, frames))  # type: ignore[type-var]
        self.texts = texts
        return self


@dataclass(frozen=True)
class PlannedBytes:
    """Bytes of a whole cache under each value of the setting that determines them.

    setting: its name, or "" if there are several, and each value is `name=value`; value: its value in this run; sizes: each possible
    value -> bytes; estimate: what `sizes` of this run rest on where they are no count of what is written ("104 bytes a mask").
    """

    setting: str
    value: str
    sizes: Mapping[str, int]
    estimate: str = ""

    @property
    def current(self) -> str:
        """`setting=value` of this run."""
        return self._assigned(self.value)

    def formatted(self) -> dict[str, str]:
        """`setting=value` -> its size as text, for tables and errors."""
        return {self._assigned(value): decimal(size, precision=2) for value, size in self.sizes.items()}

    @property
    def note(self) -> str:
        """What is said of an estimate; "" of a count."""
        return f"an estimate by {self.estimate}, which other frames may exceed" if self.estimate else ""

    def _assigned(self, value: str) -> str:
        return f"{self.setting}={value}" if self.setting else value

    def check(self, budget: int, used: int = 0) -> None:
        """Raises InputError, with the values that fit, if the value of this run needs more than `budget` bytes.

        used: bytes of the budget that other trackers of the same run need.
        """
        left = budget - used
        if self.sizes[self.value] > left:
            current, formatted = self.current, self.formatted()
            fit = [f"{name} ({formatted[name]})" for name, size in zip(formatted, self.sizes.values()) if size <= left]
            others = f", of which other trackers need {decimal(used, precision=2)}" if used else ""
            none_fits = (
                f"no {f'value of {self.setting}' if self.setting else 'size'} fits: extract fewer videos or give more room"
            )
            raise InputError(
                f"{current} needs {formatted[current]}, the budget is {decimal(budget, precision=2)}{others}; "
                + (f"these fit: {', '.join(fit)}" if fit else none_fits)
            )
