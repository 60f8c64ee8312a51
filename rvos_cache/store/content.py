"""The identity of a stored video: one digest of its attributes and arrays, equal for equal content.

It depends neither on when, where or by how many processes a video was written, nor on how its arrays are chunked. A writer
computes it once, from the bytes that it has staged, and stores it beside the digests of the files; what was made from a video
stores it too, and notices when the video is written again with other content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rvos_cache.store.checksum import canonical
from rvos_cache.store.layout import Layout

PROVENANCE = "provenance"
"""The attribute that says when and where a video was written; no part of its content."""


class StoredArray(NamedTuple):
    """An array as it is stored. chunks: its little-endian bytes in order, in any number of pieces."""

    name: str
    layout: Layout
    chunks: Iterable[bytes | memoryview]


def content_parts(video_id: str, attributes: Mapping[str, Any], arrays: Iterable[StoredArray]) -> Iterator[bytes | memoryview]:
    """The bytes whose digest is the identity of a video. arrays: sorted by the names of their files."""
    yield canonical([video_id, {key: value for key, value in attributes.items() if key != PROVENANCE}])
    for name, layout, chunks in arrays:
        yield canonical([name, str(layout.dtype), list(layout.shape)])
        yield from chunks


def digest_of_parts(parts: Iterable[bytes | memoryview]) -> str:
    """128 bits of BLAKE2b over all parts, as hex."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        total.update(part)
    return total.hexdigest()


def staged_content(folder: Path, video_id: str) -> str:
    """The identity of the video whose files lie in the local `folder`, before it is published."""
    attributes = json.loads((folder / "zarr.json").read_bytes())["attributes"]
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("zarr.json"))
    return digest_of_parts(content_parts(video_id, attributes, _staged_arrays(folder, files)))


def _staged_arrays(folder: Path, files: Iterable[str]) -> Iterator[StoredArray]:
    for file in files:
        metadata = json.loads((folder / file).read_bytes())
        if metadata.get("node_type") == "array":
            name = file.removesuffix("/zarr.json")
            layout = Layout.from_metadata(metadata, file)
            # Each chunk ends with its crc32c, four bytes.
            chunks = ((folder / name / chunk).read_bytes()[:-4] for chunk in layout.chunk_files())
            yield StoredArray(name, layout, chunks)
