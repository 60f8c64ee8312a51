"""Who works on the videos: the seam between a run and the processes or machines that it uses."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from rvos_cache.errors import InputError
from rvos_cache.extraction.work import Work
from rvos_cache.store import CacheWriter

FATAL = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EREMOTEIO}
"""Faults of the disk or object store, not of a video: the run stops instead of failing every video that is left."""


@dataclass(frozen=True)
class Outcome:
    """What became of a video: published with so many frames, or failed with an error."""

    video_id: str
    frames: int
    error: str | None = None


class Engine(Protocol):
    """Hands videos out and gives back what became of each."""

    def run(self, work: Work, writer: CacheWriter, videos: Sequence[str]) -> Iterator[Outcome]:
        """One outcome per video, as they come. A video's fault is an outcome; a fault of the disk is raised (OSError), and so
        is what keeps all videos from being done (InputError)."""


def fault(error: Exception) -> str:
    """What is recorded of a video that failed. Raises the error again when it is not the video's."""
    if isinstance(error, OSError) and error.errno in FATAL:
        raise error
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    # A tracker is somebody's model: whatever it raises on one video must not stop a night's run.
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({at.filename}:{at.lineno})"
