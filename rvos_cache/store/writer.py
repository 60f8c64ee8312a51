"""Writing a cache: a video is written in a folder of its own, and its place makes it visible in one step."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from rvos_cache.errors import InputError
from rvos_cache.store.card import Card, card_in
from rvos_cache.store.checksum import canonical, digest, with_checksum
from rvos_cache.store.staging import HOST
from rvos_cache.store.uri import open_backend


class CacheWriter:
    """A cache that is being written, by this process and any number of others.

    path: the `.zarr` folder or its URL; card: what it must be. Making it writes the card, or checks the one that is there,
    and removes what dead processes left. Raises InputError when another card is there, or the place cannot promise that a
    video is published once.
    """

    def __init__(self, path: Path | str, card: Card) -> None:
        self.path, self.card, self.backend = Path(path), card, open_backend(path)
        if not self.backend.has_card():
            self.backend.claim(with_checksum(card.model_dump()))
        found = card_in(self.backend)
        different = found.differences(card)
        if different:
            name = different[0]
            raise InputError(
                f"{self.backend}: made with {name} = {found.value(name)!r}, now it is {card.value(name)!r}; "
                "use another path or the old settings"
            )
        self.backend.open_for_writing()

    @classmethod
    def join(cls, path: Path | str, card: Card, mark: str) -> CacheWriter:
        """The writer of a run that another machine began: `mark` is a file that it keeps in the cache.

        Raises InputError when this machine sees another place under that name: what it wrote there would be lost.
        """
        place = open_backend(path)
        try:
            place.read(mark)
        except FileNotFoundError as error:
            raise InputError(
                f"{place}: {HOST} does not see what the run's own machine wrote here; "
                "give --out on a disk that all machines share, or a URL"
            ) from error
        return cls(path, card)

    def done(self) -> set[str]:
        """Ids of the published videos."""
        return self.backend.video_ids()

    def publish(
        self,
        video_id: str,
        arrays: Mapping[str, Any],
        attributes: Mapping[str, Any],
        provenance: Mapping[str, Any] | None = None,
    ) -> bool:
        """Write one video and make it visible in one step. False: another writer was first, ours is dropped.

        arrays: name -> array, or an iterator of frames for arrays stored one chunk per frame ("features/<name>" may also
        be a (array, True) pair for that). Raises ValueError for NaN, OSError when the disk refuses; nothing is visible then.
        """
        # Zarr would write NaN as something that is not JSON.
        canonical(attributes)
        with self.backend.staging(video_id) as folder:
            group = zarr.open_group(folder, mode="w-", zarr_format=3)
            # One write of the attributes: each update would rewrite zarr.json.
            group.attrs.put({**attributes, "provenance": dict(provenance or {}, when=time.strftime("%FT%TZ", time.gmtime()))})
            for name, value in arrays.items():
                _write_array(group, name, value)
            files = {str(p.relative_to(folder)): digest(p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}
            return self.backend.publish(folder, video_id, files)

    def fail(self, video_id: str, message: str) -> None:
        """Record that `video_id` could not be made."""
        entry = {"video": video_id, "error": " ".join(message.split()), "when": time.strftime("%FT%TZ", time.gmtime())}
        self.backend.add_failure(json.dumps({**entry, "digest": digest(canonical(entry))}).encode())


def _write_array(group: zarr.Group, name: str, value: Any) -> None:
    """Whole arrays are one chunk; iterators and (array, True) are one chunk per frame, those of an iterator as they come."""
    by_frame = isinstance(value, tuple)
    array = value[0] if by_frame else value
    if isinstance(array, np.ndarray):
        chunks = (1, *array.shape[1:]) if by_frame else array.shape
        out = _create(group, name, array.shape, array.dtype, chunks)
        if array.size:
            out[...] = _finite(array, name)
        return
    written: zarr.Array | None = None
    for t, frame in enumerate(_frames(array)):
        shape = (t + 1, *frame.shape)
        if written is None:
            written = _create(group, name, shape, frame.dtype, shape)
        elif (frame.shape, frame.dtype) != (written.shape[1:], written.dtype):
            raise ValueError(
                f"array {name!r}: frame {t} is {frame.dtype} {frame.shape}, wanted {written.dtype} {written.shape[1:]}"
            )
        else:
            written.resize(shape)
        written[t] = _finite(frame, name)
    if written is None:
        raise ValueError(f"array {name!r} came without a frame")


def _create(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunks: tuple[int, ...]) -> zarr.Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return group.create_array(
            name,
            shape=shape,
            dtype=dtype,
            chunks=tuple(max(1, d) for d in chunks),
            compressors=Crc32cCodec(),
            # zarr leaves out chunks of zeros, and then a lost file reads as zeros.
            config={"write_empty_chunks": True},
        )


def _finite(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"array {name!r} holds NaN or infinite values")
    return array


def _frames(value: Iterable[Any]) -> Iterable[np.ndarray]:
    for frame in value:
        yield np.asarray(frame)
