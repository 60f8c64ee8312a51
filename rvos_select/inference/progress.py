"""Progress of a step whose share that is done is known: a bar with the time left on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FIRST_LINE, EVERY = 10.0, 60.0
"""Seconds until the first line without a terminal, and between the next ones."""


@contextmanager
def step_progress(title: str) -> Iterator[Callable[[float], None]]:
    """Show a step on standard error while the block runs; yields the function that takes the share done, from 0 to 1."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console, start = Console(stderr=True), time.monotonic()
    next_line = start + FIRST_LINE
    columns = (TextColumn(f"{title} {{task.description}}"), BarColumn(bar_width=20), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        # Without a total the bar only shows that the step runs.
        task = bar.add_task("", total=None)

        def report(share: float) -> None:
            nonlocal next_line
            now = time.monotonic()
            status = format_status(share, now - start)
            if share > 0:
                bar.update(task, total=1.0, completed=share, description=status)
            if not console.is_terminal and now >= next_line:
                next_line = now + EVERY
                console.print(f"{title} {status}", highlight=False)

        yield report


def format_status(share: float, seconds: float) -> str:
    """The percent done and, as soon as they can be told, the minutes and seconds left. seconds: spent so far."""
    if share < 0.01:
        return f"{100 * share:.0f} %"
    minutes, rest = divmod(round(seconds / share * (1 - share)), 60)
    return f"{100 * share:.0f} %, {minutes}:{rest:02d} left"
