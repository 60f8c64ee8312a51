"""Arrays that a tracker declares, its features and measurements, checked against their declarations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.axes import bind
from rvos_cache.errors import InputError

Spec = Mapping[str, Any]
"""A FeatureSpec as the card stores it."""


class DeclaredArrays:
    """Checks the declared arrays of one video: their names, dtypes and shapes.

    producer: the tracker, as errors name it; sizes: letter -> size of the axes that the video fixes (N, T, E, and A where
    there is ground truth). Letters of the tracker's own get their sizes from the arrays, in the order in which they are checked.
    """

    def __init__(self, producer: str, sizes: Mapping[str, int]) -> None:
        self.producer, self.sizes = producer, dict(sizes)

    def check(self, kind: str, specs: Sequence[Spec], arrays: Mapping[str, Any]) -> dict[str, Any]:
        """`arrays`, ready for `CacheWriter.publish`: those stored by frame as (array, True) or as an iterator that checks.

        kind: "feature" or "measurement", as errors name them. Raises InputError if the names are not those of `specs`, or an
        array has another dtype or shape than declared; for an iterator the error is raised while it is read.
        """
        declared = {spec["name"]: spec for spec in specs}
        for name in sorted(declared.keys() - arrays.keys()):
            raise self._error(kind, name, "is declared, but the tracker does not return it")
        for name in sorted(arrays.keys() - declared.keys()):
            names = ", ".join(sorted(declared)) or "none"
            raise self._error(kind, name, f"is returned, but not declared; declared {kind}s: {names}")
        # Whole arrays first, so that every letter that they bind is known before the first frame of an iterator is computed.
        whole = {name: value for name, value in arrays.items() if isinstance(value, np.ndarray)}
        for name, array in whole.items():
            self._check_array(kind, declared[name], array.dtype, array.shape)
        checked: dict[str, Any] = {}
        for name, value in arrays.items():
            spec = declared[name]
            if name in whole:
                checked[name] = (value, True) if spec.get("by_frame") else value
            elif not spec.get("by_frame"):
                problem = f"is a {type(value).__name__}, expected a NumPy array"
                raise self._error(kind, name, f"{problem}; only one declared by_frame may be an iterator")
            elif not isinstance(value, Iterable):
                raise self._error(kind, name, f"is a {type(value).__name__}, expected a NumPy array or an iterator of frames")
            else:
                checked[name] = self._frames(kind, spec, value)
        return checked

    def _frames(self, kind: str, spec: Spec, frames: Iterable[Any]) -> Iterator[NDArray[Any]]:
        """The frames of an array that is stored by frame, each checked before it is written, and their number at the end."""
        shape: tuple[int, ...] | None = None
        for index, frame in enumerate(map(np.asarray, frames)):
            shape = (index + 1, *frame.shape)
            self._check_dtype(kind, spec, frame.dtype, f", frame {index},")
            # The first dimension is known only after the last frame.
            self._bind(kind, {**spec, "dims": spec["dims"][1:]}, frame.shape, f", frame {index},")
            yield frame
        if shape is None:
            raise self._error(kind, spec["name"], "is an iterator without a frame")
        self._bind(kind, spec, shape)

    def _check_array(self, kind: str, spec: Spec, dtype: np.dtype[Any], shape: Sequence[int]) -> None:
        self._check_dtype(kind, spec, dtype)
        self._bind(kind, spec, shape)

    def _check_dtype(self, kind: str, spec: Spec, dtype: np.dtype[Any], frame: str = "") -> None:
        if dtype != np.dtype(spec.get("dtype", "float16")):
            raise self._error(kind, spec["name"], f"is {dtype}, declared {spec.get('dtype', 'float16')}", frame)

    def _bind(self, kind: str, spec: Spec, shape: Sequence[int], frame: str = "") -> None:
        try:
            self.sizes = bind(spec["dims"], shape, self.sizes)
        except ValueError as error:
            raise self._error(kind, spec["name"], str(error), frame) from error

    def _error(self, kind: str, name: str, problem: str, frame: str = "") -> InputError:
        return InputError(f"tracker {self.producer}: {kind} {name!r}{frame} {problem}")
