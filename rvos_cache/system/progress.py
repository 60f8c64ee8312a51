"""Progress of a long step on stderr: one line that fits the terminal; elsewhere a line within seconds, then one per minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from math import ceil
from typing import Any, TypeVar

T = TypeVar("T")
FIRST, MINUTE = 2.0, 60.0
"""Seconds to the first line and between the others, where stderr is not a terminal."""
BAR = 20
"""Columns of the bar and the blanks around it; a terminal of fewer than 80 has no bar."""


class Progress:
    """Items done and left, their rate and the time left.

    title: of the step; total: items; done: of these before the step began, which do not count for the rate; unit: what the
    items are; parts: what `advance` counts in each item, for the rate; announce: print the count before the first item too,
    where stderr is not a terminal: for items of minutes.
    """

    def __init__(
        self, title: str, total: int, done: int = 0, unit: str = "videos", parts: str = "", announce: bool = False
    ) -> None:
        self.title, self.total, self.count, self.unit, self.parts, self.announce = title, total, done, unit, parts, announce
        self.new_items = self.new_parts = self.failed = 0
        self.start, self.next_line = time.monotonic(), time.monotonic() + FIRST
        self.was_printed, self.printed = False, -1
        self.bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._start_bar()
        elif self.announce and self.count < self.total:
            self._print()
        return self

    def __exit__(self, *unused: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif self.new_items and (self.announce or self.was_printed) and self.count != self.printed:
            self._print()

    def advance(self, parts: int = 0, failed: bool = False, title: str | None = None) -> None:
        """One more item, with so many `parts`. title: a new title of the step."""
        self.count, self.new_items = self.count + 1, self.new_items + 1
        self.new_parts, self.failed = self.new_parts + parts, self.failed + failed
        self.title = title or self.title
        if self.bar is not None:
            self.bar.update(self.task, completed=self.count)
        elif time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + MINUTE
            self._print()

    def print(self, line: str) -> None:
        """Print a line that stays, above the bar."""
        if self.bar is not None:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print_line(line)

    def line(self, width: int | None = None) -> str:
        """The state in at most `width` columns: without the rate, then with a shorter title, where it does not fit."""
        elapsed, left = time.monotonic() - self.start, self.total - self.count
        head = f"{self.count} of {self.total} {self.unit}"
        failed = [f"{self.failed} failed"] if self.failed else []
        rate = [f"{self.new_parts / max(elapsed, 1e-9):.1f} {self.parts}/s"] if self.parts and self.new_items else []
        time_left = f"{_clock(elapsed / self.new_items * left) if self.new_items else '-:--:--'} to go"
        line = ", ".join([f"{self.title}: {head}", *failed, *rate, time_left])
        if width is None or len(line) <= width:
            return line
        rest = ", ".join([head, *failed, time_left])
        room = width - len(rest) - 2
        title = self.title if len(self.title) <= room else f"{self.title[: room - 1]}…"
        return f"{title}: {rest}" if room > 1 else rest[:width]

    def _print(self) -> None:
        self.was_printed, self.printed = True, self.count
        sys.stderr.write(f"{self.line()}\n")

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, ProgressColumn, Task
        from rich.progress import Progress as Bar
        from rich.text import Text

        console, state = Console(stderr=True), self

        class Line(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(state.line(console.width - BAR if wide else console.width - 1), no_wrap=True)

        wide = console.width >= 80
        columns = (Line(), BarColumn(bar_width=BAR - 2)) if wide else (Line(),)
        # What is printed meanwhile goes above the bar, unless stdout is a file.
        self.bar = Bar(*columns, console=console, transient=not self.announce, redirect_stdout=sys.stdout.isatty())
        self.task = self.bar.add_task("", total=self.total, completed=self.count)
        self.bar.start()


def tracked(items: Iterable[T], title: str, total: int | None = None, unit: str = "videos") -> Iterator[T]:
    """The items, with the progress of the loop over them. total: their number, of an iterable without a length."""
    count = total if total is not None else len(items) if isinstance(items, Sized) else 0
    with Progress(title, count, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance()


def print_line(line: str) -> None:
    """Print a line that stays, where no bar is shown."""
    sys.stderr.write(f"{line}\n")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
