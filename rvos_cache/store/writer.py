"""Writing a cache: a video is written to a staging folder, and its backend publishes it in one step."""

from __future__ import annotations

import json
import socket
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from rvos_cache.differences import first_difference
from rvos_cache.errors import InputError
from rvos_cache.store.card import Card, read_card_from
from rvos_cache.store.checksum import canonical, digest, with_checksum
from rvos_cache.store.content import PROVENANCE, staged_content
from rvos_cache.store.uri import open_backend


class CacheWriter:
    """A cache that is open for writing, by this process and any number of others.

    path: the `.zarr` folder or its URL; card: what the cache must be. The constructor writes the card, or checks the one that
    is there, and removes what dead processes left. Raises InputError if there is another card, or if the backend cannot
    publish a video atomically.
    """

    def __init__(self, path: Path | str, card: Card) -> None:
        self.path, self.card, self.backend = Path(path), card, open_backend(path)
        if not self.backend.has_card():
            self.backend.create(with_checksum(card.model_dump()))
        stored = read_card_from(self.backend)
        for field in stored.differences(card):
            name, old, new = first_difference(stored.value(field), card.value(field), field)
            raise InputError(
                f"{self.backend}: made with {name} = {old!r}, now it is {new!r}; use another path or the old settings"
            )
        self.backend.open_for_writing()

    @classmethod
    def attach(cls, path: Path | str, card: Card, marker: str) -> CacheWriter:
        """A writer to a cache that another machine opened. marker: a file that it keeps in the cache (`Backend.marker_file`).

        Raises InputError if this machine has another folder under that path: what it wrote there would be lost.
        """
        backend = open_backend(path)
        try:
            backend.read(marker)
        except FileNotFoundError as error:
            raise InputError(
                f"{backend}: {socket.gethostname()} cannot read what the machine that started the run wrote here; "
                "give --out on a disk that all machines share, or a URL"
            ) from error
        return cls(path, card)

    def published_ids(self) -> set[str]:
        """Ids of the published videos."""
        return self.backend.video_ids()

    def publish(
        self,
        video_id: str,
        arrays: Mapping[str, Any],
        attributes: Mapping[str, Any],
        provenance: Mapping[str, Any] | None = None,
    ) -> bool:
        """Write one video and publish it in one step. False: another writer was first, ours is dropped.

        arrays: name -> array. An iterator of frames, or a pair (array, True), is stored with one chunk per frame.
        Raises ValueError for NaN, OSError if a write fails; nothing is published then.
        """
        # Zarr would write NaN as something that is not JSON: this raises for it.
        canonical(attributes)
        with self.backend.staging_folder(video_id) as folder:
            group = zarr.open_group(folder, mode="w-", zarr_format=3)
            # One write of the attributes: each update would rewrite zarr.json.
            written = dict(provenance or {}, when=time.strftime("%FT%TZ", time.gmtime()))
            group.attrs.put({**attributes, PROVENANCE: written})
            for name, value in arrays.items():
                _write_array(group, name, value)
            paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            digests = {str(path.relative_to(folder)): digest(path.read_bytes()) for path in paths}
            return self.backend.publish(folder, video_id, digests, staged_content(folder, video_id))

    def fail(self, video_id: str, message: str) -> None:
        """Record that the extraction of `video_id` failed."""
        entry = {"video": video_id, "error": " ".join(message.split()), "when": time.strftime("%FT%TZ", time.gmtime())}
        self.backend.add_failure(json.dumps({**entry, "digest": digest(canonical(entry))}).encode())


def _write_array(group: zarr.Group, name: str, value: Any) -> None:
    """Write an array as one chunk; an iterator of frames or (array, True) as one chunk per frame, an iterator frame by frame."""
    by_frame = isinstance(value, tuple)
    array = value[0] if by_frame else value
    if isinstance(array, np.ndarray):
        chunks = (1, *array.shape[1:]) if by_frame else array.shape
        out = _create(group, name, array.shape, array.dtype, chunks, by_frame)
        if array.size:
            out[...] = _check_finite(array, name)
        return
    stored: zarr.Array | None = None
    for t, frame in enumerate(_frames(array)):
        shape = (t + 1, *frame.shape)
        if stored is None:
            stored = _create(group, name, shape, frame.dtype, shape, by_frame=True)
        elif (frame.shape, frame.dtype) != (stored.shape[1:], stored.dtype):
            raise ValueError(
                f"array {name!r}: frame {t} is {frame.dtype} {frame.shape}, expected {stored.dtype} {stored.shape[1:]}"
            )
        else:
            stored.resize(shape)
        stored[t] = _check_finite(frame, name)
    if stored is None:
        raise ValueError(f"array {name!r}: the iterator gave no frame")


def _create(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunks: tuple[int, ...], by_frame: bool
) -> zarr.Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return group.create_array(
            name,
            shape=shape,
            dtype=dtype,
            chunks=tuple(max(1, d) for d in chunks),
            compressors=Crc32cCodec(),
            # See Layout.separator.
            chunk_key_encoding={"name": "default", "separator": "." if by_frame else "/"},
            # By default zarr does not write chunks of zeros, and then a lost file reads as zeros.
            config={"write_empty_chunks": True},
        )


def _check_finite(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"array {name!r} holds NaN or infinite values")
    return array


def _frames(value: Iterable[Any]) -> Iterable[np.ndarray]:
    for frame in value:
        yield np.asarray(frame)
