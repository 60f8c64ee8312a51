"""Reading a cache: the bytes of every file are checked, and the arrays are decoded from the bytes that were checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.store.backend import Backend
from rvos_cache.store.card import Card, read_card_from
from rvos_cache.store.checksum import canonical, digest
from rvos_cache.store.content import StoredArray, content_parts, digest_of_parts
from rvos_cache.store.layout import Layout
from rvos_cache.store.uri import format_uri, open_backend


class VideoFolder:
    """One published video, open for reading: its attributes and its arrays.

    The first read of a file compares all its bytes with the digest in digests.json; every later read through this object
    compares their crc32c with that of the bytes that were checked. So a changed, lost or replaced file raises InputError at
    its next read and never gives other values, and reads succeed again once the right bytes are back. Attributes and shapes
    are those of the first read. Raises InputError if the video is missing or damaged.
    """

    def __init__(self, backend: Backend, video_id: str) -> None:
        self.backend = backend
        video = backend.published_video(video_id)
        self.path, self.digests, self.how_to_fix = video.path, dict(video.digests), video.how_to_fix
        self.video_id, self._content = video_id, video.content
        self._checked: dict[str, tuple[int, bytes]] = {}
        self._layouts: dict[str, Layout] = {}
        self.attributes: dict[str, Any] = self._json("zarr.json")["attributes"]

    def location(self, name: str = "") -> str:
        """The full name of a file, or of the whole video, for messages."""
        return f"{self.backend}/{self.path}/{name}".rstrip("/")

    def array_names(self) -> list[str]:
        """The names of the video's arrays, sorted by their files."""
        files = sorted(name for name in self.digests if name.endswith("/zarr.json"))
        return [name.removesuffix("/zarr.json") for name in files if self._json(name).get("node_type") == "array"]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the array `name`. Raises InputError if there is no such array."""
        return self._layout(name).shape

    def array(self, name: str, frames: slice | None = None) -> NDArray[Any]:
        """The array `name`, or its rows `frames`; only their files are read if the array is stored by frame.

        Raises InputError if there is no such array, or it is damaged.
        """
        layout = self._layout(name)
        if not layout.by_frame:
            values = self._chunk(layout, layout.shape, f"{name}/{layout.chunk_file()}")
            return values if frames is None else values[frames]
        rows: Sequence[int] = range(layout.shape[0])[frames or slice(None)]
        if len(rows) == 1:
            return self._chunk(layout, (1, *layout.shape[1:]), f"{name}/{layout.chunk_file(rows[0])}")
        out = np.empty((len(rows), *layout.shape[1:]), layout.dtype)
        for i, row in enumerate(rows):
            out[i] = self._chunk(layout, layout.shape[1:], f"{name}/{layout.chunk_file(row)}")
        return out

    @property
    def content(self) -> str:
        """The identity of the video (`rvos_cache.store.content`) that its writer stored, computed where it stored none."""
        if self._content is None:
            self._content = self.computed_content()
        return self._content

    def computed_content(self) -> str:
        """The identity of the video from all its bytes. Raises InputError if one of them is damaged."""
        return digest_of_parts(self.content_parts())

    def content_parts(self) -> Iterator[bytes | memoryview]:
        """The bytes whose digest is the identity. Raises InputError if one of them is damaged."""
        arrays = (
            StoredArray(name, self._layout(name), [self.array(name).reshape(-1).view(np.uint8).data])
            for name in self.array_names()
        )
        return content_parts(self.video_id, self.attributes, arrays)

    def read_file(self, name: str) -> NDArray[np.uint8]:
        """The bytes of the file `name`. Raises InputError if it is missing or its bytes changed."""
        try:
            raw = self.backend.read(f"{self.path}/{name}")
        except OSError as error:
            raise InputError(f"{self.location(name)}: missing or unreadable ({error.strerror}); {self.how_to_fix}") from error
        # The last four bytes separately: the crc32c over a chunk and its own crc32c is the same for all chunks.
        checksum = google_crc32c.value(raw[:-4]), raw[-4:].tobytes()
        expected = self._checked.get(name)
        if expected is None:
            if digest(raw.data) != self.digests.get(name):
                raise InputError(f"{self.location(name)}: its bytes do not match their digest; {self.how_to_fix}")
            self._checked[name] = checksum
        elif checksum != expected:
            raise InputError(
                f"{self.location(name)}: its bytes changed since it was first read; verify the cache, then start again"
            )
        return raw

    def unchecked_files(self) -> list[str]:
        """The files whose bytes have not been compared with their digest yet, or did not match."""
        return [name for name in self.digests if name not in self._checked]

    def _json(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self.read_file(name).tobytes()))

    def _layout(self, name: str) -> Layout:
        layout = self._layouts.get(name)
        if layout is None:
            file = f"{name}/zarr.json"
            if file not in self.digests:
                raise InputError(f"{self.location()}: has no array {name!r}; extract again with a tracker that writes it")
            layout = self._layouts[name] = Layout.from_metadata(self._json(file), self.location(file))
        return layout

    def _chunk(self, layout: Layout, shape: tuple[int, ...], file: str) -> NDArray[Any]:
        count = prod(shape)
        if count == 0:
            return np.empty(shape, layout.dtype)
        if file not in self.digests:
            # Zarr would return zeros for a missing chunk.
            raise InputError(f"{self.location(file)}: not written; {self.how_to_fix}")
        raw = self.read_file(file)
        try:
            body = raw[:-4]
            crc, stored = self._checked[file]
            if crc.to_bytes(4, "little") != stored:
                raise ValueError("crc32c does not match")
            if len(body) != count * layout.dtype.itemsize:
                raise ValueError(f"{len(body)} bytes for {layout.dtype} {shape}")
        except ValueError as error:
            raise InputError(f"{self.location(file)}: cannot be decoded ({error}); {self.how_to_fix}") from error
        return body.view(layout.dtype).reshape(shape)


class Cache:
    """Base class of the three kinds of caches. path: a folder or a URL.

    Raises InputError if it is not a whole cache of this kind.
    """

    kind: Literal["tracks", "text", "selections"]

    def __init__(self, path: Path | str) -> None:
        self.path, self.backend = format_uri(path), open_backend(path)
        self.card: Card = read_card_from(self.backend)
        if self.card.kind != self.kind:
            raise InputError(f"{self.backend}: holds {self.card.kind}, expected {self.kind}; give the cache of that kind")
        # To open a video is to parse two small JSON files; a thousand open videos take a few megabytes.
        self.folder = lru_cache(maxsize=4096)(self._open)

    def _open(self, video_id: str) -> VideoFolder:
        return VideoFolder(self.backend, video_id)

    def video_ids(self) -> tuple[str, ...]:
        """The published videos, sorted."""
        return tuple(sorted(self.backend.video_ids()))

    def content(self, video_id: str) -> str:
        """The identity of a video: equal exactly if its attributes and arrays are equal (`rvos_cache.store.content`)."""
        return self.folder(video_id).content

    def require_videos(self) -> tuple[str, ...]:
        """`video_ids`. Raises InputError when there is none: nothing would be read, and nothing said."""
        video_ids = self.video_ids()
        if not video_ids:
            step = {"tracks": "rvos-cache extract", "text": "rvos-cache extract-text", "selections": "rvos-select predict"}[
                self.kind
            ]
            raise InputError(f"{self.backend}: holds no video; run {step} first (rvos-cache info lists videos that failed)")
        return video_ids

    def failures(self) -> dict[str, str]:
        """Video -> last error, of videos that failed and have not been published since. Raises InputError."""
        errors = {}
        for location, line in self._failure_records():
            try:
                entry: dict[str, str] = json.loads(line)
                expected = entry.pop("digest")
                # The bytes are compared too: different JSON texts have the same value.
                if digest(canonical(entry)) != expected or json.dumps({**entry, "digest": expected}).encode() != line:
                    raise ValueError
                errors[entry["video"]] = entry["error"]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{location}: not a failure record; remove it") from error
        published = set(self.video_ids()) if errors else set()
        return {video_id: error for video_id, error in errors.items() if video_id not in published}

    def _failure_records(self) -> list[tuple[str, bytes]]:
        try:
            return list(self.backend.failures())
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror}); remove or repair it") from error
