"""The tracks that the mask of a selection is made of: the same in all frames, or in each frame those of its selected queries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.types import Selection

ByFrame = tuple[tuple[int, ...], ...]
"""For each of T frames the masks whose OR is the prediction, ascending, none twice. Equal predictions have equal ones."""


def by_frame(selected: NDArray[np.intp], parts: NDArray[np.int32] | None, frames: int) -> ByFrame:
    """The masks of the `selected` tracks or queries in each of T = `frames` frames.

    parts: as in `Selection`, of all queries; None: a track, or a query with a mask of its own, is one mask in all frames.
    """
    if parts is None:
        return (tuple(selected.tolist()),) * frames
    return tuple(tuple(sorted({k for k in column if k >= 0})) for column in parts[selected].T.tolist())


def check_track_count(selection: Selection, tracks: int) -> None:
    """Raises InputError unless the selection is of that many `tracks`. Masks of its own are of no track."""
    fix = "give the same --cache as for predict"
    if selection.masks is None and selection.parts is None and len(selection.scores) != tracks:
        raise InputError(
            f"the selection of expression {selection.expression_id} has {len(selection.scores)} scores, the caches have {tracks} "
            f"tracks; {fix}"
        )
    if selection.parts is not None and selection.parts.max(initial=-1) >= tracks:
        raise InputError(
            f"the selection of expression {selection.expression_id} has the mask of track {selection.parts.max()}, the caches have "
            f"{tracks} tracks; {fix}"
        )


def masks_of_scores(selection: Selection, masks: RleMasks) -> RleMasks:
    """The mask that each score of the selection is of, RleMasks (N, T) or (Q, T). masks: (N, T) of the tracks.

    Raises InputError when the selection is of another number of tracks.
    """
    check_track_count(selection, masks.shape[0])
    if selection.parts is not None:
        return masks.gather(selection.parts)
    return masks if selection.masks is None else selection.masks
