"""Arrays of numbers in MATLAB's .mat files of version 5 to 7 ("MAT-File Format", MathWorks: "Level 5 MAT-File Format").

SciPy reads these too, but its reader crashes the process on damaged bytes (a segmentation fault in 1.17, a tag with an unknown
type is enough); here they are one line. Cells, structures and objects are not read, so nothing in a file can run.
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
"""mxDOUBLE_CLASS ... mxUINT64_CLASS; below are cells, structures, objects, text, sparse arrays, above functions."""
COMPLEX = 0x0800
HEAD = 4096
"""Bytes that surely hold an array's flags, dimensions and name (63 characters at most)."""


class _Damaged(ValueError):
    pass


def read_array(path: Path, name: str, most: int) -> NDArray[np.generic]:
    """The array `name` in MATLAB's shape. Raises InputError: damaged, no such array, no numbers, or over `most` of them."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found; copy it again from the dataset's archive") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); copy it again from the dataset's archive") from error
    order = {b"IM": "<", b"MI": ">"}.get(raw[126:128])
    if order is None:
        raise InputError(f"{path}: no MATLAB file of version 5 to 7; copy it again from the dataset's archive")
    held = []
    try:
        at = 128
        while at < len(raw):
            kind, start, size, at = _element(raw, at, order)
            found, array = _array(raw[start : start + size], kind, order, name, most)
            if array is not None:
                return array
            held.append(found)
    except (_Damaged, struct.error, zlib.error, ValueError) as error:
        raise InputError(f"{path}: not a whole MATLAB file ({error}); copy it again from the dataset's archive") from error
    there = ", ".join(repr(h) for h in held[:5]) or "nothing"
    raise InputError(f"{path}: no array {name!r}, it holds {there}; copy it again from the dataset's archive")


def _element(data: bytes, at: int, order: str) -> tuple[int, int, int, int]:
    """Type, start and size in bytes of the element at `at`, and where the next begins. Raises _Damaged: it ends past the data."""
    (word,) = struct.unpack_from(f"{order}I", data, at)
    if word >> 16:
        # Up to four bytes lie in the tag itself.
        kind, start, size, after = word & 0xFFFF, at + 4, word >> 16, at + 8
    else:
        kind, start = word, at + 8
        (size,) = struct.unpack_from(f"{order}I", data, at + 4)
        # Only compressed elements are not padded to eight bytes.
        after = start + (size if kind == COMPRESSED else -(-size // 8) * 8)
    if start + size > len(data) or start + size > after:
        raise _Damaged("it ends early")
    return kind, start, size, after


def _array(body: bytes, kind: int, order: str, wanted: str, most: int) -> tuple[str, NDArray[np.generic] | None]:
    """The name of one variable, and its values when it is the one wanted."""
    stream = zlib.decompressobj()
    if kind == COMPRESSED:
        head = stream.decompress(body, HEAD)
        kind, size = struct.unpack_from(f"{order}II", head)
        body = head[8:]
    else:
        size = len(body)
    if kind != MATRIX:
        raise _Damaged(f"a variable of type {kind}")
    kind, start, length, at = _element(body, 0, order)
    if (kind, length) != (UINT32, 8):
        raise _Damaged("an array without flags")
    (flags,) = struct.unpack_from(f"{order}I", body, start)
    if flags & 0xFF not in NUMERIC:
        # Others are laid out in other ways; their names do not matter.
        return f"class {flags & 0xFF}", None
    kind, start, length, at = _element(body, at, order)
    if kind != INT32 or not 8 <= length <= 256 or length % 4:
        raise _Damaged("an array without dimensions")
    shape = struct.unpack_from(f"{order}{length // 4}i", body, start)
    _, start, length, at = _element(body, at, order)
    name = body[start : start + length].decode("latin-1")
    if name != wanted:
        return name, None
    if min(shape) < 0 or math.prod(shape) > most or flags & COMPLEX:
        raise _Damaged(f"{name!r} is {shape}{' complex' if flags & COMPLEX else ''}, at most {most} numbers are read")
    if len(body) < size:
        # Eight bytes a number are the most a sound array has.
        body += stream.decompress(stream.unconsumed_tail, 8 * most + HEAD)
    if stream.unconsumed_tail or (len(body) < size):
        raise _Damaged("it ends early")
    kind, start, length, _ = _element(body, at, order)
    if kind not in NUMBERS or length != math.prod(shape) * int(NUMBERS[kind][1]):
        raise _Damaged(f"{name!r} is {shape} and has {length} bytes of type {kind}")
    return name, np.frombuffer(body, order + NUMBERS[kind], math.prod(shape), start).reshape(shape, order="F")
