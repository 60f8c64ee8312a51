"""How an array is stored: its shape, its dtype, and its chunks."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from rvos_cache.errors import InputError

CODECS = ["bytes", "crc32c"]
SEPARATORS = ("/", ".")


@dataclass(frozen=True)
class Layout:
    """How an array is stored: as one plain chunk, or as one per row of its first dimension (by_frame).

    separator: between the numbers in a chunk's name. Zarr's default "/" makes a folder of each, three for a frame of three axes, which
    take more bytes on disk than many a chunk; so chunks of frames have ".".
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_frame: bool
    separator: str = "/"

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any], location: str) -> Layout:
        """The layout of an array from its zarr.json. Raises InputError for a layout that is not of this format."""
        try:
            shape, codecs = tuple(metadata["shape"]), metadata["codecs"]
            chunk, names = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"]), [c["name"] for c in codecs]
            whole = tuple(max(1, d) for d in shape)
            little = codecs[0].get("configuration", {}).get("endian", "little") == "little"
            separator = metadata["chunk_key_encoding"]["configuration"]["separator"]
            if names == CODECS and little and shape and chunk in (whole, (1, *whole[1:])) and separator in SEPARATORS:
                return cls(shape, np.dtype(metadata["data_type"]).newbyteorder("<"), chunk != whole, separator)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(f"{location}: not an array of this format ({type(error).__name__}); extract again") from error
        raise InputError(f"{location}: chunks {chunk} of {shape}, codecs {names} are not of this format; extract again")

    def chunk_file(self, row: int = 0) -> str:
        """The file of the chunk that holds row `row`, relative to the array's folder."""
        return self.separator.join(["c", str(row if self.by_frame else 0), *["0"] * (len(self.shape) - 1)])

    def chunk_files(self) -> list[str]:
        """The files of all chunks in order; none for an array without elements."""
        if prod(self.shape) == 0:
            return []
        return [self.chunk_file(row) for row in range(self.shape[0] if self.by_frame else 1)]
