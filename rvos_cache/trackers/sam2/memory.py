"""Which earlier frames SAM 2 reads when it looks for its objects in a frame, and which it will not read again.

Ravi et al. 2024, section 4: the prompted frame, the last frames' maps and the last frames' object pointers. Going backward it
also reads what going forward has found just behind the prompted frame: both directions share one memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from rvos_cache.trackers.sam2.attention import Read
from rvos_cache.trackers.sam2.network import Remembered

Held = TypeVar("Held")


@dataclass
class MemoryBank:
    """What is still to be read of the objects prompted in frame `prompt`.

    maps_read: frames of which maps are read, the prompted one included; pointers_read: the same of pointers, at most T.
    """

    prompt: int
    maps_read: int
    pointers_read: int
    maps: dict[int, Read] = field(default_factory=dict)
    pointers: dict[int, Tensor] = field(default_factory=dict)

    def add(self, t: int, memory: Read, pointers: Tensor, backward: bool) -> None:
        """What was found in frame t; what no later frame reads is dropped."""
        self.maps[t], self.pointers[t] = memory, pointers
        self.maps = self._read_again(self.maps, t, self.maps_read - 1, backward)
        self.pointers = self._read_again(self.pointers, t, self.pointers_read - 1, backward)

    def _read_again(self, held: dict[int, Held], t: int, reach: int, backward: bool) -> dict[int, Held]:
        # Frames before the prompted one, which are still to come, read those up to `reach` behind themselves.
        kept = range(t, t + reach) if backward else range(self.prompt, self.prompt + reach)
        return {s: m for s, m in held.items() if s == self.prompt or s in kept or (not backward and s > t - reach)}

    def before(self, t: int, backward: bool) -> Remembered:
        """What frame t reads: maps from far to near, pointers from near to far, the prompted frame first."""
        step = -1 if backward else 1
        maps = [(0, self.maps[self.prompt])]
        for away in range(self.maps_read - 1, 0, -1):
            s = t - step * away
            if s in self.maps and s != self.prompt:
                maps.append((away, self.maps[s]))
        pointers = [(abs(t - self.prompt), self.pointers[self.prompt])]
        for away in range(1, self.pointers_read):
            s = t - step * away
            if s in self.pointers and s != self.prompt:
                pointers.append((away, self.pointers[s]))
        return Remembered(maps, pointers)
