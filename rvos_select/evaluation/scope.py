"""How much of a split is scored, and how: what every protocol is asked alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Scope:
    """The videos to score and how holes are met. Every expression of them is needed.

    videos: only these; limit: only the first so many; allow_missing: an absent prediction scores 0 and is listed under
    "missing", else it is an InputError that names it; processes: over videos; texts: text caches, whose tags say the kind of
    expressions where the dataset does not.
    """

    videos: Sequence[str] = ()
    limit: int | None = None
    allow_missing: bool = False
    processes: int = 1
    texts: Sequence[Path] = ()


WHOLE = Scope()
"""The whole split without a hole, in this process."""
