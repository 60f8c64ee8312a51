"""Reading a cache: every file is checked before it is believed, then decoded straight from the bytes that were checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.store.backend import Backend
from rvos_cache.store.card import Card, card_in
from rvos_cache.store.checksum import canonical, digest
from rvos_cache.store.uri import format_uri, open_backend

CODECS = ["bytes", "crc32c"]


@dataclass(frozen=True)
class Layout:
    """How an array lies on disk: one plain chunk, or one per row of the first dimension (by_frame)."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_frame: bool

    @classmethod
    def of(cls, stored: dict[str, Any], where: str) -> Layout:
        """From the array's zarr.json. Raises InputError for a layout that this format does not have."""
        try:
            shape, codecs = tuple(stored["shape"]), stored["codecs"]
            chunk, names = tuple(stored["chunk_grid"]["configuration"]["chunk_shape"]), [c["name"] for c in codecs]
            whole = tuple(max(1, d) for d in shape)
            little = codecs[0].get("configuration", {}).get("endian", "little") == "little"
            if names == CODECS and little and shape and chunk in (whole, (1, *whole[1:])):
                return cls(shape, np.dtype(stored["data_type"]).newbyteorder("<"), chunk != whole)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(f"{where}: not an array of this format ({type(error).__name__}); extract again") from error
        raise InputError(f"{where}: chunks {chunk} of {shape}, codecs {names}: not this format's; extract again")


class VideoFolder:
    """One published video, open for reading: its attributes and its arrays.

    What is promised: the first read of a file compares all its bytes with the digest in digests.json; every later read
    through this object compares their crc32c with that of the bytes that passed. So a changed, lost or replaced file is an
    InputError at its next read, never other values; reading goes on once the right bytes are back. The attributes and the
    arrays' shapes are those of the moment they were first read. Raises InputError when the video is absent or damaged.
    """

    def __init__(self, place: Backend, video_id: str) -> None:
        self.backend = place
        published = place.published(video_id)
        self.at, self.files, self.remedy = published.at, dict(published.files), published.remedy
        self._passed: dict[str, tuple[int, bytes]] = {}
        self._layouts: dict[str, Layout] = {}
        self.attributes: dict[str, Any] = self._json("zarr.json")["attributes"]

    def where(self, name: str = "") -> str:
        """The full name of a file, or of the whole video, for messages."""
        return f"{self.backend}/{self.at}/{name}".rstrip("/")

    def names(self) -> list[str]:
        """The arrays of the video."""
        held = sorted(name for name in self.files if name.endswith("/zarr.json"))
        return [name.removesuffix("/zarr.json") for name in held if self._json(name).get("node_type") == "array"]

    def array(self, name: str, frames: slice | None = None) -> NDArray[Any]:
        """The array `name`, or its rows `frames`: only their files are read where it is stored by frame.

        Raises InputError when there is none, or it is damaged.
        """
        layout = self._layout(name)
        inner = "/0" * (len(layout.shape) - 1)
        if not layout.by_frame:
            whole = self._chunk(layout, layout.shape, f"{name}/c/0{inner}")
            return whole if frames is None else whole[frames]
        rows: Sequence[int] = range(layout.shape[0])[frames or slice(None)]
        if len(rows) == 1:
            return self._chunk(layout, (1, *layout.shape[1:]), f"{name}/c/{rows[0]}{inner}")
        out = np.empty((len(rows), *layout.shape[1:]), layout.dtype)
        for i, row in enumerate(rows):
            out[i] = self._chunk(layout, layout.shape[1:], f"{name}/c/{row}{inner}")
        return out

    def check(self, name: str) -> NDArray[np.uint8]:
        """The bytes of the file `name`. Raises InputError when it is missing or its bytes changed."""
        try:
            raw = self.backend.read(f"{self.at}/{name}")
        except OSError as error:
            raise InputError(f"{self.where(name)}: missing or unreadable ({error.strerror}); {self.remedy}") from error
        # The last four bytes are kept beside, not summed: over a chunk and its own crc32c the sum is the same for all chunks.
        mark = google_crc32c.value(raw[:-4]), raw[-4:].tobytes()
        passed = self._passed.get(name)
        if passed is None:
            if digest(raw.data) != self.files.get(name):
                raise InputError(f"{self.where(name)}: its bytes do not match their digest; {self.remedy}")
            self._passed[name] = mark
        elif mark != passed:
            raise InputError(f"{self.where(name)}: its bytes changed since it was first read; verify the cache, then start again")
        return raw

    def unread(self) -> list[str]:
        """The files whose bytes no read has compared with their digest yet, or whose bytes did not match."""
        return [name for name in self.files if name not in self._passed]

    def _json(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self.check(name).tobytes()))

    def _layout(self, name: str) -> Layout:
        found = self._layouts.get(name)
        if found is None:
            if f"{name}/zarr.json" not in self.files:
                raise InputError(f"{self.where()}: has no array {name!r}; extract again with a tracker that writes it")
            found = self._layouts[name] = Layout.of(self._json(f"{name}/zarr.json"), self.where(f"{name}/zarr.json"))
        return found

    def _chunk(self, layout: Layout, shape: tuple[int, ...], file: str) -> NDArray[Any]:
        count = prod(shape)
        if count == 0:
            return np.empty(shape, layout.dtype)
        if file not in self.files:
            # Zarr would fill the hole with zeros.
            raise InputError(f"{self.where(file)}: not written; {self.remedy}")
        raw = self.check(file)
        try:
            body = raw[:-4]
            crc, stored = self._passed[file]
            if crc.to_bytes(4, "little") != stored:
                raise ValueError("crc32c does not match")
            if len(body) != count * layout.dtype.itemsize:
                raise ValueError(f"{len(body)} bytes for {layout.dtype} {shape}")
        except ValueError as error:
            raise InputError(f"{self.where(file)}: cannot be decoded ({error}); {self.remedy}") from error
        return body.view(layout.dtype).reshape(shape)


class Cache:
    """What the three kinds of caches share. path: a folder or a URL, as errors name it.

    Raises InputError when it is not a whole cache of this kind.
    """

    kind: Literal["tracks", "text", "selections"]

    def __init__(self, path: Path | str) -> None:
        self.path, self.backend = format_uri(path), open_backend(path)
        self.card: Card = card_in(self.backend)
        if self.card.kind != self.kind:
            raise InputError(f"{self.backend}: holds {self.card.kind}, wanted {self.kind}; give the cache of that kind")
        # A handle parses two small JSON files; a thousand of them are a few megabytes.
        self.folder = lru_cache(maxsize=4096)(self._open)

    def _open(self, video_id: str) -> VideoFolder:
        return VideoFolder(self.backend, video_id)

    def video_ids(self) -> tuple[str, ...]:
        """The published videos, sorted."""
        return tuple(sorted(self.backend.video_ids()))

    def failures(self) -> dict[str, str]:
        """Videos that failed and are still not there, with the last error of each."""
        found = {}
        for where, line in self._failure_records():
            try:
                entry: dict[str, str] = json.loads(line)
                claimed = entry.pop("digest")
                # The bytes are compared too: JSON can say one thing in several ways.
                if digest(canonical(entry)) != claimed or json.dumps({**entry, "digest": claimed}).encode() != line:
                    raise ValueError
                found[entry["video"]] = entry["error"]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{where}: not a failure record; remove it") from error
        done = set(self.video_ids()) if found else set()
        return {video: error for video, error in found.items() if video not in done}

    def _failure_records(self) -> list[tuple[str, bytes]]:
        try:
            return list(self.backend.failures())
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror}); remove or repair it") from error
