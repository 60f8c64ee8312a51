"""Named axes: the dimensions of a declared array as letters and numbers.

Four letters have one meaning everywhere: N tracks, T frames, E expressions and A annotated objects of one video. Any other
letter belongs to the tracker that declares it; within one video it has one size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Dims = Sequence[str | int]
"""Dimensions of a declared array, for example ("N", "T", 256)."""

AXES = {"N": "tracks", "T": "frames", "E": "expressions", "A": "annotated objects"}
"""Letter -> what it counts."""


def axis_of(dims: Dims, letter: str) -> int | None:
    """Position of `letter` in `dims`, or None if `dims` does not have it."""
    return next((axis for axis, dim in enumerate(dims) if dim == letter), None)


def format_dims(dims: Dims) -> str:
    """`dims` as text: "(N, T, 256)"."""
    return f"({', '.join(map(str, dims))})"


def check_dims(dims: Dims) -> None:
    """Raises ValueError if `dims` is empty, has a dimension that is neither a name nor a size, or repeats a letter."""
    if isinstance(dims, str) or not isinstance(dims, Sequence) or not dims:
        raise ValueError(f'dims are {dims!r}, expected letters and numbers like ("N", "T", 256)')
    for dim in dims:
        is_name = isinstance(dim, str) and dim.isidentifier()
        is_size = isinstance(dim, int) and not isinstance(dim, bool) and dim >= 0
        if not is_name and not is_size:
            raise ValueError(f"dimension {dim!r} of dims {tuple(dims)} is neither a letter nor a size")
    letters = [dim for dim in dims if isinstance(dim, str)]
    repeated = [letter for letter in letters if letters.count(letter) > 1]
    if repeated:
        raise ValueError(f"dims {format_dims(dims)} have {repeated[0]!r} twice; each letter stands for one axis")


def bind(dims: Dims, shape: Sequence[int], sizes: Mapping[str, int]) -> dict[str, int]:
    """`sizes` (letter -> size) with the letters that `shape` adds.

    Raises ValueError if `shape` has another number of dimensions than `dims`, or another size than a number in `dims` or
    than the size that a letter already has.
    """
    if len(shape) != len(dims):
        raise ValueError(f"has shape {tuple(shape)}, declared {format_dims(dims)}")
    bound = dict(sizes)
    for dim, size in zip(dims, shape):
        expected = dim if isinstance(dim, int) else bound.setdefault(dim, size)
        if size != expected:
            letter = "" if isinstance(dim, int) else f", and {dim}{_meaning(dim)} is {expected} in this video"
            raise ValueError(f"has shape {tuple(shape)}, declared {format_dims(dims)}{letter}")
    return bound


def _meaning(letter: str) -> str:
    return f" ({AXES[letter]})" if letter in AXES else ""
