"""Progress of a training: loss and time left."""

from __future__ import annotations

import time
from collections.abc import Mapping


class TrainingProgress:
    """Loss and time left, and a line with the scores of each epoch; without a terminal also a line per minute."""

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

    def finish_epoch(self, row: Mapping[str, float], epochs: int) -> None:
        """One of the `epochs` done; its scores are printed. row: of metrics.jsonl."""
        scores = [f"loss {row['train/loss']:.4f}"]
        if "valid/jf" in row:
            scores.append(f"J&F {100 * row['valid/jf']:.1f} in validation")
        self.console.print(f"epoch {row['epoch']}/{epochs}: {', '.join(scores)}, {row['seconds']:.1f} s", highlight=False)

    def advance(self, note: str) -> None:
        """One step done."""
        self.count, self.new_steps = self.count + 1, self.new_steps + 1
        self.bar.update(self.task, completed=self.count, description=note)
        if not self.console.is_terminal and time.monotonic() - self.printed > 60:
            self.printed = time.monotonic()
            left = (self.printed - self.start) / self.new_steps * (self.total - self.count)
            self.console.print(f"{note}, {left / 60:.1f} minutes left", highlight=False)
