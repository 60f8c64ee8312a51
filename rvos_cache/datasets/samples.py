"""The frames that an image-level benchmark scores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One scored frame of one expression. t: index of the frame in its video; image_id: its name in the benchmark, unique in
    the split."""

    video_id: str
    expression_id: str
    t: int
    image_id: str
