"""Numbers of things in messages, and of the steps of a training."""

from __future__ import annotations

import math


def counted(count: int, noun: str) -> str:
    """As in "1 video", "2 videos" and "1,200 videos"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def planned_steps(items: int, clips: int, steps: int, epochs: int) -> int:
    """Steps of a training of `clips` of the items in each: `steps`, or where that is 0 those of so many epochs."""
    return steps or epochs * math.ceil(items / clips)
