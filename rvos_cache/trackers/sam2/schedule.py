"""Which earlier frames SAM 2 attends to in each frame of a video, and in which slot each of their maps is.

Ravi et al. 2024, section 4: the prompt frame, the maps of the nearest frames and the object pointers of the nearest frames. Going
backward it also attends to the frames behind the prompt frame, which were tracked forward: both directions share one memory.
All of this follows from the prompt frame and the length of the video, so it is known before the first frame is tracked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """What one frame attends to, and where its own map goes.

    frame: t; distances: of each occupied slot, from the first, how many frames away its map is; 0 is the prompt frame's, in slot 0;
    pointers: frames whose pointers are attended to, the prompt frame first, each with its distance; slot: where the map of this
    frame is written.
    """

    frame: int
    distances: tuple[int, ...]
    pointers: tuple[tuple[int, int], ...]
    slot: int


@dataclass(frozen=True)
class Schedule:
    """The frames after a prompt frame, in order, and then those before it.

    slots: `slots_of` its maps; behind: frames whose maps are in slots 1, 2, … when the backward direction starts.
    """

    slots: int
    forward: tuple[Step, ...]
    behind: tuple[int, ...]
    backward: tuple[Step, ...]


def slots_of(num_maps: int) -> int:
    """Slots for the maps of `num_maps` frames: at least one besides that of the prompt frame, for a map that nothing reads."""
    return max(2, num_maps)


def schedule(prompt: int, frames: int, num_maps: int, num_pointers: int) -> Schedule:
    """The schedule of a video of `frames` frames.

    num_maps: frames whose maps are attended to, the prompt frame included; num_pointers: the same of pointers.
    """
    behind = tuple(range(prompt + 1, min(prompt + num_maps - 1, frames)))
    shared = (prompt, frames, num_maps, num_pointers)
    forward = _steps(range(prompt + 1, frames), (), *shared, backward=False)
    backward = _steps(range(prompt - 1, -1, -1), behind, *shared, backward=True)
    return Schedule(slots_of(num_maps), forward, behind, backward)


def _steps(
    order: Iterable[int], behind: tuple[int, ...], prompt: int, frames: int, num_maps: int, num_pointers: int, backward: bool
) -> tuple[Step, ...]:
    sign = -1 if backward else 1
    slot_of = {t: i + 1 for i, t in enumerate(behind)}
    steps = []
    for t in order:
        # Frames on the way are at a positive distance; those behind the prompt frame are on the same side of a frame before it.
        slot_of = {s: slot for s, slot in slot_of.items() if sign * (t - s) < num_maps}
        distances = {slot: sign * (t - s) for s, slot in slot_of.items()}
        occupied = (0, *(distances[slot] for slot in sorted(distances)))
        if sorted(distances) != list(range(1, len(occupied))):
            raise AssertionError(f"slots {sorted(distances)} have a hole")
        near = ((t - sign * k, k) for k in range(1, num_pointers))
        last = frames if backward else t
        pointers = tuple((s, k) for s, k in near if min(prompt, t) < s < max(prompt, last) and s != prompt)
        # A map that the next frame does not attend to gives its slot away.
        kept = {slot for s, slot in slot_of.items() if sign * (t + sign - s) < num_maps}
        slot = min(set(range(1, len(kept) + 2)) - kept)
        slot_of = {s: other for s, other in slot_of.items() if other in kept} | {t: slot}
        steps.append(Step(t, occupied, ((prompt, abs(t - prompt)), *pointers), slot))
    return tuple(steps)
