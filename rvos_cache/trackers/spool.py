"""Arrays of one video that may not fit in memory: the most recently used in memory, the others in a temporary file."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import naming

ENTRY_BYTES = 300
"""Memory that an array takes besides its data: its object, its key, its entry here."""


class ArraySpool:
    """A mapping from keys to arrays with at most about `in_memory` bytes of arrays in memory.

    Arrays come back with their dtype, shape and values, and read-only. An array that is assigned is not copied, so it must not be
    changed afterwards. The temporary file lies in Python's `tempfile.gettempdir()` (variable TMPDIR) and is removed with the
    spool.
    """

    def __init__(self, in_memory: int) -> None:
        self.in_memory = in_memory
        self._arrays: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self._bytes = 0
        self._stored: dict[Hashable, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        self._file: Any = None
        self._end = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._arrays or key in self._stored

    def __setitem__(self, key: Hashable, array: NDArray[Any]) -> None:
        """Store an array. Raises OSError if the temporary file cannot be written."""
        self.pop(key)
        array = np.asarray(array, order="C").view()
        array.flags.writeable = False
        self._keep(key, array)

    def __getitem__(self, key: Hashable) -> NDArray[Any]:
        """The array of a key. Raises KeyError."""
        array = self._arrays.get(key)
        if array is None:
            array = self._load(key)
            self._keep(key, array)
        else:
            self._arrays.move_to_end(key)
        return array

    def pop(self, key: Hashable) -> None:
        """Forget the array of a key, if there is one."""
        array = self._arrays.pop(key, None)
        if array is not None:
            self._bytes -= array.nbytes + ENTRY_BYTES
        self._stored.pop(key, None)

    def _keep(self, key: Hashable, array: NDArray[Any]) -> None:
        self._arrays[key] = array
        self._bytes += array.nbytes + ENTRY_BYTES
        while self._bytes > self.in_memory and len(self._arrays) > 1:
            oldest, evicted = self._arrays.popitem(last=False)
            self._bytes -= evicted.nbytes + ENTRY_BYTES
            if oldest not in self._stored:
                self._store(oldest, evicted)

    def _store(self, key: Hashable, array: NDArray[Any]) -> None:
        # Masks take an eighth in the file.
        raw = np.packbits(array) if array.dtype.kind == "b" else array
        with naming(Path(tempfile.gettempdir())):
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="rvos-")  # noqa: SIM115 it is closed with the spool
            self._file.seek(self._end)
            self._file.write(raw.data)
        self._stored[key] = (self._end, array.shape, array.dtype)
        self._end += raw.nbytes

    def _load(self, key: Hashable) -> NDArray[Any]:
        offset, shape, dtype = self._stored[key]
        count = int(np.prod(shape))
        raw = np.empty(-(-count // 8), np.uint8) if dtype.kind == "b" else np.empty(count, dtype)
        with naming(Path(tempfile.gettempdir())):
            self._file.seek(offset)
            self._file.readinto(raw.data)
        array = np.unpackbits(raw, count=count).view(bool) if dtype.kind == "b" else raw
        array = array.reshape(shape)
        array.flags.writeable = False
        return array
