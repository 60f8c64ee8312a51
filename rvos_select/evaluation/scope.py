"""Which part of a split is scored, and how missing predictions are treated: the same for every protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Scope:
    """The videos to score; every expression of them needs a prediction.

    videos: only these; limit: only the first so many; allow_missing: a missing prediction scores 0 and is listed under
    "missing", otherwise it is an InputError that names it; processes: over videos; texts: text caches, whose tags give the kind
    of expressions where the dataset does not.
    """

    videos: Sequence[str] = ()
    limit: int | None = None
    allow_missing: bool = False
    processes: int = 1
    texts: Sequence[Path] = ()


WHOLE = Scope()
"""The whole split, every prediction required, in this process."""
