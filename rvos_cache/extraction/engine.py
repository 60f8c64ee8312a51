"""The interface between a run and the processes or machines that process its videos."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from rvos_cache.errors import InputError
from rvos_cache.extraction.work import Work
from rvos_cache.plugins import describe_error
from rvos_cache.store import CacheWriter

FATAL = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EREMOTEIO}
"""Errors of the disk or object store that stop the run, instead of failing every video that is left."""


@dataclass(frozen=True)
class Outcome:
    """Result of one video: published with `frames` frames, or failed with `error`."""

    video_id: str
    frames: int
    error: str | None = None


class Engine(Protocol):
    """Processes the videos of a run."""

    def run(self, work: Work, writer: CacheWriter, videos: Sequence[str]) -> Iterator[Outcome]:
        """One outcome per video, in the order in which they finish.

        Raises OSError for an error of the disk (FATAL) and InputError for a problem that concerns all videos; an error of one
        video is its outcome.
        """


def failure_message(error: Exception) -> str:
    """The message that is recorded for a video that failed. Raises `error` again if it is an error of the disk (FATAL)."""
    if isinstance(error, OSError) and error.errno in FATAL:
        raise error
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    # A tracker may raise anything; one video must not stop a long run.
    return describe_error(error)
