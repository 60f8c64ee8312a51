"""Progress of a training: loss and time left."""

from __future__ import annotations

import time


class TrainingProgress:
    """Loss and time left; a line a minute when not on a terminal."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.count, self.new_steps = total, done, 0
        self.start = self.printed = time.monotonic()

    def __enter__(self) -> TrainingProgress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("train", total=self.total, completed=self.count)
        self.bar.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self.bar.stop()

    def advance(self, note: str) -> None:
        """One step done."""
        self.count, self.new_steps = self.count + 1, self.new_steps + 1
        self.bar.update(self.task, completed=self.count, description=note)
        if not self.console.is_terminal and time.monotonic() - self.printed > 60:
            self.printed = time.monotonic()
            left = (self.printed - self.start) / self.new_steps * (self.total - self.count)
            self.console.print(f"{note}, {left / 60:.1f} minutes left", highlight=False)
