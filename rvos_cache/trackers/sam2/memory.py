"""Which earlier frames SAM 2 attends to in a frame, and which it can forget.

Ravi et al. 2024, section 4: the prompt frame, the maps of the nearest frames and the object pointers of the nearest frames. Going
backward it also attends to the frames behind the prompt frame, which were tracked forward: both directions share one memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from rvos_cache.trackers.sam2.attention import KeyValues
from rvos_cache.trackers.sam2.network import Memories

Entry = TypeVar("Entry")


@dataclass
class MemoryBank:
    """The memories of the objects prompted in frame `prompt` that a later frame will attend to.

    num_maps: frames whose maps are attended to, the prompt frame included; num_pointers: the same of pointers, at most T.
    """

    prompt: int
    num_maps: int
    num_pointers: int
    maps: dict[int, KeyValues] = field(default_factory=dict)
    pointers: dict[int, Tensor] = field(default_factory=dict)

    def add(self, t: int, memory: KeyValues, pointers: Tensor, backward: bool) -> None:
        """Add the memory of frame t, and drop the memories that no later frame attends to."""
        self.maps[t], self.pointers[t] = memory, pointers
        self.maps = self._needed(self.maps, t, self.num_maps - 1, backward)
        self.pointers = self._needed(self.pointers, t, self.num_pointers - 1, backward)

    def _needed(self, entries: dict[int, Entry], t: int, reach: int, backward: bool) -> dict[int, Entry]:
        # On the way forward, the frames before the prompt frame are still to come: they attend to frames up to `reach` behind it.
        needed = range(t, t + reach) if backward else range(self.prompt, self.prompt + reach)
        return {s: m for s, m in entries.items() if s == self.prompt or s in needed or (not backward and s > t - reach)}

    def before(self, t: int, backward: bool) -> Memories:
        """What frame t attends to: maps from far to near, pointers from near to far, the prompt frame first."""
        step = -1 if backward else 1
        maps = [(0, self.maps[self.prompt])]
        for distance in range(self.num_maps - 1, 0, -1):
            s = t - step * distance
            if s in self.maps and s != self.prompt:
                maps.append((distance, self.maps[s]))
        pointers = [(abs(t - self.prompt), self.pointers[self.prompt])]
        for distance in range(1, self.num_pointers):
            s = t - step * distance
            if s in self.pointers and s != self.prompt:
                pointers.append((distance, self.pointers[s]))
        return Memories(maps, pointers)
