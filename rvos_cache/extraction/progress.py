"""How far a long run is: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from math import ceil
from typing import Any

MINUTE = 60.0


class Progress:
    """Videos done, failed and left, frames per second and time left. unit: what `advance` counts."""

    def __init__(self, title: str, total: int, skipped: int, unit: str = "frames") -> None:
        self.title, self.total, self.count, self.unit = title, total, skipped, unit
        self.fresh = self.frames = self.failed = 0
        self.start = self.spoken = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task(self.title, total=self.total, completed=self.count, note="")
            self.bar.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif self.fresh:
            self._say()

    def advance(self, frames: int, failed: bool) -> None:
        """One more video with so many frames."""
        self.count, self.fresh = self.count + 1, self.fresh + 1
        self.frames, self.failed = self.frames + frames, self.failed + failed
        if self.bar is not None:
            self.bar.update(self.task, completed=self.count, note=self.note())
        elif time.monotonic() - self.spoken >= MINUTE:
            self.spoken = time.monotonic()
            self._say()

    def note(self) -> str:
        """The line that says how far and how long. What was there before counts as done, and not for the rate."""
        spent, left = time.monotonic() - self.start, self.total - self.count
        minutes, seconds = divmod(ceil(spent / max(self.fresh, 1) * left), 60)
        hours, minutes = divmod(minutes, 60)
        return (
            f"{self.count - self.failed} done, {self.failed} failed, {left} left of {self.total} videos, "
            f"{self.frames / max(spent, 1e-9):.1f} {self.unit}/s, {hours}:{minutes:02d}:{seconds:02d} to go"
        )

    def _say(self) -> None:
        sys.stderr.write(f"{self.title}: {self.note()}\n")
