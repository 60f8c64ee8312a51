"""Progress of a long run: a bar on a terminal, one line per minute elsewhere."""

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
        self.processed = self.frames = self.failed = 0
        self.start = self.last_line = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[status]}"),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task(self.title, total=self.total, completed=self.count, status="")
            self.bar.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif self.processed:
            self._print()

    def advance(self, frames: int, failed: bool) -> None:
        """Count one more video with `frames` frames."""
        self.count, self.processed = self.count + 1, self.processed + 1
        self.frames, self.failed = self.frames + frames, self.failed + failed
        if self.bar is not None:
            self.bar.update(self.task, completed=self.count, status=self.status())
        elif time.monotonic() - self.last_line >= MINUTE:
            self.last_line = time.monotonic()
            self._print()

    def status(self) -> str:
        """The status line. Videos that were in the cache before count as done, but not for the rate."""
        elapsed, left = time.monotonic() - self.start, self.total - self.count
        minutes, seconds = divmod(ceil(elapsed / max(self.processed, 1) * left), 60)
        hours, minutes = divmod(minutes, 60)
        return (
            f"{self.count - self.failed} done, {self.failed} failed, {left} left of {self.total} videos, "
            f"{self.frames / max(elapsed, 1e-9):.1f} {self.unit}/s, {hours}:{minutes:02d}:{seconds:02d} to go"
        )

    def _print(self) -> None:
        sys.stderr.write(f"{self.title}: {self.status()}\n")
