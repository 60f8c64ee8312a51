"""Arrays of numbers in MATLAB's .mat files of version 5 to 7.

SciPy reads these too, but its reader crashes the process on damaged bytes (a segmentation fault in 1.17, for example on a tag
with an unknown type); here damaged bytes are an error message. Cells, structures and objects are not read, so no code in a file
can run.

Source: MathWorks, "MAT-File Format", section "Level 5 MAT-File Format".
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError

NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""miINT8 ... miUINT64 -> NumPy's type."""
INT32, UINT32, MATRIX, COMPRESSED = 5, 6, 14, 15
NUMERIC = range(6, 16)
"""mxDOUBLE_CLASS ... mxUINT64_CLASS. Lower: cells, structures, objects, text and sparse arrays. Higher: functions."""
COMPLEX = 0x0800
HEAD = 4096
"""Number of bytes that is enough for an array's flags, dimensions and name (63 characters at most)."""


class _Damaged(ValueError):
    pass


def read_array(path: Path, name: str, max_size: int) -> NDArray[np.generic]:
    """Return the array `name` in MATLAB's shape.

    Raises InputError: if the file is damaged or has no such array, or the array is not of numbers or has more than `max_size`.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found; copy it again from the dataset's archive") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); copy it again from the dataset's archive") from error
    order = {b"IM": "<", b"MI": ">"}.get(raw[126:128])
    if order is None:
        raise InputError(f"{path}: no MATLAB file of version 5 to 7; copy it again from the dataset's archive")
    names = []
    try:
        offset = 128
        while offset < len(raw):
            kind, start, size, offset = _element(raw, offset, order)
            other, array = _array(raw[start : start + size], kind, order, name, max_size)
            if array is not None:
                return array
            names.append(other)
    except (_Damaged, struct.error, zlib.error, ValueError) as error:
        raise InputError(f"{path}: not a whole MATLAB file ({error}); copy it again from the dataset's archive") from error
    existing = ", ".join(map(repr, names[:5])) or "nothing"
    raise InputError(f"{path}: no array {name!r}, it has {existing}; copy it again from the dataset's archive")


def _element(data: bytes, offset: int, order: str) -> tuple[int, int, int, int]:
    """Return the type, start and size in bytes of the element at `offset`, and the offset of the next one.

    Raises _Damaged: if it ends after the data.
    """
    (word,) = struct.unpack_from(f"{order}I", data, offset)
    if word >> 16:
        # A small element: up to four bytes of data in the tag itself.
        kind, start, size, next_offset = word & 0xFFFF, offset + 4, word >> 16, offset + 8
    else:
        kind, start = word, offset + 8
        (size,) = struct.unpack_from(f"{order}I", data, offset + 4)
        # All elements but compressed ones are padded to eight bytes.
        next_offset = start + (size if kind == COMPRESSED else -(-size // 8) * 8)
    if start + size > len(data) or start + size > next_offset:
        raise _Damaged("it ends early")
    return kind, start, size, next_offset


def _array(body: bytes, kind: int, order: str, requested: str, max_size: int) -> tuple[str, NDArray[np.generic] | None]:
    """Return the name of one variable, and its values if it is the requested one."""
    stream = zlib.decompressobj()
    if kind == COMPRESSED:
        head = stream.decompress(body, HEAD)
        kind, size = struct.unpack_from(f"{order}II", head)
        body = head[8:]
    else:
        size = len(body)
    if kind != MATRIX:
        raise _Damaged(f"a variable of type {kind}")
    kind, start, length, offset = _element(body, 0, order)
    if (kind, length) != (UINT32, 8):
        raise _Damaged("an array without flags")
    (flags,) = struct.unpack_from(f"{order}I", body, start)
    if flags & 0xFF not in NUMERIC:
        # Other classes have other layouts; their names are not needed.
        return f"class {flags & 0xFF}", None
    kind, start, length, offset = _element(body, offset, order)
    if kind != INT32 or not 8 <= length <= 256 or length % 4:
        raise _Damaged("an array without dimensions")
    shape = struct.unpack_from(f"{order}{length // 4}i", body, start)
    _, start, length, offset = _element(body, offset, order)
    name = body[start : start + length].decode("latin-1")
    if name != requested:
        return name, None
    if min(shape) < 0 or math.prod(shape) > max_size or flags & COMPLEX:
        raise _Damaged(f"{name!r} is {shape}{' complex' if flags & COMPLEX else ''}, at most {max_size} numbers are read")
    if len(body) < size:
        # An undamaged array has at most eight bytes per number.
        body += stream.decompress(stream.unconsumed_tail, 8 * max_size + HEAD)
    if stream.unconsumed_tail or (len(body) < size):
        raise _Damaged("it ends early")
    kind, start, length, _ = _element(body, offset, order)
    if kind not in NUMBERS or length != math.prod(shape) * int(NUMBERS[kind][1]):
        raise _Damaged(f"{name!r} is {shape} and has {length} bytes of type {kind}")
    return name, np.frombuffer(body, order + NUMBERS[kind], math.prod(shape), start).reshape(shape, order="F")
