"""Processes that a step starts: they leave Ctrl-C to the process that started them, and none is lost; nor do they free its objects."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def starting_processes() -> Iterator[None]:
    """Processes that are started in this block never get Ctrl-C, from their first moment on; here it is raised after the block."""
    # The set of blocked signals is inherited by forks, and by the programs that they run.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def forking() -> Iterator[None]:
    """`starting_processes` for forks, which moreover never free what the parent has.

    A fork has no threads but its own: to free the decoder of a film there would wait for threads that do not exist.
    """
    gc.collect()
    gc.freeze()
    try:
        with starting_processes():
            yield
    finally:
        gc.unfreeze()


@contextmanager
def interrupt_between() -> Iterator[Callable[[], bool]]:
    """Ctrl-C does not stop what runs in this block: the function tells that it was pressed, so that a step can end before. A second
    one stops it at once."""
    pressed = False

    def handle(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():
        # Only the main thread gets signals.
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def repeat_lost_interrupts() -> None:
    """Raise KeyboardInterrupt again where Python drops it, in a destructor or a callback (imports have many), and print nothing."""
    others = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            main = threading.main_thread().ident
            threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
        else:
            others(unraisable)

    sys.unraisablehook = hook
