"""Bytes of arrays before they are computed."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from rvos_cache.types import FeatureSpec

MASK_BYTES = 104
"""Mean bytes of a track's mask in a frame, measured on the masks of tracks of real videos."""
OBJECTS = 4
"""Annotated objects of a video (MeViS) that the planned bytes of measurements assume; hidden splits have no measurements."""


def array_bytes(spec: FeatureSpec, letters: Mapping[str, int]) -> int:
    """Bytes of a declared array whose letters have the sizes `letters`."""
    return prod(letters[d] if isinstance(d, str) else d for d in spec.dims) * np.dtype(spec.dtype).itemsize
